"""DataLoader: batches in an order that (seed, epoch) alone decide."""

import queue
import threading

import numpy as np


class DataLoader:
    """Iterates over batches (images float32 (N, C, H, W), labels int64 (N,)) of a dataset.

    The order of an epoch is a function of (seed, epoch), and the random numbers that `transform`
    gets, called as ``transform(images, rng)``, of (seed, epoch, batch index): a run that stops
    after any batch can be continued exactly, see `iter_from`. A background thread prepares up to
    `prefetch` batches ahead (0: none). Raises ValueError for a setting out of range.
    """

    def __init__(
        self, dataset, batch_size, shuffle=False, seed=0, drop_last=False, prefetch=2,
        transform=None,
    ):  # fmt: skip
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        if prefetch < 0:
            raise ValueError(f"prefetch must not be negative, got {prefetch}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.transform = transform
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, batch_index: int):
        """The epoch's batches from number `batch_index` on, as a full iteration gives them."""
        if not 0 <= batch_index <= len(self):
            raise ValueError(f"batch_index must lie in [0, {len(self)}], got {batch_index}")
        batches = self._batches(batch_index)
        return _ahead(batches, self.prefetch) if self.prefetch else batches

    def _random(self, *place):
        return np.random.Generator(np.random.PCG64([self.seed, self.epoch, *place]))

    def _batches(self, first):
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = self._random().permutation(order)
        for index in range(first, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images, labels = self._collect(chosen)
            if self.transform is not None:
                images = self.transform(images, self._random(index))
            yield images, labels

    def _collect(self, chosen):
        if hasattr(self.dataset, "batch"):
            return self.dataset.batch(chosen)
        images, labels = zip(*(self.dataset[int(i)] for i in chosen), strict=True)
        return np.stack(images).astype(np.float32, copy=False), np.asarray(labels, np.int64)


_END = object()


def _ahead(batches, depth):
    """Yield from `batches`, of which a thread prepares up to `depth` beforehand."""
    ready = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item):
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.05)
            except queue.Full:
                continue

    def work():
        try:
            for batch in batches:
                put((batch, None))
                if stopped.is_set():
                    return
            put((_END, None))
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put((_END, error))

    worker = threading.Thread(target=work, name="minidl-loader", daemon=True)
    worker.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is _END:
                return
            yield batch
    finally:
        stopped.set()
        worker.join()
