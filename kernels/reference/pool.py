"""Pooling: the largest element or the mean of each window of a plane.

Window (v, u) of a plane has the **taps** (i, j), one for each kernel position, at the pixels

    r = v s + i d - top,    c = u s + j d - left        (stride s, dilation d),

of which those outside of the image are padding. With *real* for the taps inside of it:

    max-pool    y[v, u] = max of x over the real taps
    avg-pool    y[v, u] = (sum of x over the real taps) / count[v, u]

**Max-pool** also returns its **switches**: the flat index r W + c of each winner, the first in
row-major order among equals; NaN wins over any number, the first NaN over others. With the
switches known it is linear, a *gather* y = x[switches], whose transpose, the *scatter*
x[switches] += y, is both its gradient and the unpooling of Zeiler and Fergus.

**Avg-pool** is linear as it stands. Its count is separable, rows times columns: of the real taps
alone, or, with `count_include_pad`, of the window clipped to the padded image (PyTorch's rule;
only a last window of `ceil_mode` reaches beyond that).

Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
recognition" (1998), section II.B; Zeiler and Fergus, "Visualizing and understanding convolutional
networks" (2014), section 2.1; Lin, Chen and Yan, "Network in network" (2014), section 3.2.
"""

import numpy as np

from kernels.geometry import check_dtypes, check_shape, pool_output_size


def check_images(name, array):
    """TypeError or ValueError unless the array is float (N, C, H, W) with pixels in its planes."""
    check_dtypes(**{name: array})
    if array.ndim != 4 or 0 in array.shape[2:]:
        raise ValueError(
            f"{name} must have shape (N, C, H, W) with H and W at least 1, got {array.shape}"
        )


def check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode):
    """The output's shape (N, C, OH, OW), after checking the arguments of a `max_pool2d`."""
    check_images("x", x)
    n, c, *plane = x.shape
    size = pool_output_size(*plane, kernel_size, stride, padding, dilation, ceil_mode)
    if dilation == (1, 1):
        return (n, c, *size)
    for axis, extent in enumerate(plane):
        starts = np.arange(size[axis]) * stride[axis] - padding[2 * axis]
        first_real = np.where(starts < 0, starts % dilation[axis], starts)
        if first_real.max() >= extent:
            raise ValueError(
                f"dilation {dilation} makes a window of kernel_size {kernel_size} step over the "
                f"{plane[0]}x{plane[1]} image, from padding {padding} to padding"
            )
    return (n, c, *size)


def check_switches(switches, shape):
    """TypeError or ValueError unless the switches are int32 of this shape."""
    if switches.dtype != np.int32:
        raise TypeError(f"switches must be int32, got {switches.dtype}")
    check_shape("switches", switches.shape, shape)


def check_max_pool2d_backward(dy, switches, x_shape):
    """Check the arguments of a `max_pool2d_backward`."""
    check_images("dy", dy)
    check_switches(switches, dy.shape)
    check_shape("dy", dy.shape, (*x_shape[:2], *dy.shape[2:]))


def check_switch_range(switches, plane_shape):
    """ValueError unless each switch is the flat index of a pixel of the plane."""
    pixels = plane_shape[0] * plane_shape[1]
    if switches.size and not (0 <= switches.min() and switches.max() < pixels):
        raise ValueError(
            f"switches must lie in [0, {pixels}) for a plane of shape {tuple(plane_shape)}, "
            f"got {switches.min()} to {switches.max()}"
        )


def check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode):
    """Check the arguments of an `avg_pool2d_backward`."""
    check_images("dy", dy)
    n, c, h, w = x_shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    check_shape("dy", dy.shape, (n, c, *size))


def _axis_taps(extent, outputs, size, stride, before, dilation):
    """For every tap of one axis: the outputs for which it is real, and its pixels, as slices."""
    for tap in range(size):
        offset = tap * dilation - before
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (extent - 1 - offset) // stride)
        if first <= last:
            pixels = slice(first * stride + offset, last * stride + offset + 1, stride)
            yield slice(first, last + 1), pixels


def _taps(x_shape, y_shape, kernel_size, stride, padding, dilation=(1, 1)):
    """For every tap in row-major order: the outputs for which it is real, and its pixels."""
    rows, columns = (
        list(
            _axis_taps(
                x_shape[2 + axis],
                y_shape[2 + axis],
                kernel_size[axis],
                stride[axis],
                padding[2 * axis],
                dilation[axis],
            )
        )
        for axis in (0, 1)
    )
    for v, r in rows:
        for u, c in columns:
            yield (..., v, u), (..., r, c)


