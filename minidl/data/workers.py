"""Processes that compute results ahead, in order: the loader's way around the interpreter lock.

Every worker has a socket of its own. Tasks go out and results come back in turn, so that no lock is
shared and a killed worker can block nobody: its socket ends, which the consumer sees at once, as
a worker sees the end of its parent. The arrays of a result travel in anonymous shared memory, of
which only the handle goes through the socket: a worker need not wait until it is read, and a batch
of 19 MB costs the consumer 8 ms of work where pickles through the socket cost 26.
"""

import contextlib
import os
import pickle
import signal
import tempfile
import traceback
import weakref
from itertools import islice
from multiprocessing import get_context, reduction, resource_tracker

import numpy as np

# So many short answers find room in a socket even if nobody reads them: a worker always comes back
# to read its tasks, and the two ends never wait for each other.
_MOST_AHEAD = 32
_GRACE = 5  # seconds in which a process whose socket has closed must have ended
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


class LostWorker(RuntimeError):
    """A worker process has died or cannot be reached."""


class WorkerPool:
    """`count` processes that hold `function`, a picklable callable of one argument.

    They are spawned, never forked: the threads of BLAS and Numba do not survive a fork. They live
    until `close`, the end of `map` before its last result, or the collection of the pool. Raises
    TypeError where `function` cannot be pickled.
    """

    def __init__(self, function, count: int):
        try:
            payload = _dump(function)
        except Exception as error:  # whatever a __reduce__ raises
            raise TypeError(
                f"worker processes need a data set and a transform that can be pickled (no lambda, "
                f"no local function or class), or workers=0: {error}"
            ) from error
        context = get_context("spawn")
        self._workers = []
        self._finalizer = weakref.finalize(self, _end, self._workers, os.getpid())
        with _quiet_start():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), daemon=True,
                                          name="minidl-loader")  # fmt: skip
                process.start()
                theirs.close()  # only the worker holds that end now: its death closes it
                self._workers.append((process, ours))
        for worker in self._workers:
            self._send(worker, payload)

    def map(self, tasks, ahead: int):
        """Yield function(task) for every task in order; each worker is up to `ahead` before.

        `ahead` counts up to 32. What a worker raises is raised here, its traceback as a note;
        LostWorker where a worker has died, RuntimeError where the pool is closed. Whatever ends the
        iteration early closes it.
        """
        if not self._workers:
            raise RuntimeError("the pool of workers is closed")
        ahead = min(ahead, _MOST_AHEAD)
        tasks = iter(tasks)
        turn = 0  # results taken; the worker of that turn gets the next task
        waiting = 0
        completed = False
        try:
            for task in islice(tasks, ahead * len(self._workers)):
                self._send(self._workers[waiting % len(self._workers)], _dump(task))
                waiting += 1
            while waiting:
                worker = self._workers[turn % len(self._workers)]
                result = self._receive(worker)
                turn += 1
                waiting -= 1
                for task in islice(tasks, 1):
                    self._send(worker, _dump(task))
                    waiting += 1
                yield result
            completed = True
        finally:
            if not completed:
                self.close()

    def close(self) -> None:
        """End the processes; they are gone when this returns."""
        self._finalizer()

    def _send(self, worker, payload):
        try:
            worker[1].send_bytes(payload)
        except OSError as error:
            raise _lost(worker[0], error) from None

    def _receive(self, worker):
        try:
            failed, sizes = worker[1].recv()
            data, *buffers = _read(reduction.recv_handle(worker[1]), sizes)
        except (EOFError, OSError) as error:
            raise _lost(worker[0], error) from None
        if failed:
            raise pickle.loads(data)
        return pickle.loads(data, buffers=buffers)


def _lost(process, error):
    """What to raise where a worker's socket fails: mostly since the worker has died."""
    process.join(_GRACE)
    code = process.exitcode
    if code is None:
        return LostWorker(f"cannot reach the data loader's worker {process.pid}: {error}")
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return LostWorker(
        f"a worker process of the data loader (pid {process.pid}) ended {how}. Killed for memory: "
        "take fewer workers, or less prefetch; otherwise its own message stands above. (A script "
        "that starts workers needs: if __name__ == '__main__')"
    )


def _end(workers, owner):
    if os.getpid() != owner:
        return  # a forked copy of the owner: the workers are not its to end
    for process, connection in workers:
        connection.close()
        process.kill()  # it holds nothing that needs an orderly end
    for process, _ in workers:
        process.join()
        process.close()
    workers.clear()


@contextlib.contextmanager
def _quiet_start():
    """Start processes within this: with one thread each, and deaf to Ctrl-C from their first line.

    Both are inherited. The variables must stand before NumPy loads; Ctrl-C reaches a whole group of
    processes, of which the parent alone decides.
    """
    resource_tracker.ensure_running()  # its own start would lift the block below
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# -- within a worker -------------------------------------------------------------------------------


def _work(connection):
    """Answer task after task until the parent closes its end, by intent or by dying."""
    with contextlib.suppress(EOFError, OSError):
        payload = connection.recv_bytes()
        while True:
            task = connection.recv_bytes()
            try:
                if payload is not None:
                    function, payload = pickle.loads(payload), None
                failed, parts = False, _parts(function(pickle.loads(task)))
                file = _written(parts)
            except Exception as error:
                failed, parts = True, [memoryview(_pickled_error(error))]
                file = _written(parts)
            with file:
                connection.send((failed, [part.nbytes for part in parts]))
                reduction.send_handle(connection, file.fileno(), None)


def _pickled_error(error):
    error.add_note("In a worker process of the data loader:\n" + traceback.format_exc())
    try:
        data = _dump(error)
        pickle.loads(data)  # some exceptions come apart only here
        return data
    except Exception:
        return _dump(RuntimeError(f"{type(error).__name__}: {error}"))


# -- results in shared memory ----------------------------------------------------------------------


def _dump(value, **options):
    return pickle.dumps(value, protocol=5, **options)


def _parts(result):
    """The pickle of a result without the memory of its arrays, then that memory, as bytes."""
    buffers = []
    data = _dump(result, buffer_callback=buffers.append)
    return [memoryview(data), *(buffer.raw() for buffer in buffers)]


def _written(parts):
    """An open file that holds `parts` one after the other.

    It has no name, and lies in memory where the system can: nothing stays behind if all die.
    """
    if hasattr(os, "memfd_create"):
        file = open(os.memfd_create("minidl-batch"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)
    for part in parts:
        while part:
            part = part[file.write(part) :]
    return file


def _read(handle, sizes):
    """The parts in a file, copied: mapped instead, every array kept would keep a file open."""
    with open(handle, "rb", buffering=0) as file:
        file.seek(0)
        parts = [np.empty(size, np.uint8) for size in sizes]
        for part in parts:
            rest = memoryview(part)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise EOFError("a result is shorter than announced")
                rest = rest[count:]
    return parts
