"""Convolution and its transpose, with ONNX's ways of saying how much to pad."""

from dataclasses import dataclass

from minidl import ops
from minidl.onnx.operators.registry import check_images, operator

_AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """The attributes that convolutions and poolings share, for two spatial axes."""

    kernel_shape: tuple[int, int] | None
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, bottom, left, right
    auto_pad: str

    @classmethod
    def read(cls, node) -> "Window":
        """From a node's attributes; OnnxError for those of another number of spatial axes."""
        kernel_shape = node.ints("kernel_shape")
        if kernel_shape is not None:
            node.spatial("kernel_shape", kernel_shape, 2, 1)
        auto_pad = node.string("auto_pad", "NOTSET")
        if auto_pad not in _AUTO_PADS:
            raise node.error(f"auto_pad must be one of {_AUTO_PADS}, got {auto_pad!r}")
        top, left, bottom, right = node.spatial("pads", node.ints("pads") or (0, 0, 0, 0), 4, 0)
        if auto_pad != "NOTSET" and (top, left, bottom, right) != (0, 0, 0, 0):
            raise node.error(f"pads and auto_pad {auto_pad} exclude each other")
        pads = (top, bottom, left, right)
        return cls(kernel_shape, node.pair("strides"), node.pair("dilations"), pads, auto_pad)

    def check_kernel(self, weight_shape) -> None:
        """ValueError where the weight is not of the declared kernel_shape."""
        if self.kernel_shape is not None and tuple(weight_shape[2:]) != self.kernel_shape:
            raise ValueError(
                f"kernel_shape is {self.kernel_shape}, but the weight has shape {weight_shape}"
            )

    def reach(self, kernel) -> tuple[int, int]:
        """How many pixels a dilated kernel spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True))

    def padding(self, plane, kernel) -> tuple[int, int, int, int]:
        """(top, bottom, left, right); SAME gives ceil(size / stride) outputs along each axis."""
        if not self.auto_pad.startswith("SAME"):
            return self.pads
        sides = []
        for size, reach, step in zip(plane, self.reach(kernel), self.strides, strict=True):
            total = max((-(-size // step) - 1) * step + reach - size, 0)
            sides += split(total, self.auto_pad == "SAME_UPPER")
        return tuple(sides)


def split(total: int, more_after: bool) -> tuple[int, int]:
    """(before, after) that add up to `total`; an odd one is more on one side."""
    less, more = total // 2, total - total // 2
    return (less, more) if more_after else (more, less)


@operator("Conv")
def conv(node):
    """Cross-correlation; the weight may be computed by the graph."""
    window = Window.read(node)
    group = node.int("group", 1)

    def run(x, weight, bias=None):
        check_images(x)
        window.check_kernel(weight.shape)
        padding = window.padding(x.shape[2:], weight.shape[2:])
        return ops.conv2d(x, weight, bias, window.strides, padding, window.dilations, group)

    return run


@operator("ConvTranspose")
def conv_transpose(node):
    """The transpose of Conv, its size chosen by pads and output_padding, or by output_shape."""
    window = Window.read(node)
    group = node.int("group", 1)
    extra = node.pair("output_padding", 0, minimum=0)
    output_shape = node.ints("output_shape")
    if output_shape is not None:
        node.spatial("output_shape", output_shape, 2, 1)

    def run(x, weight, bias=None):
        check_images(x)
        window.check_kernel(weight.shape)
        plane, kernel = x.shape[2:], weight.shape[2:]
        padding, added = _transposed_padding(window, plane, kernel, extra, output_shape)
        return ops.conv_transpose2d(
            x, weight, bias, window.strides, padding, added, window.dilations, group
        )

    return run


def _transposed_padding(window, plane, kernel, extra, output_shape):
    """(padding, output_padding) of a ConvTranspose on a plane of this size.

    With output_shape, or SAME (which asks for size times stride), the padding is what remains:
    stride (size - 1) + output_padding + reach - output size. Where that is negative, the output is
    larger than the kernel's traces, and rows are added at its end.
    """
    asked = output_shape
    if window.auto_pad.startswith("SAME") and asked is None:
        asked = tuple(n * s for n, s in zip(plane, window.strides, strict=True))
    if asked is None:
        return window.pads, extra
    padding, added = [], []
    reaches = window.reach(kernel)
    for axis in (0, 1):
        natural = window.strides[axis] * (plane[axis] - 1) + extra[axis] + reaches[axis]
        total = natural - asked[axis]
        padding += split(max(total, 0), window.auto_pad == "SAME_UPPER")
        added.append(extra[axis] + max(-total, 0))
    return tuple(padding), tuple(added)
