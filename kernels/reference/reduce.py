"""Sums over all axes but that of the channels: the gradient of a bias."""

from kernels.geometry import check_channels


def channel_sums(x):
    """(C,) from x (N, C, ...): the sum over images and positions.

    Raises TypeError unless x is float32 or float64, ValueError for fewer than two axes.
    """
    check_channels(x)
    return x.sum(axis=(0, *range(2, x.ndim)))
