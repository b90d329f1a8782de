"""Pooling. ONNX pads up to the kernel's size, minidl up to its half: more is padded beforehand."""

import numpy as np

from minidl import ops
from minidl.array_module import get_array_module, to_device
from minidl.onnx.operators.convolution import Window
from minidl.onnx.operators.registry import check_images, operator
from minidl.tensor import Tensor


def _window(node) -> Window:
    """A pooling's attributes; OnnxError for padding that would hide whole windows."""
    window = Window.read(node)
    for axis, size in enumerate(window.kernel_shape):
        if max(window.pads[2 * axis : 2 * axis + 2]) >= size:
            top, bottom, left, right = window.pads
            raise node.error(
                f"pads must be below kernel_shape {window.kernel_shape}, "
                f"got {[top, left, bottom, right]}"
            )
    return window


def _overhang(window, plane, padding, ceil_mode):
    """How far the last windows of `ceil_mode` reach beyond the padded plane, an axis each.

    A window that would start in the padding after the plane does not count (ONNX since opset 22,
    and ONNX Runtime always), as in minidl.
    """
    beyond = [0, 0]
    if not ceil_mode:
        return tuple(beyond)
    reaches = window.reach(window.kernel_shape)
    for axis, (size, reach, step) in enumerate(zip(plane, reaches, window.strides, strict=True)):
        before, after = padding[2 * axis : 2 * axis + 2]
        room = size + before + after
        last = -((reach - room) // step)
        if last * step >= size + before:
            last -= 1
        beyond[axis] = max(last * step + reach - room, 0)
    return tuple(beyond)


def _fits(window, padding):
    """Whether minidl's own padding, at most half of the kernel, will do."""
    sides = zip(padding, (k for k in window.kernel_shape for _ in (0, 1)), strict=True)
    return all(2 * side <= k for side, k in sides)


def _padded(x, padding, beyond, value=0.0):
    top, bottom, left, right = padding
    sides = ((0, 0), (0, 0), (top, bottom + beyond[0]), (left, right + beyond[1]))
    return ops.pad(x, sides, value)


@operator("MaxPool")
def max_pool(node):
    """The largest element of each window, and its index in the whole of x."""
    window = _window(node)
    ceil_mode = node.flag("ceil_mode")
    column_major = node.flag("storage_order")
    wants_indices = node.uses_output(1)

    def run(x):
        check_images(x)
        padding = window.padding(x.shape[2:], window.kernel_shape)
        settings = (window.kernel_shape, window.strides)
        if _fits(window, padding):
            y, switches = ops.max_pool2d(
                x, *settings, padding, window.dilations, ceil_mode, return_switches=True
            )
            return (y, _indices(switches, x, x.shape[3], (0, 0))) if wants_indices else y
        beyond = _overhang(window, x.shape[2:], padding, ceil_mode)
        padded = _padded(x, padding, beyond, -np.inf)
        y, switches = ops.max_pool2d(
            padded, *settings, dilation=window.dilations, return_switches=True
        )
        if not wants_indices:
            return y
        return y, _indices(switches, x, padded.shape[3], (padding[0], padding[2]))

    def _indices(switches, x, width, before):
        """Flat indices into x, counted from switches into planes of this width."""
        xp = get_array_module(switches._array)
        n, c, h, w = x.shape
        rows, columns = xp.divmod(switches._array.astype(np.int64), width)
        rows, columns = rows - before[0], columns - before[1]
        in_plane = columns * h + rows if column_major else rows * w + columns
        return Tensor(xp.arange(n * c).reshape(n, c, 1, 1) * (h * w) + in_plane)

    return run


@operator("AveragePool")
def average_pool(node):
    """The mean of each window, over its real pixels or, with count_include_pad, padding too."""
    window = _window(node)
    ceil_mode = node.flag("ceil_mode")
    include_pad = node.flag("count_include_pad")

    def run(x):
        check_images(x)
        kernel = window.kernel_shape
        padding = window.padding(x.shape[2:], kernel)
        if window.dilations == (1, 1) and _fits(window, padding):
            return ops.avg_pool2d(x, kernel, window.strides, padding, ceil_mode, include_pad)
        beyond = _overhang(window, x.shape[2:], padding, ceil_mode)
        padded = _padded(x, padding, beyond)
        # The sum of each window is a convolution with ones, one kernel a channel.
        ones = Tensor(np.ones((x.shape[1], 1, *kernel), x.dtype)).to(x.device)
        total = ops.conv2d(padded, ones, None, window.strides, 0, window.dilations, x.shape[1])
        counts = _counts(window, x.shape[2:], padding, total.shape[2:], include_pad)
        return total * Tensor(to_device((1 / counts).astype(x.dtype), x.device))

    return run


def _counts(window, plane, padding, outputs, include_pad):
    """(OH, OW): how many pixels each mean is taken over, at least 1."""
    factors = []
    for axis, (size, count) in enumerate(zip(plane, outputs, strict=True)):
        before, after = padding[2 * axis : 2 * axis + 2]
        taps = np.arange(window.kernel_shape[axis]) * window.dilations[axis]
        pixels = np.arange(count)[:, None] * window.strides[axis] - before + taps
        low, high = (-before, size + after) if include_pad else (0, size)
        factors.append(((pixels >= low) & (pixels < high)).sum(axis=1))
    return np.maximum(np.outer(*factors), 1)


@operator("GlobalAveragePool")
def global_average_pool(node):
    """The mean of each plane."""

    def run(x):
        check_images(x)
        return ops.global_avg_pool2d(x)

    return run
