"""Pooling layers; see `minidl.ops.pool` for the rules and the errors."""

from kernels.geometry import padding4, pair
from minidl import ops
from minidl.nn.module import Module


class _Pool(Module):
    def __init__(self, kernel_size, stride, padding, ceil_mode):
        super().__init__()
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair("stride", stride)
        self.padding = padding4("padding", padding)
        self.ceil_mode = bool(ceil_mode)
        for axis in (0, 1):
            if 2 * max(self.padding[2 * axis : 2 * axis + 2]) > self.kernel_size[axis]:
                raise ValueError(
                    f"padding must be at most half of kernel_size {self.kernel_size}, "
                    f"got {self.padding}"
                )

    def extra_repr(self):
        text = f"kernel_size={self.kernel_size}, stride={self.stride}"
        if any(self.padding):
            text += f", padding={self.padding}"
        return text + ", ceil_mode=True" if self.ceil_mode else text


class MaxPool2d(_Pool):
    """Largest element of each window: (N, C, H, W) -> (N, C, OH, OW)."""

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = pair("dilation", dilation)

    def forward(self, x):
        return ops.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class AvgPool2d(_Pool):
    """Mean of each window: (N, C, H, W) -> (N, C, OH, OW)."""

    def __init__(
        self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
    ):
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = bool(count_include_pad)

    def forward(self, x):
        return ops.avg_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class GlobalAvgPool2d(Module):
    """Mean of each plane: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x):
        return ops.global_avg_pool2d(x)


class AdaptiveAvgPool2d(Module):
    """Mean of each cell of a grid: (N, C, H, W) -> (N, C, *output_size), whatever H and W."""

    def __init__(self, output_size):
        super().__init__()
        self.output_size = pair("output_size", output_size)

    def forward(self, x):
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self):
        return f"{self.output_size}"
