"""Dropout on the GPU: the mask of the CPU, bit by bit.

The definition of the mask stands in kernels.reference.dropout.
"""

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.recording import mask_arguments
from kernels.geometry import check_dtypes
from kernels.reference.dropout import check_dropout, drop_below

# Elements that share a block of random words, and a thread.
_BLOCK = 4


def dropout_mask(shape, p, seed, step):
    """See kernels.reference.dropout_mask."""
    check_dropout(p, seed, step)
    kept = runtime.empty(shape, np.bool_)
    size = kept.size
    args = (kept, drop_below(p), *mask_arguments(seed, step), size)
    threads = runtime.blocks(size, _BLOCK)
    runtime.launch_elements("dropout", "dropout_mask", np.float32, threads, args)
    return kept


def dropout(x, p, seed, step):
    """See kernels.reference.dropout."""
    check_dtypes(x=x)
    check_dropout(p, seed, step)
    x = runtime.contiguous(x)
    y = runtime.empty(x.shape, x.dtype)
    args = (x, y, float(1 / (1 - p)), drop_below(p), *mask_arguments(seed, step), x.size)
    threads = runtime.blocks(x.size, _BLOCK)
    runtime.launch_elements("dropout", "dropout", x.dtype, threads, args)
    return y
