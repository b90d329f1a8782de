"""DataParallel: the team that a Trainer works in when several ranks share each batch."""

import numpy as np

from minidl.array_module import get_array_module
from minidl.distributed.gradients import DEFAULT_BUCKET_BYTES, GradientAverager
from minidl.evaluation import Running
from minidl.train import Alone


class DataParallel(Alone):
    """Every rank of `world` trains the same network on its part of each batch.

    The loss must be a mean over samples. Backward takes the gradient of its sum, divided by the
    size of the whole batch, and what all ranks have summed is corrected for samples that do not
    count: parts of unequal size weigh as they should, and gradients are as large as in one process,
    which matters where float16 must hold them.
    """

    def __init__(self, world, bucket_bytes: int = DEFAULT_BUCKET_BYTES):
        self.world = world
        self.rank, self.size = world.rank, world.size
        self.bucket_bytes = bucket_bytes
        self.samples = 0  # of this step that count, on this rank
        self.batch = 1
        self._averager = None

    def start(self, model) -> None:
        """Give all ranks the weights of rank 0; from here on gradients are averaged."""
        self.world.broadcast_state(model._state(), "the weights of rank 0")
        self._averager = GradientAverager(self.world, model.named_parameters(), self.bucket_bytes)

    def stop(self) -> None:
        """Leave the network's gradients alone from here on."""
        if self._averager is not None:
            self._averager.close()
            self._averager = None

    def begin(self, samples: int, batch: int) -> None:
        self.samples, self.batch = samples, batch
        self._averager.begin()

    def backward(self, loss) -> None:
        share = self.samples / self.batch
        loss.backward(get_array_module(loss._array).asarray(share, loss.dtype))

    def average(self, samples: int) -> None:
        self._averager.finish(samples / self.batch)

    def agree(self, usable: bool) -> bool:
        # Whether sums overflow may depend on their order, which MPI leaves to each rank.
        return self.world.all_agree(usable, "whether gradients are usable")

    def total(self, running: Running, stop: bool) -> tuple[Running, bool]:
        numbers = [running.loss_sum, running.correct, running.samples, running.top5, stop]
        sums = np.array(numbers, np.float64)
        self.world.sum(sums, "losses and counts")
        loss_sum, *counts, stop = sums.tolist()
        return Running(loss_sum, *map(int, counts)), stop > 0

    def share_buffers(self, model) -> None:
        self.world.broadcast_state(dict(model.named_buffers()), "the buffers of rank 0")
