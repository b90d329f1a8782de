"""DataLoader: batches in an order that (seed, epoch) alone decide."""

import queue
import threading
from contextlib import closing

import numpy as np


class DataLoader:
    """Iterates over batches (images float32 (N, C, H, W), labels int64 (N,)) of a dataset.

    The order of an epoch is a function of (seed, epoch), and the random numbers that `transform`
    gets, called as ``transform(images, rng)``, of (seed, epoch, batch index): a run that stops
    after any batch can be continued exactly, see `iter_from`, and the number of workers changes
    nothing.

    With ``workers=0`` a background thread prepares up to `prefetch` batches ahead (0: none). With
    more, so many processes prepare whole batches, each up to `prefetch` ahead (1 to 32). They
    start with the first batch, hold copies of the dataset and of the transform, which must be
    picklable, and stay for the next epoch until `close`, or until the loader is collected; an
    iteration that is given up ends them. They have one thread each and do not load Numba.

    ``shard=(rank, size)`` gives rank's part of every batch only: what `size` loaders of the same
    seed give together are the batches of one loader without. Parts are contiguous, and their sizes
    differ by one at most. All ranks have as many batches: one whose part is empty, of a batch
    smaller than `size` or of unreadable items, is given another sample of that batch, and `counted`
    is False. `transform` draws numbers of its own on every rank.

    A dataset has `__len__` and either ``batch(indices)``, which gives images (an array, or a list
    where sizes differ) and labels, or ``[index]``. It may leave out items that cannot be read (see
    ImageFolder): a batch then has fewer, and one without any is not given. Raises ValueError for a
    setting out of range.
    """

    def __init__(
        self, dataset, batch_size, shuffle=False, seed=0, drop_last=False, prefetch=2,
        transform=None, workers=0, shard=(0, 1),
    ):  # fmt: skip
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        if prefetch < 0:
            raise ValueError(f"prefetch must not be negative, got {prefetch}")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers must be an integer of at least 0, got {workers!r}")
        rank, size = shard
        if not 0 <= rank < size:
            raise ValueError(f"shard must be (rank, size) with 0 <= rank < size, got {shard}")
        if batch_size < size:
            raise ValueError(f"batch_size must be at least {size}, one a rank, got {batch_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.transform = transform
        self.workers = workers
        self.shard = shard
        self.epoch = 0
        self.position = 0
        self.counted = True  # whether the batch last given is to count
        self._pool = None  # between two iterations: the idle workers, and what they hold
        self._held = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self):
        return self.iter_from(0)

    def iter_from(self, batch_index: int):
        """The epoch's batches from number `batch_index` on, as a full iteration gives them.

        A batch that is not given because none of its items can be read has its number, too:
        `position` is the number to go on from after the batch last given.
        """
        if not 0 <= batch_index <= len(self):
            raise ValueError(f"batch_index must lie in [0, {len(self)}], got {batch_index}")
        return self._iterate(self._tasks(batch_index), batch_index)

    @property
    def whole(self) -> int:
        """Items of the batch last given: those of all ranks together, and unreadable ones too."""
        return min(self.batch_size, len(self.dataset) - (self.position - 1) * self.batch_size)

    def close(self) -> None:
        """End the worker processes; a later iteration starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _tasks(self, first):
        """What `_BatchMaker` needs to know of each batch."""
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = _random(self.seed, self.epoch).permutation(order)
        tasks = []
        for index in range(first, len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            rank, size = self.shard
            place = (self.seed, self.epoch, index, *([rank] if size > 1 else ()))
            tasks.append((place, batch[shard_slice(len(batch), rank, size)], batch))
        return tasks

    def _iterate(self, tasks, first):
        results = self._from_workers(tasks) if self.workers else self._from_here(tasks)
        with closing(results):
            for number, (images, labels, counted, skipped) in enumerate(results, first):
                if skipped:
                    self.dataset.note_skipped(skipped)
                if len(labels):
                    self.position = number + 1
                    self.counted = counted
                    yield images, labels
        if hasattr(self.dataset, "warn_skipped"):
            self.dataset.warn_skipped()

    def _from_here(self, tasks):
        make = _BatchMaker(self.dataset, self.transform)
        results = (make(task) for task in tasks)
        return _ahead(results, self.prefetch) if self.prefetch else results

    def _from_workers(self, tasks):
        from minidl.data.workers import WorkerPool

        # The iteration owns its workers: a second one at the same time gets others.
        pool, self._pool = self._pool, None
        held = self.dataset, self.transform, self.workers
        if pool is not None and any(a is not b for a, b in zip(held, self._held, strict=True)):
            pool.close()
            pool = None
        if pool is None:
            pool = WorkerPool(_BatchMaker(self.dataset, self.transform), self.workers)
        with closing(pool.map(tasks, max(self.prefetch, 1))) as results:
            yield from results
        self.close()
        self._pool, self._held = pool, held


def shard_slice(count: int, rank: int, size: int) -> slice:
    """Which of `count` items are the part of `rank`, among `size` parts as equal as can be."""
    return slice(count * rank // size, count * (rank + 1) // size)


def _random(*place):
    return np.random.Generator(np.random.PCG64(list(place)))


class _BatchMaker:
    """Makes a loader's part of a batch from the batch's place (seed, epoch, batch index, and rank
    where there are several), the indices of the part's items, and those of the whole batch.
    """

    def __init__(self, dataset, transform):
        self.dataset = dataset
        self.transform = transform

    def __call__(self, task):
        """(images, labels, whether they count, the items newly found to be unreadable)."""
        place, part, batch = task
        known = len(getattr(self.dataset, "skipped", ()))
        images, labels = self._collect(part) if len(part) else ((), ())
        counted = len(labels) > 0
        if not counted and len(part) < len(batch):
            images, labels = self._stand_in(batch)
        if self.transform is not None and len(labels):
            images = self.transform(images, _random(*place))
        return images, labels, counted, list(getattr(self.dataset, "skipped", ()))[known:]

    def _stand_in(self, batch):
        """The first item of a batch that can be read; without any, the batch is no rank's."""
        for index in batch:
            images, labels = self._collect(batch[batch == index])
            if len(labels):
                return images, labels
        return (), ()

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
