"""Sizes and shapes: one place that normalises, computes and checks them for every backend."""

import operator
from functools import lru_cache

import numpy as np

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]
Shape = tuple[int, ...]


def pair(name: str, value, minimum: int = 1) -> Pair:
    """(vertical, horizontal) from an int or two ints, each at least `minimum`.

    Raises TypeError for what is not an int or a sequence of ints, ValueError for another length
    or an int below the minimum; both name the argument.
    """
    numbers = _integers(name, value, minimum)
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2:
        raise ValueError(f"{name} must be an int or two ints, got {value!r}")
    return numbers


def padding4(name: str, value) -> Padding:
    """(top, bottom, left, right) from an int, (vertical, horizontal) or all four.

    Raises TypeError for what is not an int or a sequence of ints, ValueError for another length
    or a negative int; both name the argument.
    """
    numbers = _integers(name, value, 0)
    if len(numbers) == 1:
        numbers *= 4
    elif len(numbers) == 2:
        numbers = (numbers[0], numbers[0], numbers[1], numbers[1])
    if len(numbers) != 4:
        raise ValueError(
            f"{name} must be an int, (vertical, horizontal) or (top, bottom, left, right), "
            f"got {value!r}"
        )
    return numbers


def _integers(name: str, value, minimum: int) -> tuple[int, ...]:
    if type(value) is tuple and all([type(item) is int and item >= minimum for item in value]):
        return value
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    try:
        numbers = tuple(operator.index(item) for item in items)
    except TypeError:
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}") from None
    if any(isinstance(item, bool) for item in items):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")
    if any(number < minimum for number in numbers):
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return numbers


