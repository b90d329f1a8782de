"""Pooling. Every map here is linear once the switches are known, and comes with its transpose."""

from typing import NamedTuple

from kernels.dispatch import kernels_for
from kernels.geometry import padding4, pair
from minidl.array_module import get_array_module
from minidl.function import Function
from minidl.ops.linalg import MatMul
from minidl.tensor import Tensor, as_tensor


class MaxPool2d(Function):
    keep_inputs = False
    keep_outputs = (1,)

    def __init__(self, kernel_size, stride, padding, dilation, ceil_mode):
        self.settings = (kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x):
        self.x_shape = x.shape
        return kernels_for(x).max_pool2d(x, *self.settings)

    def backward(self, grad, _):
        windows = self.settings[:-1]
        return MaxPool2dTranspose(self.x_shape, windows)(grad, self.outputs[1])


class MaxPool2dTranspose(Function):
    """`MaxUnpool2d` for switches of a max-pooling, whose windows tell where to look for them."""

    keep_inputs = (1,)

    def __init__(self, x_shape, windows):
        self.x_shape = x_shape
        self.windows = windows

    def forward(self, dy, switches):
        return kernels_for(dy).max_pool2d_backward(dy, switches, self.x_shape, *self.windows)

    def backward(self, grad):
        return MaxGather2d()(grad, self.inputs[1]), None


class MaxUnpool2d(Function):
    keep_inputs = (1,)

    def __init__(self, plane_shape):
        self.plane_shape = plane_shape

    def forward(self, y, switches):
        return kernels_for(y).max_unpool2d(y, switches, self.plane_shape)

    def backward(self, grad):
        return MaxGather2d()(grad, self.inputs[1]), None


class MaxGather2d(Function):
    """Read each plane at the switches: the transpose of `MaxUnpool2d`."""

    keep_inputs = (1,)

    def forward(self, x, switches):
        self.plane_shape = x.shape[2:]
        return kernels_for(x).max_pool2d_gather(x, switches)

    def backward(self, grad):
        return MaxUnpool2d(self.plane_shape)(grad, self.inputs[1]), None


class AvgSettings(NamedTuple):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    ceil_mode: bool
    count_include_pad: bool


class AvgPool2d(Function):
    keep_inputs = False

    def __init__(self, settings: AvgSettings):
        self.settings = settings

    def forward(self, x):
        self.x_shape = x.shape
        return kernels_for(x).avg_pool2d(x, *self.settings)

    def backward(self, grad):
        return AvgPool2dTranspose(self.settings, self.x_shape)(grad)


class AvgPool2dTranspose(Function):
    keep_inputs = False

    def __init__(self, settings: AvgSettings, x_shape):
        self.settings = settings
        self.x_shape = x_shape

    def forward(self, dy):
        return kernels_for(dy).avg_pool2d_backward(dy, self.x_shape, *self.settings)

    def backward(self, grad):
        return AvgPool2d(self.settings)(grad)


class GlobalAvgPool2d(Function):
    keep_inputs = False

    def forward(self, x):
        self.x_shape = x.shape
        return kernels_for(x).global_avg_pool2d(x)

    def backward(self, grad):
        return GlobalAvgPool2dTranspose(self.x_shape)(grad)


class GlobalAvgPool2dTranspose(Function):
    keep_inputs = False

    def __init__(self, x_shape):
        self.x_shape = x_shape

    def forward(self, dy):
        return kernels_for(dy).global_avg_pool2d_backward(dy, self.x_shape)

    def backward(self, grad):
        return GlobalAvgPool2d()(grad)


def _check_images(x):
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")


def max_pool2d(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_switches=False
):
    """Largest element of each window: x (N, C, H, W) -> (N, C, OH, OW).

    `stride` defaults to `kernel_size`; padding (-inf, never chosen over a real element) may not
    exceed half the kernel. Ties go to the first element in row-major order; NaN wins. With
    `return_switches` also returns the winners' flat indices into the H x W plane (int32), which
    `max_unpool2d` takes. Raises ValueError for sizes that do not fit.
    """
    _check_images(x)
    kernel_size = pair("kernel_size", kernel_size)
    stride = kernel_size if stride is None else pair("stride", stride)
    settings = (kernel_size, stride, padding4("padding", padding), pair("dilation", dilation))
    y, switches = MaxPool2d(*settings, bool(ceil_mode))(x)
    return (y, switches) if return_switches else y


def max_unpool2d(y, switches, output_size: tuple[int, int]) -> Tensor:
    """Put each element of y (N, C, OH, OW) at its switch in a zero plane of `output_size` (H, W).

    Elements that share a switch (overlapping windows) are added, which makes this the exact
    transpose of max-pooling; Zeiler and Fergus 2014, section 2.1.
    Raises ValueError for a switch outside the plane or a shape other than y's.
    """
    _check_images(y)
    if switches.shape != y.shape:
        raise ValueError(f"switches must have y's shape {y.shape}, got {switches.shape}")
    height, width = pair("output_size", output_size)
    switches = as_tensor(switches)
    array = switches._array
    if array.size and not (0 <= array.min() and array.max() < height * width):
        raise ValueError(
            f"switches must lie in [0, {height * width}) for output_size {(height, width)}, "
            f"got {array.min()} to {array.max()}"
        )
    return MaxUnpool2d((height, width))(y, switches)


def avg_pool2d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
) -> Tensor:
    """Mean of each window: x (N, C, H, W) -> (N, C, OH, OW).

    `stride` defaults to `kernel_size`. The divisor counts padding zeros if `count_include_pad`,
    else real elements only. Raises ValueError for sizes that do not fit.
    """
    _check_images(x)
    kernel_size = pair("kernel_size", kernel_size)
    stride = kernel_size if stride is None else pair("stride", stride)
    padding = padding4("padding", padding)
    flags = (bool(ceil_mode), bool(count_include_pad))
    return AvgPool2d(AvgSettings(kernel_size, stride, padding, *flags))(x)


def global_avg_pool2d(x) -> Tensor:
    """Mean of each plane: x (N, C, H, W) -> (N, C, 1, 1); Lin, Chen and Yan 2014, section 3.2."""
    _check_images(x)
    return GlobalAvgPool2d()(x)


def adaptive_avg_pool2d(x, output_size) -> Tensor:
    """Mean of each cell of an OH x OW grid laid over the plane: (N, C, H, W) -> (N, C, OH, OW).

    `output_size`: an int or (OH, OW). Cell i spans the rows floor(i H / OH) to
    ceil((i + 1) H / OH): neighbours overlap where OH does not divide H. Raises ValueError for an x
    without four axes or an empty plane.
    """
    _check_images(x)
    if 0 in x.shape[2:]:
        raise ValueError(f"x must have a plane of at least 1x1, got shape {x.shape}")
    size = pair("output_size", output_size)
    if size == x.shape[2:]:
        return x
    # The mean is separable: one averaging matrix for the rows, one for the columns.
    xp = get_array_module(x._array)
    rows, columns = (
        Tensor._wrap(_cell_means(xp, n, cells, x.dtype))
        for n, cells in zip(x.shape[2:], size, strict=True)
    )
    return MatMul()(MatMul()(rows, x), columns.T)


def _cell_means(xp, n, cells, dtype):
    """(cells, n) whose row i averages the elements of cell i; made where it is needed."""
    cell, place = xp.arange(cells).reshape(-1, 1), xp.arange(n)
    start, stop = cell * n // cells, -(-(cell + 1) * n // cells)
    return (((start <= place) & (place < stop)) / (stop - start)).astype(dtype)
