"""What a training run shows while it goes: a live line on a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingDisplay:
    """Context manager; `epoch`, `batch` and `summary` report as the run proceeds."""

    def __init__(self, epochs: int):
        self.epochs = epochs
        self._console = Console()
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[speed]:.0f} samples/s  ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            refresh_per_second=8,
        )
        self._task = None

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exc):
        self._progress.stop()

    def epoch(self, epoch: int, batches: int, done: int) -> None:
        """Start the line of an epoch with `done` of its `batches` behind it."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            "", total=batches, completed=done, epoch=f"{epoch}/{self.epochs}", loss=0.0,
            accuracy=0.0, speed=0.0,
        )  # fmt: skip

    def batch(self, loss: float, accuracy: float, speed: float) -> None:
        """One more batch; the running figures of the epoch."""
        self._progress.update(self._task, advance=1, loss=loss, accuracy=accuracy, speed=speed)

    def summary(self, row: dict) -> None:
        """The line that stays when an epoch is over."""
        self._console.print(
            f"epoch {row['epoch']}/{self.epochs}  "
            f"train loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.2%}  "
            f"test loss {row['test_loss']:.4f}  accuracy {row['test_accuracy']:.2%}  "
            f"{row['samples_per_s']:.0f} samples/s",
            highlight=False,
            soft_wrap=True,
        )
