"""Convolution on the GPU; the definition and the algebra stand in kernels.reference.conv.

There are three ways to the same sums:

* **products by cuBLAS**: the columns of im2col go to memory, a stretch of positions at a time that
  fits a workspace, and cuBLAS multiplies them. A 1x1 kernel needs no columns: the images are them;
* **products of our own** (conv.cu): the matrices are read out of the images as they are needed. The
  columns, which are kh kw times as large as the images, are never in memory;
* **products on tensor cores** (conv_tf32.cu): the same for operands that may be rounded to TF32.

A column that only a few outputs read costs more to write and to read back than to multiply. Groups
of few channels also make products too thin for cuBLAS, and every one is a launch of its own.
`_by_cublas` chooses by that; `dispatch.products` can force either. In TF32's precision the third
way is the fastest, for all that it takes (`conv_tf32.takes`).

Sums over many images are cut into parts that are added up in a fixed order, in float64: the same
operands give the same gradient, to the last bit.
"""

import math
from dataclasses import dataclass

import numpy as np

from kernels.cuda import conv_tf32, runtime
from kernels.cuda.activation import affine_in_place
from kernels.cuda.matmul import TILE, TILE_THREADS
from kernels.dispatch import products_choice
from kernels.geometry import (
    check_conv2d,
    check_conv2d_affine,
    check_conv2d_input_grad,
    check_conv2d_weight_grad,
    check_conv_transpose2d,
    check_shape,
    conv_output_size,
)

# Columns, and the products made of them, may take this much memory at a time.
WORKSPACE_BYTES = 128 << 20
# cuBLAS multiplies where a group has as many outputs and taps, and there are no more groups.
MIN_SIDE = 32
MAX_GROUPS = 4
# Positions that a part of a weight gradient sums: at most so many in float32, at least so many to
# be worth a block; enough parts to occupy a GPU, and no more memory for all of them than this.
MOST_POSITIONS, FEWEST_POSITIONS = 4096, 512
ENOUGH_BLOCKS = 512
PARTS_BYTES = 64 << 20