def max_pool2d(x, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=False):
    """(y, switches): the winners of x (N, C, H, W) and their indices (int32), both (N, C, OH, OW).

    Ties go to the first in row-major order, NaN wins, padding is never chosen. Raises TypeError
    for other dtypes than float32 and float64, ValueError where no window fits, where the padding
    is over half of the kernel, or where a window has no real tap.
    """
    y_shape = check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.empty(y_shape, x.dtype)
    switches = np.full(y_shape, -1, np.int32)
    index = np.arange(x.shape[2] * x.shape[3], dtype=np.int32).reshape(x.shape[2:])
    for outputs, pixels in _taps(x.shape, y_shape, kernel_size, stride, padding, dilation):
        candidate, best, switch = x[pixels], y[outputs], switches[outputs]
        first_nan = np.isnan(candidate) & ~np.isnan(best)
        wins = (switch < 0) | (candidate > best) | first_nan
        np.copyto(best, candidate, where=wins)
        np.copyto(switch, index[pixels], where=wins)
    return y, switches


def max_pool2d_backward(
    dy, switches, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1)
):
    """The gradient of `max_pool2d` by an x (N, C, H, W) of x_shape: dy, added at the switches.

    The switches are those that `max_pool2d` returned for these settings, which tell in what
    windows each pixel lies: what they do for a pixel outside of its window is not defined. Raises
    TypeError for other dtypes, ValueError where the shapes of dy and the switches do not fit.
    """
    check_max_pool2d_backward(dy, switches, x_shape)
    return max_unpool2d(dy, switches, x_shape[2:])


def max_unpool2d(y, switches, plane_shape):
    """x (N, C, *plane_shape), zero but for y (N, C, OH, OW), added at its switches (int32).

    Elements that share a switch are summed: the transpose of `max_pool2d_gather`. Raises TypeError
    for other dtypes, ValueError where the switches have another shape than y or lie outside of the
    plane.
    """
    check_images("y", y)
    check_switches(switches, y.shape)
    check_switch_range(switches, plane_shape)
    n, c, oh, ow = y.shape
    x = np.zeros((n * c, plane_shape[0] * plane_shape[1]), y.dtype)
    planes = np.arange(n * c)[:, None]
    np.add.at(x, (planes, switches.reshape(n * c, oh * ow)), y.reshape(n * c, oh * ow))
    return x.reshape(n, c, *plane_shape)


def max_pool2d_gather(x, switches):
    """y (N, C, OH, OW), the elements of x (N, C, H, W) at the switches (int32). Raises likewise."""
    check_images("x", x)
    n, c, h, w = x.shape
    check_switches(switches, (n, c, *switches.shape[2:]))
    check_switch_range(switches, (h, w))
    flat = switches.reshape(n, c, -1) if switches.size else np.empty((n, c, 0), np.int32)
    return np.take_along_axis(x.reshape(n, c, h * w), flat, axis=2).reshape(switches.shape)


def window_counts(x_shape, y_shape, kernel_size, stride, padding, count_include_pad):
    """The factors rows (OH,) and columns (OW,), float64, of the counts that divide an avg-pool."""
    factors = []
    for axis in (0, 1):
        extent = x_shape[2 + axis]
        before, after = padding[2 * axis : 2 * axis + 2]
        start = np.arange(y_shape[2 + axis]) * stride[axis] - before
        stop = start + kernel_size[axis]
        if count_include_pad:
            count = np.minimum(stop, extent + after) - start
        else:
            count = np.minimum(stop, extent) - np.maximum(start, 0)
        factors.append(count.astype(np.float64))
    return factors


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """y = sum / count: x (N, C, H, W) -> (N, C, OH, OW), summed in float64.

    Raises TypeError for other dtypes than float32 and float64, ValueError where no window fits or
    the padding is over half of the kernel.
    """
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    y = np.zeros((n, c, *size))
    for outputs, pixels in _taps(x.shape, y.shape, kernel_size, stride, padding):
        y[outputs] += x[pixels]
    y /= np.outer(
        *window_counts(x.shape, y.shape, kernel_size, stride, padding, count_include_pad)
    )
    return y.astype(x.dtype)


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """The transpose of `avg_pool2d`: dy (N, C, OH, OW) -> dx of x_shape, summed in float64.

    Raises as `avg_pool2d`, and ValueError for another shape of dy.
    """
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    share = dy / np.outer(
        *window_counts(x_shape, dy.shape, kernel_size, stride, padding, count_include_pad)
    )
    dx = np.zeros(x_shape)
    for outputs, pixels in _taps(x_shape, dy.shape, kernel_size, stride, padding):
        dx[pixels] += share[outputs]
    return dx.astype(dy.dtype)


def global_avg_pool2d(x):
    """The mean of each plane, summed in float64: x (N, C, H, W) -> (N, C, 1, 1)."""
    check_images("x", x)
    return x.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(x.dtype)


def global_avg_pool2d_backward(dy, x_shape):
    """The transpose of `global_avg_pool2d`: dy (N, C, 1, 1), spread evenly over planes (H, W)."""
    check_images("dy", dy)
    n, c, h, w = x_shape
    check_shape("dy", dy.shape, (n, c, 1, 1))
    return np.broadcast_to(dy / dy.dtype.type(h * w), x_shape).copy()
