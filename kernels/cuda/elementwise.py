"""Work element by element on the GPU; the definitions stand in kernels.reference.elementwise."""

import math

import numpy as np

from kernels.cuda import runtime
from kernels.geometry import check_dtypes, check_shape


def add(a, b):
    """See kernels.reference.add."""
    check_dtypes(a=a, b=b)
    check_shape("b", b.shape, a.shape)
    a, b = runtime.contiguous(a), runtime.contiguous(b)
    y = runtime.empty(a.shape, a.dtype)
    runtime.launch_elements("elementwise", "add", a.dtype, a.size, (a, b, y, a.size))
    return y


def affine_in_place(y, scale, shift, others, rectify) -> None:
    """What kernels.reference.conv2d_affine does to the convolution y, C-contiguous."""
    scale, shift = runtime.contiguous(scale), runtime.contiguous(shift)
    others = None if others is None else runtime.contiguous(others)
    planes, positions = y.shape[0] * y.shape[1], math.prod(y.shape[2:])
    args = (
        y, scale, shift, others, np.int32(bool(rectify)), *runtime.ints(y.shape[1], positions),
        planes,
    )  # fmt: skip
    runtime.launch_planes("elementwise", "affine", y.dtype, planes, positions, args)
