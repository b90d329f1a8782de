"""The training loop: epochs, evaluation, checkpoints, and a resume that is exact to the bit."""

import math
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from minidl import checkpoint as checkpoints
from minidl import random
from minidl.amp import autocast
from minidl.array_module import to_device
from minidl.capture import Captured, CaptureError
from minidl.evaluation import Running, count_correct, evaluate
from minidl.history import write_history
from minidl.optim.clip import clip_grad_norm_
from minidl.optim.lr_scheduler import ReduceLROnPlateau
from minidl.tensor import Tensor

LAST = "last.safetensors"
BEST = "best.safetensors"


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Alone:
    """The team of a Trainer that trains by itself; minidl.distributed.DataParallel is another.

    Rank 0 of the `size` ranks of a team writes the files. Every step goes through `begin`,
    `backward`, `total` and `average`, in mixed precision through `agree`, too.
    """

    rank, size = 0, 1

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def start(self, model) -> None:
        """Before the first step."""

    def stop(self) -> None:
        """After the last step."""

    def begin(self, samples: int, batch: int) -> None:
        """A step starts, in which so many samples of this rank count; all ranks together have
        `batch`, or a few less where some cannot be read."""

    def backward(self, loss) -> None:
        """Gradients of the mean `loss` over this rank's samples."""
        loss.backward()

    def total(self, running: Running, stop: bool) -> tuple[Running, bool]:
        """The sums over all ranks, and whether one of them wants to stop."""
        return running, stop

    def average(self, samples: int) -> None:
        """Make the gradients those of the mean loss over all ranks' samples, so many."""

    def agree(self, usable: bool) -> bool:
        """Whether the gradients of all ranks are usable."""
        return usable

    def share_buffers(self, model) -> None:
        """Let all ranks evaluate the same network."""

    def collect(self, model, optimizer) -> tuple[dict, dict]:
        """The states of the whole network and its optimiser; every rank must call it."""
        return model.state_dict(), optimizer.state_dict()


