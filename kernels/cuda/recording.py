"""What a function launches, recorded once as a CUDA graph and launched again as one piece.

    recording = Recording()
    result = recording.record(function, seed, step)     # nothing runs yet
    recording.launch(seed, step)                        # now the arrays of `result` hold it

Launching a kernel from Python takes longer than many kernels run; a graph of hundreds of them is
launched by a single call. It holds their arguments as they were: addresses of arrays, and numbers.
So all memory that is taken meanwhile comes from a pool of its own, which nobody else gets.

Masks of dropout follow (seed, step), which are numbers. Within a recording the kernels read them
from memory, that every launch writes first: a mask's step is given as its distance from the first.
"""

import gc
import weakref
from contextlib import suppress
from threading import local

import numpy as np

from kernels.cuda import runtime


class _Current(local):
    recording = None  # the one that goes on in this thread


_current = _Current()
_alive = weakref.WeakSet()
_left = []  # pools of recordings that are gone, of which some arrays are still in use


def is_recording() -> bool:
    """Whether what this thread launches is recorded: then it can wait for no result."""
    return _current.recording is not None


def mask_arguments(seed: int, step: int) -> tuple:
    """What the kernels of dropout take for the mask of (seed, step): where to read the first
    (seed, step) of a recording, or None, and two numbers.
    """
    recording = _current.recording
    if recording is not None and seed == recording.seed and step >= recording.step:
        return recording.start, np.uint64(seed), np.uint64(step - recording.step)
    return None, np.uint64(seed), np.uint64(step)


def held_bytes() -> int:
    """Memory of the GPU that recordings hold, besides CuPy's own pool."""
    return sum(recording.bytes for recording in _alive)


class Recording:
    """A CUDA graph and the memory it works in. See the top of this module."""

    def __init__(self):
        _free_left()
        self._pool = runtime.array_module().cuda.MemoryPool()
        self._graph = None
        self.start = runtime.zeros((2,), np.uint64)
        self.seed = self.step = 0

    def record(self, function, seed: int, step: int):
        """function(), whose first mask of dropout is that of (seed, step). Returns its result.

        An error within ends the recording, and goes on.
        """
        cupy = runtime.array_module()
        self.seed, self.step = seed, step
        gc.collect()  # not meanwhile: it might free another recording, for which the GPU waits
        cupy.get_default_memory_pool().free_all_blocks()  # runs before took as much as this one
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(self._pool.malloc), stream:
            stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
            _current.recording = self
            try:
                result = function()
            except BaseException:
                with suppress(Exception):  # CUDA's own word on what went wrong before
                    stream.end_capture()
                raise
            finally:
                _current.recording = None
            self._graph = stream.end_capture()
        _alive.add(self)
        return result

    def launch(self, seed: int, step: int) -> None:
        """Run what was recorded, with the masks of dropout from (seed, step) on."""
        numbers = np.uint64(seed), np.uint64(step)
        runtime.launch("dropout", "set_start", np.float32, 1, 1, (self.start, *numbers))
        self._graph.launch()

    @property
    def bytes(self) -> int:
        """Memory of the GPU that it holds."""
        return self._pool.total_bytes()

    def __del__(self):
        if (pool := self.__dict__.get("_pool")) is not None:
            self._graph = None
            _left.append(pool)
            _free_left()


def _free_left():
    """Give back what is not in use any more. A pool does not when it goes, but when it is told."""
    for pool in _left:
        pool.free_all_blocks()
    _left[:] = [pool for pool in _left if pool.used_bytes()]