def conv_output_size(
    h: int, w: int, kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Pair:
    """(OH, OW) with OH = floor((h + top + bottom - dilation (k - 1) - 1) / stride) + 1.

    Raises ValueError where the dilated kernel is larger than the padded input. Source: Dumoulin
    and Visin, "A guide to convolution arithmetic for deep learning" (2016), relationship 15.
    """
    size = tuple(
        (room - reach) // step + 1
        for room, reach, step in _spans(h, w, kernel_size, stride, padding, dilation)
    )
    return _positive_size(size, h, w, kernel_size, padding, dilation)


def pool_output_size(
    h: int,
    w: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
) -> Pair:
    """(OH, OW) of a pooling: as `conv_output_size`, but rounded up in `ceil_mode`.

    Rounding up may add a last window, which is dropped again where it would start beyond the
    image and its padding before (PyTorch's and Caffe's rule), for it would see only padding. As the
    only window, it may also be larger than the whole padded image.

    Raises ValueError where a padding is over half of the kernel, or no window fits.
    """
    for axis, sides in ((0, padding[:2]), (1, padding[2:])):
        if 2 * max(sides) > kernel_size[axis]:
            raise ValueError(
                f"padding must be at most half of kernel_size {kernel_size}, got {padding}"
            )
    if not ceil_mode:
        return conv_output_size(h, w, kernel_size, stride, padding, dilation)
    size = []
    spans = _spans(h, w, kernel_size, stride, padding, dilation)
    for extent, before, (room, reach, step) in zip((h, w), padding[::2], spans, strict=True):
        windows = -((reach - room) // step) + 1
        if (windows - 1) * step >= extent + before:
            windows -= 1
        size.append(windows)
    return _positive_size(tuple(size), h, w, kernel_size, padding, dilation)


def _spans(h, w, kernel_size, stride, padding, dilation):
    """For each axis: the padded size, the dilated kernel's size and the stride."""
    for axis, extent in enumerate((h, w)):
        room = extent + padding[2 * axis] + padding[2 * axis + 1]
        yield room, dilation[axis] * (kernel_size[axis] - 1) + 1, stride[axis]


def _positive_size(size, h, w, kernel_size, padding, dilation) -> Pair:
    if min(size) < 1:
        raise ValueError(
            f"kernel_size {kernel_size} with dilation {dilation} does not fit into the "
            f"{h}x{w} input with padding {padding}: the output size would be {size}"
        )
    return size


def conv_transpose_output_size(
    h: int,
    w: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    dilation: Pair,
) -> Pair:
    """(OH, OW) with OH = (h - 1) stride - top - bottom + dilation (k - 1) + output_padding + 1.

    `output_padding` chooses among the `stride` sizes that a convolution maps to the same h.

    Raises ValueError where it is not below the stride, or the size would be below 1.
    """
    if not all(0 <= extra < step for extra, step in zip(output_padding, stride, strict=True)):
        raise ValueError(
            f"output_padding must be at least 0 and below stride {stride}, got {output_padding}"
        )
    size = tuple(
        (extent - 1) * stride[axis]
        - padding[2 * axis]
        - padding[2 * axis + 1]
        + dilation[axis] * (kernel_size[axis] - 1)
        + output_padding[axis]
        + 1
        for axis, extent in enumerate((h, w))
    )
    return _positive_size(size, h, w, kernel_size, padding, dilation)


def check_conv2d(x, weight, bias, stride, padding, dilation, groups) -> Shape:
    """The output's shape (N, O, OH, OW), after checking the arguments of a `conv2d`.

    Raises TypeError or ValueError naming the argument that does not fit; so do the next four.
    """
    check_dtypes(x=x, weight=weight, bias=bias)
    y_shape = _conv_shape(x.shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None:
        check_shape("bias", bias.shape, y_shape[1:2])
    return y_shape


def check_conv2d_affine(
    x, weight, scale, shift, others, stride, padding, dilation, groups
) -> Shape:
    """The output's shape (N, O, OH, OW), after checking the arguments of a `conv2d_affine`."""
    check_dtypes(x=x, weight=weight, scale=scale, shift=shift, others=others)
    y_shape = _conv_shape(x.shape, weight.shape, stride, padding, dilation, groups)
    if scale is not None:
        check_shape("scale", scale.shape, y_shape[1:2])
    check_shape("shift", shift.shape, y_shape[1:2])
    if others is not None:
        check_shape("others", others.shape, y_shape)
    return y_shape


def check_conv2d_input_grad(dy, weight, x_shape, stride, padding, dilation, groups) -> None:
    """Check the arguments of a `conv2d_input_grad`."""
    check_dtypes(dy=dy, weight=weight)
    y_shape = _conv_shape(x_shape, weight.shape, stride, padding, dilation, groups)
    check_shape("dy", dy.shape, y_shape)


def check_conv2d_weight_grad(dy, x, kernel_size, stride, padding, dilation, groups) -> Shape:
    """The weight's shape (O, C/groups, kh, kw), after checking a `conv2d_weight_grad`."""
    check_dtypes(dy=dy, x=x)
    _check_rank("dy", dy.shape)
    _check_rank("x", x.shape)
    _check_groups(groups, x.shape[1], dy.shape[1])
    weight_shape = (dy.shape[1], x.shape[1] // groups, *kernel_size)
    y_shape = _conv_shape(x.shape, weight_shape, stride, padding, dilation, groups)
    check_shape("dy", dy.shape, y_shape)
    return weight_shape


def check_conv_transpose2d(
    x, weight, bias, stride, padding, output_padding, dilation, groups
) -> Shape:
    """The output's shape (N, O, OH, OW), after checking the arguments of a `conv_transpose2d`."""
    check_dtypes(x=x, weight=weight, bias=bias)
    _check_rank("x", x.shape)
    _check_rank("weight", weight.shape)
    n, channels, h, w = x.shape
    weight_channels, group_outputs, *kernel_size = weight.shape
    if weight_channels != channels:
        raise ValueError(
            f"weight must have x's {channels} channels on axis 0, got shape {weight.shape}"
        )
    outputs = group_outputs * groups
    _check_groups(groups, channels, outputs)
    if bias is not None:
        check_shape("bias", bias.shape, (outputs,))
    size = conv_transpose_output_size(
        h, w, tuple(kernel_size), stride, padding, output_padding, dilation
    )
    return (n, outputs, *size)


@lru_cache(maxsize=1024)
def _conv_shape(x_shape, weight_shape, stride, padding, dilation, groups) -> Shape:
    """The shape (N, O, OH, OW), known from the last step where a network computes the same again.

    Raises as the functions above.
    """
    _check_rank("x", x_shape)
    _check_rank("weight", weight_shape)
    n, channels, h, w = x_shape
    outputs, group_channels, *kernel_size = weight_shape
    _check_groups(groups, channels, outputs)
    if group_channels * groups != channels:
        raise ValueError(
            f"weight must have x's {channels} channels / {groups} groups = {channels // groups} "
            f"channels on axis 1, got shape {weight_shape}"
        )
    size = conv_output_size(h, w, tuple(kernel_size), stride, padding, dilation)
    return (n, outputs, *size)


def check_matmul(a_shape: Shape, b_shape: Shape) -> Shape:
    """The shape of the product. ValueError unless (..., M, K) and (..., K, N) fit and broadcast."""
    if len(a_shape) < 2 or len(b_shape) < 2 or a_shape[-1] != b_shape[-2]:
        raise ValueError(
            f"a and b must be (..., M, K) and (..., K, N), got {a_shape} and {b_shape}"
        )
    try:
        stack = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    except ValueError:
        message = f"the stacks a and b must broadcast, got {a_shape} and {b_shape}"
        raise ValueError(message) from None
    return (*stack, a_shape[-2], b_shape[-1])


def check_channels(x) -> None:
    """TypeError unless x is float32 or float64, ValueError unless it is (N, C, ...)."""
    check_dtypes(x=x)
    if x.ndim < 2:
        raise ValueError(f"x must be (N, C, ...), got shape {x.shape}")


def check_shape(name: str, shape: Shape, expected: Shape) -> None:
    """ValueError naming the argument unless its shape is the expected one."""
    if shape != expected and tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(shape)}")


def check_dtypes(**arrays) -> None:
    """TypeError unless all arrays (None is skipped) share one dtype, float32 or float64."""
    first = None
    for array in arrays.values():
        if array is None:
            continue
        first = array.dtype if first is None else first
        if array.dtype.char not in "fd" or array.dtype != first:
            break
    else:
        return
    named = {name: array.dtype for name, array in arrays.items() if array is not None}
    for name, dtype in named.items():
        if dtype.char not in "fd":
            raise TypeError(f"{name} must be float32 or float64, got {dtype}")
    listed = ", ".join(f"{name} {dtype}" for name, dtype in named.items())
    raise TypeError(f"arrays must share one dtype, got {listed}")


def _check_rank(name: str, shape: Shape) -> None:
    if len(shape) != 4:
        raise ValueError(f"{name} must have 4 axes, got shape {tuple(shape)}")


def _check_groups(groups: int, channels: int, outputs: int) -> None:
    if groups < 1 or channels % groups or outputs % groups:
        raise ValueError(
            f"groups must divide the {channels} input and {outputs} output channels, got {groups}"
        )