class Trainer:
    """Trains `model` and keeps what is needed to go on in `directory`.

    `loss_function(model, outputs, labels)` gives a scalar tensor; `scores(outputs)` the (N, C)
    scores whose largest is the prediction. The schedule advances every batch or, with
    ``schedule_by="epoch"``, every epoch; ``after_step(model)`` follows every step of the optimiser.
    `about` is stored with every checkpoint. The loaders' batches are moved to the model's device.
    `team` says who shares the work: each rank of it has a Trainer, whose loaders give this rank's
    part of the data. With a `scaler` (`minidl.amp.GradScaler`) it trains in mixed precision.
    With `capture` a GPU replays forward and backward of every whole batch as it recorded them
    (`minidl.capture`), unless they cannot be recorded; the numbers are the same. Raises ValueError
    for that with a model on the CPU, a scaler or other ranks.
    """

    def __init__(
        self, model, optimizer, train_loader, test_loader, loss_function, directory, epochs,
        *, scheduler=None, schedule_by="batch", clip_norm=None, scores=lambda outputs: outputs,
        after_step=None, about=None, display=None, team=None, scaler=None,
        capture=False,
    ):  # fmt: skip
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        if schedule_by not in ("batch", "epoch"):
            raise ValueError(f"schedule_by must be 'batch' or 'epoch', got {schedule_by!r}")
        self.model = model
        self.optimizer = optimizer
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.loss_function = loss_function
        self.directory = Path(directory)
        self.epochs = epochs
        self.scheduler = scheduler
        self.schedule_by = schedule_by
        self.clip_norm = clip_norm
        self.scores = scores
        self.after_step = after_step
        self.about = about or {}
        self.display = display
        self.team = team or Alone()
        self.scaler = scaler
        if capture and (model.device == "cpu" or scaler is not None or self.team.size > 1):
            raise ValueError("capture needs a model on a GPU, no scaler and no other ranks")
        self._captured = Captured(self._gradients, optimizer.parameters) if capture else None
        self._held = None
        self.epoch = 1
        self.batch = 0  # batches of this epoch that are done with
        self.running = Running()
        self.rows = []
        self.best_accuracy = -1.0

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> list[dict]:
        """Train to the last epoch and return one row of figures an epoch.

        KeyboardInterrupt saves ``last.safetensors`` before it goes on its way; the ranks of a team
        agree on the step after which they stop. Raises TrainingDiverged for a loss that is not
        finite, leaving the checkpoints as they were.
        """
        self.team.start(self.model)
        try:
            # A loss that overflows is reported once, by TrainingDiverged.
            with np.errstate(over="ignore", invalid="ignore"), self._interrupts_of_a_team():
                while self.epoch <= self.epochs:
                    self._run_epoch()
        except KeyboardInterrupt:
            self.save(LAST)
            raise
        finally:
            self.team.stop()
        return self.rows

    @contextmanager
    def _interrupts_of_a_team(self):
        """One rank must not leave the others waiting: Ctrl-C is told to all with the next sums."""
        if self.team.size == 1:
            yield
            return
        with _interrupts_held() as self._held:
            yield
            self._held.pending = None  # the run is over on all ranks: there is nothing to stop

    def _total(self, running):
        return self.team.total(running, self._held is not None and self._held.pending is not None)

    def _run_epoch(self):
        batches = len(self.train_loader)
        if self.display:
            self.display.epoch(self.epoch, batches, self.batch)
        self.train_loader.set_epoch(self.epoch)
        self.model.train()
        started, already = time.perf_counter(), self.running.samples
        for images, labels in self.train_loader.iter_from(self.batch):
            self._step(images, labels)
            if self.display:
                elapsed = time.perf_counter() - started
                speed = (self.running.samples - already) / elapsed
                self.display.batch(self.running.loss, self.running.accuracy, speed)
        elapsed = time.perf_counter() - started
        self.team.share_buffers(self.model)
        tested, stop = self._total(
            evaluate(self.model, self.test_loader, self.loss_function, self.scores)
        )
        self._finish_epoch(tested, (self.running.samples - already) / max(elapsed, 1e-9))
        if stop:
            raise KeyboardInterrupt

    def _step(self, images, labels):
        # Ctrl-C waits for the end of the step: a checkpoint must not stand between two of them.
        with _interrupts_held():
            samples = len(labels) if self.train_loader.counted else 0
            self.team.begin(samples, self.train_loader.whole)
            loss, scores = self._gradients_of_batch(images, labels)
            seen = Running()
            if samples:
                scores = to_device(scores._array, "cpu")
                seen.add(loss.item(), count_correct(scores, labels), samples)
            seen, stop = self._total(seen)
            self.team.average(seen.samples)
            if not math.isfinite(seen.loss):
                raise self._diverged(f"the loss became {seen.loss}")
            if self._gradients_are_usable():
                if self.clip_norm is not None:
                    clip_grad_norm_(self.optimizer.parameters, self.clip_norm)
                self.optimizer.step()
                if self.after_step is not None:
                    self.after_step(self.model)
            if self.scheduler is not None and self.schedule_by == "batch":
                self.scheduler.step()
            self.running.merge(seen)
            self.batch = self.train_loader.position
        if stop:
            raise KeyboardInterrupt

    def _gradients_of_batch(self, images, labels):
        if self._captured is not None and len(labels) == self.train_loader.batch_size:
            try:
                if self._captured.fits(images, labels):
                    return self._captured(images, labels)
            except CaptureError:
                self._captured = None  # a loss, or a layer, that needs the CPU
        return self._gradients(Tensor(to_device(images, self.model.device)), labels)

    def _gradients(self, images, labels):
        """(loss, scores) of a batch, whose gradients are set."""
        with nullcontext() if self.scaler is None else autocast():
            outputs = self.model(images)
            loss = self.loss_function(self.model, outputs, labels)
            self.optimizer.zero_grad()
            self.team.backward(loss if self.scaler is None else self.scaler.scale(loss))
            return loss, self.scores(outputs)

    def _gradients_are_usable(self):
        if self.scaler is None:
            return True
        if self.scaler.unscale_(self.optimizer.parameters, self.team.agree):
            return True
        if self.scaler.factor < 1:
            raise self._diverged("the gradients overflow float16, however the loss is scaled")
        return False

    def _diverged(self, what):
        rate = self.optimizer.groups[0]["lr"]
        return TrainingDiverged(
            f"{what} in epoch {self.epoch}, batch {self.batch + 1}, at learning rate {rate:g}: "
            "try a lower one (--lr) or clip the gradients"
        )

    def _finish_epoch(self, tested, speed):
        with _interrupts_held():
            self.rows.append(
                {
                    "epoch": self.epoch,
                    "lr": self.optimizer.groups[0]["lr"],
                    "train_loss": self.running.loss,
                    "train_accuracy": self.running.accuracy,
                    "test_loss": tested.loss,
                    "test_accuracy": tested.accuracy,
                    "samples_per_s": round(speed, 1),
                }
            )
            if self.scheduler is not None and self.schedule_by == "epoch":
                if isinstance(self.scheduler, ReduceLROnPlateau):
                    self.scheduler.step(tested.loss)
                else:
                    self.scheduler.step()
            self.epoch += 1
            self.batch = 0
            self.running = Running()
            if tested.accuracy > self.best_accuracy:
                self.best_accuracy = tested.accuracy
                self.save(BEST)
            self.save(LAST)
            if self.team.is_chief:
                write_history(self.directory, self.rows)
        if self.display:
            self.display.summary(self.rows[-1])

    # -- checkpoints -----------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Write the whole state of the run to `name` in the directory, on rank 0 of the team."""
        model, optimizer = self.team.collect(self.model, self.optimizer)
        if not self.team.is_chief:
            return
        progress = {
            "epoch": self.epoch,
            "batch": self.batch,
            "running": vars(self.running),
            "rows": self.rows,
            "best_accuracy": self.best_accuracy,
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "random": random.get_state(),
            "loader_seed": self.train_loader.seed,
            "train_images": len(self.train_loader.dataset),
        }
        state = checkpoints.Checkpoint(model, optimizer, self.about, progress)
        checkpoints.save(self.directory / name, state)

    def restore(self, state: checkpoints.Checkpoint) -> None:
        """Continue from a checkpoint, exactly where it was taken.

        Raises ValueError if it does not fit the model, the optimiser or the data; KeyError or
        TypeError if it holds something else than `save` wrote.
        """
        progress = state.progress
        images = len(self.train_loader.dataset)
        if progress["train_images"] != images:
            raise ValueError(
                f"the run was trained on {progress['train_images']} images, the data has {images}"
            )
        if not (progress["epoch"] >= 1 and 0 <= progress["batch"] <= len(self.train_loader)):
            raise ValueError(
                f"epoch {progress['epoch']}, batch {progress['batch']} is no place in the run"
            )
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(progress["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(progress["scaler"])
        random.set_state(progress["random"])
        self.train_loader.seed = progress["loader_seed"]
        self.epoch, self.batch = progress["epoch"], progress["batch"]
        self.running = Running(**progress["running"])
        self.rows = [dict(row) for row in progress["rows"]]
        self.best_accuracy = progress["best_accuracy"]


class _interrupts_held:
    """Postpones Ctrl-C to the end of the block (in the main thread; elsewhere none arrives)."""

    def __enter__(self):
        self.pending = None
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):
        self.pending = (number, frame)

    def __exit__(self, *exc):
        if self._main:
            signal.signal(signal.SIGINT, self._previous)
            if self.pending and callable(self._previous):
                self._previous(*self.pending)
