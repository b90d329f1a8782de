"""Sums of two arrays: what a shortcut adds, and how gradients of one tensor gather."""

import numpy as np

from kernels.geometry import check_dtypes, check_shape


def check_add(a, b, out=None):
    """Check the arguments of an `add`."""
    check_dtypes(a=a, b=b, out=out)
    check_shape("b", b.shape, a.shape)
    if out is not None:
        check_shape("out", out.shape, a.shape)


def add(a, b, out=None):
    """a + b, of one shape and dtype, float32 or float64.

    Written to `out`, which may be `a` itself, if one is given.
    Raises ValueError for two shapes, TypeError for two dtypes or others.
    """
    check_add(a, b, out)
    return np.add(a, b, out=out)
