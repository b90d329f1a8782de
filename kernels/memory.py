"""The memory that results of CPU kernels are made on: kernels.cpu.workspace has the buffers."""

import numpy as np


class Memory(np.ndarray):
    """Bytes of a buffer that nobody has but the pool of buffers and the arrays made on it.

    A class of its own, so that the engine knows a result on such a buffer from a view of memory
    that somebody else may hold.
    """


def fills_a_buffer(array: np.ndarray) -> bool:
    """Whether an array takes all of a pool's buffer, alone."""
    base = array.base
    return (
        isinstance(base, np.ndarray)
        and isinstance(getattr(base.base, "obj", None), Memory)
        and base.nbytes == array.nbytes
        and array.flags.forc  # not one element many times
    )