@dataclass(frozen=True)
class _Sizes:
    """Everything a kernel has to know of a convolution from x to y."""

    images: int
    channels: int
    plane: tuple[int, int]
    outputs: int
    rows: int
    columns: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, x_shape, y_shape, kernel_size, stride, padding, dilation, groups):
        # Python's integers: those of NumPy may overflow, and kernels would get their width.
        n, c, *plane = map(int, x_shape)
        _, o, rows, columns = map(int, y_shape)
        pairs = [tuple(map(int, pair)) for pair in (kernel_size, stride, padding, dilation)]
        return cls(n, c, tuple(plane), o, rows, columns, *pairs, int(groups))

    @property
    def positions(self) -> int:
        """Of y's, in all images."""
        return self.images * self.rows * self.columns

    @property
    def class_pixels(self) -> int:
        """Of x's, in all images, those of the largest of the classes that the stride makes."""
        largest = [-(-n // step) for n, step in zip(self.plane, self.stride, strict=True)]
        return self.images * math.prod(largest)

    @property
    def area(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def group_outputs(self) -> int:
        return self.outputs // self.groups

    @property
    def taps(self) -> int:
        """Pixels that an output reads."""
        return self.group_channels * self.area

    @property
    def settings(self) -> tuple:
        """(kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w)."""
        top, _, left, _ = self.padding
        return (*self.kernel_size, *self.stride, top, left, *self.dilation)

    @property
    def arguments(self) -> list:
        """What the kernels that read the images themselves take last."""
        sizes = (self.images, self.channels, *self.plane, self.outputs, self.rows, self.columns)
        return [np.int32(n) for n in (*sizes, *self.settings, self.groups)]

    @property
    def column_arguments(self) -> list:
        """What im2col and col2im take last."""
        sizes = (self.channels, *self.plane, self.rows, self.columns)
        return [np.int32(n) for n in (*sizes, *self.settings)]

    @property
    def is_pointwise(self) -> bool:
        """Whether the columns are the images themselves."""
        return (*self.kernel_size, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0, 0, 0)

    def stretches(self, itemsize):
        """(start, count) of the positions whose columns and results fit the workspace."""
        each = (self.channels * self.area + self.outputs) * itemsize
        number = -(-self.positions * each // WORKSPACE_BYTES)
        step = -(-self.positions // number)
        for start in range(0, self.positions, step):
            yield start, min(step, self.positions - start)


def _by_tensor_cores(dtype, sizes) -> bool:
    return runtime.by_tensor_cores(dtype) and conv_tf32.takes(sizes)


def _by_cublas(sizes) -> bool:
    if products_choice() == "own" or not sizes.positions * sizes.outputs * sizes.taps:
        return False
    thick = min(sizes.group_outputs, sizes.taps) >= MIN_SIDE and sizes.groups <= MAX_GROUPS
    return thick or products_choice() == "cublas"


def conv2d(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d."""
    y_shape = check_conv2d(x, weight, bias, stride, padding, dilation, groups)
    sizes = _Sizes.of(x.shape, y_shape, weight.shape[2:], stride, padding, dilation, groups)
    x, weight, bias = runtime.all_contiguous(x, weight, bias)
    y = runtime.empty(y_shape, x.dtype)
    if _by_tensor_cores(x.dtype, sizes):
        conv_tf32.convolve(x, weight, y, sizes, shift=bias)
    elif not _by_cublas(sizes):
        tiles = runtime.blocks(sizes.positions, TILE)
        grid = tiles * sizes.groups, runtime.blocks(sizes.group_outputs, TILE)
        _launch("conv2d", grid, (x, weight, bias, y, *sizes.arguments))
    elif sizes.is_pointwise:
        _stacked_products(weight, x, y, bias, sizes, turned=False)
    else:
        for start, count in sizes.stretches(x.itemsize):
            cols = _columns(x, sizes, start, count)
            matrix = runtime.empty((sizes.outputs, count), x.dtype)
            for weights, outputs, taps in _groups(weight, sizes):
                runtime.gemm(weights, cols[taps], matrix[outputs])
            _launch_elements("put_positions", matrix, (matrix, bias, y), sizes, start)
    return y


def conv2d_affine(
    x,
    weight,
    scale,
    shift,
    others=None,
    rectify=False,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
):
    """See kernels.reference.conv2d_affine."""
    settings = stride, padding, dilation, groups
    y_shape = check_conv2d_affine(x, weight, scale, shift, others, *settings)
    sizes = _Sizes.of(x.shape, y_shape, weight.shape[2:], *settings)
    if not _by_tensor_cores(x.dtype, sizes):
        y = conv2d(x, weight, None, *settings)
        affine_in_place(y, scale, shift, others, rectify)
        return y
    x, weight, scale, shift, others = runtime.all_contiguous(x, weight, scale, shift, others)
    y = runtime.empty(y_shape, x.dtype)
    conv_tf32.convolve(x, weight, y, sizes, scale, shift, others, rectify)
    return y


def conv2d_input_grad(
    dy, weight, x_shape, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_input_grad."""
    check_conv2d_input_grad(dy, weight, x_shape, stride, padding, dilation, groups)
    sizes = _Sizes.of(x_shape, dy.shape, weight.shape[2:], stride, padding, dilation, groups)
    return _input_grad(dy, weight, None, x_shape, sizes)


def conv_transpose2d(
    x,
    weight,
    bias=None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    output_padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """See kernels.reference.conv_transpose2d."""
    y_shape = check_conv_transpose2d(
        x, weight, bias, stride, padding, output_padding, dilation, groups
    )
    check_conv2d_input_grad(x, weight, y_shape, stride, padding, dilation, groups)
    sizes = _Sizes.of(y_shape, x.shape, weight.shape[2:], stride, padding, dilation, groups)
    return _input_grad(x, weight, bias, y_shape, sizes)


def _input_grad(dy, weight, bias, x_shape, sizes):
    """The gradient by the input, plus a bias a channel."""
    dy, weight, bias = runtime.all_contiguous(dy, weight, bias)
    dx = runtime.empty(x_shape, dy.dtype)
    if _by_tensor_cores(dy.dtype, sizes):
        conv_tf32.input_grad(dy, weight, dx, sizes, bias)
    elif not _by_cublas(sizes):
        classes = math.prod(sizes.stride)
        tiles = runtime.blocks(sizes.class_pixels, TILE)
        grid = tiles * sizes.groups * classes, runtime.blocks(sizes.group_channels, TILE)
        _launch("conv2d_input_grad", grid, (dy, weight, bias, dx, *sizes.arguments))
    elif sizes.is_pointwise:
        _stacked_products(weight, dy, dx, bias, sizes, turned=True)
    else:
        for start, count in sizes.stretches(dy.itemsize):
            matrix = runtime.empty((sizes.outputs, count), dy.dtype)
            _launch_elements("take_positions", matrix, (dy, matrix), sizes, start)
            cols = runtime.empty((sizes.channels * sizes.area, count), dy.dtype)
            for weights, outputs, taps in _groups(weight, sizes):
                runtime.gemm(weights.T, matrix[outputs], cols[taps])
            _add_columns(cols, bias, dx, sizes, start, count)
    return dx


def conv2d_weight_grad(
    dy, x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_weight_grad."""
    weight_shape = check_conv2d_weight_grad(
        dy, x, kernel_size, stride, padding, dilation, groups
    )
    sizes = _Sizes.of(x.shape, dy.shape, kernel_size, stride, padding, dilation, groups)
    dy, x = runtime.all_contiguous(dy, x)
    if _by_tensor_cores(dy.dtype, sizes):
        return conv_tf32.weight_grad(dy, x, sizes)
    make_parts = _parts_by_cublas if _by_cublas(sizes) else _own_parts
    parts = make_parts(dy, x, sizes)
    if len(parts) == 1:
        return parts[0].reshape(weight_shape)
    dw = runtime.empty(weight_shape, dy.dtype)
    args = parts, dw, np.int32(len(parts)), dw.size
    runtime.launch_elements("conv", "sum_splits", dy.dtype, dw.size, args)
    return dw


def _own_parts(dy, x, sizes):
    """(parts, O, C/groups kh kw), each the sum over some of the positions."""
    tiles = runtime.blocks(sizes.taps, TILE)
    outputs = runtime.blocks(sizes.group_outputs, TILE)
    blocks = max(1, tiles * outputs * sizes.groups)
    splits = min(-(-sizes.positions // FEWEST_POSITIONS), -(-ENOUGH_BLOCKS // blocks))
    splits = max(splits, -(-sizes.positions // MOST_POSITIONS))
    memory = sizes.outputs * sizes.taps * dy.itemsize
    splits = max(1, min(splits, PARTS_BYTES // max(1, memory)))
    length = max(1, -(-sizes.positions // splits))
    splits = max(1, -(-sizes.positions // length))
    parts = runtime.empty((splits, sizes.outputs, sizes.taps), dy.dtype)
    grid = tiles * sizes.groups * splits, outputs
    args = dy, x, parts, np.int32(splits), length, *sizes.arguments
    _launch("conv2d_weight_grad", grid, args)
    return parts


def _parts_by_cublas(dy, x, sizes):
    """The same, a part a stretch of positions."""
    stretches = list(sizes.stretches(dy.itemsize))
    parts = runtime.empty((len(stretches), sizes.outputs, sizes.taps), dy.dtype)
    for part, (start, count) in zip(parts, stretches, strict=True):
        matrix = runtime.empty((sizes.outputs, count), dy.dtype)
        _launch_elements("take_positions", matrix, (dy, matrix), sizes, start)
        cols = _columns(x, sizes, start, count)
        for group in range(sizes.groups):
            outputs, taps = _rows(group, sizes.group_outputs), _rows(group, sizes.taps)
            runtime.gemm(matrix[outputs], cols[taps].T, part[outputs])
    return parts


def im2col(x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.im2col."""
    sizes = _column_sizes(x.shape, kernel_size, stride, padding, dilation)
    return _columns(runtime.contiguous(x), sizes, 0, sizes.positions)


def col2im(cols, x_shape, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.col2im."""
    sizes = _column_sizes(x_shape, kernel_size, stride, padding, dilation)
    check_shape("cols", cols.shape, (sizes.channels * sizes.area, sizes.positions))
    x = runtime.empty(x_shape, cols.dtype)
    if x.size:
        _add_columns(runtime.contiguous(cols), None, x, sizes, 0, sizes.positions)
    return x


def _column_sizes(x_shape, kernel_size, stride, padding, dilation):
    size = conv_output_size(*x_shape[2:], kernel_size, stride, padding, dilation)
    y_shape = (x_shape[0], 0, *size)
    return _Sizes.of(x_shape, y_shape, kernel_size, stride, padding, dilation, 1)


def _columns(x, sizes, start, count):
    """The columns (C kh kw, count) of the positions from `start` on."""
    cols = runtime.empty((sizes.channels * sizes.area, count), x.dtype)
    args = (x, cols, start, np.int32(count), *sizes.column_arguments)
    runtime.launch_elements("conv", "im2col", x.dtype, sizes.channels * count, args)
    return cols


def _add_columns(cols, bias, x, sizes, start, count):
    """Add the columns of the positions from `start` on, in their order, to x plus bias."""
    each = sizes.rows * sizes.columns
    first, last = start // each, (start + count - 1) // each
    number = last + 1 - first
    images = np.int32(first), np.int32(number)
    args = (cols, bias, x, *images, start, np.int32(count), *sizes.column_arguments)
    pixels = number * sizes.channels * math.prod(sizes.plane)
    runtime.launch_elements("conv", "col2im", x.dtype, pixels, args)


def _stacked_products(weight, source, target, bias, sizes, turned):
    """A 1x1 convolution: every image a product of the weights (`turned`: transposed) with it."""
    n, groups = sizes.images, sizes.groups
    weights = weight.reshape(1, groups, sizes.group_outputs, sizes.group_channels)
    weights = weights.swapaxes(2, 3) if turned else weights
    sides = sizes.group_channels, sizes.group_outputs
    inner, outer = sides[::-1] if turned else sides
    pixels = sizes.rows * sizes.columns
    stack = source.reshape(n, groups, inner, pixels)
    runtime.gemm(weights, stack, target.reshape(n, groups, outer, pixels))
    if bias is not None:
        target += bias.reshape(-1, 1, 1)


def _groups(weight, sizes):
    """(weights (O/G, taps), slice of the outputs, slice of the columns' rows) of every group."""
    matrix = weight.reshape(sizes.outputs, sizes.taps)
    for group in range(sizes.groups):
        outputs = _rows(group, sizes.group_outputs)
        yield matrix[outputs], outputs, _rows(group, sizes.taps)


def _rows(group, height):
    return slice(group * height, (group + 1) * height)


def _launch(kernel, grid, args):
    runtime.launch("conv", kernel, args[0].dtype, grid, TILE_THREADS, args)


def _launch_elements(kernel, matrix, arrays, sizes, start):
    """Run a kernel that turns y into the positions of `matrix` (O, count), or back."""
    sizes = matrix.shape[1], sizes.outputs, sizes.rows * sizes.columns
    args = (*arrays, start, *map(np.int32, sizes))
    runtime.launch_elements("conv", kernel, matrix.dtype, matrix.size, args)
