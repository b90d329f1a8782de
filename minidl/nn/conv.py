"""Convolution layers."""

import math

from kernels.geometry import padding4, pair
from minidl import ops
from minidl.array_module import get_array_module
from minidl.nn.linear import new_weights, positive_int
from minidl.nn.module import Module
from minidl.tensor import Tensor


class _Conv(Module):
    """What Conv2d and ConvTranspose2d have in common: their settings."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups
    ):
        super().__init__()
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.padding = padding4("padding", padding)
        self.dilation = pair("dilation", dilation)
        self.groups = positive_int("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels {in_channels} and out_channels {out_channels}, "
                f"got {groups}"
            )

    def extra_repr(self):
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        plain = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        for name, default in plain.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value}"
        return text if self.bias is not None else text + ", bias=False"


class Conv2d(_Conv):
    """Cross-correlation of (N, in_channels, H, W) with weight (out, in / groups, kh, kw).

    `padding`: an int, (vertical, horizontal) or (top, bottom, left, right). Weights start uniform
    in +-1/sqrt(fan_in). Raises ValueError for sizes below 1 or groups that do not divide.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1,
        bias=True,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight, self.bias = new_weights(shape, out_channels, math.prod(shape[1:]), bias)

    def forward(self, x, rectify=False):
        """`rectify`: ReLU of the result, of a layer with a bias; see `minidl.ops.conv2d_relu`."""
        convolve = ops.conv2d_relu if rectify else ops.conv2d
        return convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def affine(self, x, scale=None, shift=None, others=None, rectify=False):
        """(conv(x) + bias) scale + shift + others, and ReLU: see `minidl.ops.conv2d_affine`.

        scale, shift (out_channels,), or None for 1 and 0.
        """
        if self.bias is not None:
            bias = self.bias if scale is None else scale * self.bias
            shift = bias if shift is None else shift + bias
        elif shift is None:
            xp = get_array_module(self.weight.data)
            shift = Tensor(xp.zeros(self.out_channels, self.weight.dtype))
        return ops.conv2d_affine(
            x, self.weight, scale, shift, others, rectify, self.stride, self.padding,
            self.dilation, self.groups,
        )  # fmt: skip

    def multiply_adds(self, output_shape) -> int:
        """Multiply-adds of one call with this output shape."""
        return math.prod(output_shape) * math.prod(self.weight.shape[1:])


class ConvTranspose2d(_Conv):
    """The transpose of a convolution: weight (in_channels, out_channels / groups, kh, kw).

    `output_padding`, below the stride, adds rows and columns at the end of the output. Raises
    ValueError as `Conv2d`.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0,
        groups=1, bias=True, dilation=1,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.output_padding = pair("output_padding", output_padding, minimum=0)
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        self.weight, self.bias = new_weights(shape, out_channels, math.prod(shape[1:]), bias)

    def forward(self, x):
        return ops.conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding,
            self.dilation, self.groups,
        )  # fmt: skip

    def multiply_adds(self, output_shape) -> int:
        """Multiply-adds of one call: an output sees every stride-th tap along each axis."""
        per_output = self.in_channels // self.groups * math.prod(self.kernel_size)
        return math.prod(output_shape) * per_output // math.prod(self.stride)

    def extra_repr(self):
        text = super().extra_repr()
        extra = self.output_padding
        return text if extra == (0, 0) else f"{text}, output_padding={extra}"
