"""Transposed convolution: every pixel stamps the filter into a larger image."""

import numpy as np

from kernels.geometry import conv_transpose_output_size, padding4, pair
from kernels.reference import col2im, conv2d_input_grad, conv_transpose2d
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step
from kernels.study.explanations.windows import Windows

OPTIONS = (
    options.integers("--size", 3, "Height and width of the image."),
    options.KERNEL,
    options.integers("--stride", 2, "Pixels from one stamp to the next."),
    options.integers("--padding", 0, "Rows and columns that are cut off: one, two or four."),
    options.integers("--output-padding", 0, "Rows and columns that are added at the end."),
    options.DILATION,
)


class Stamps:
    """One image (1, 1, H, W) of small integers, one filter, and where each pixel stamps it."""

    def __init__(self, size, kernel, stride, padding, output_padding, dilation):
        self.plane, self.kernel_size = pair("size", size), pair("kernel", kernel)
        self.stride, self.padding = pair("stride", stride), padding4("padding", padding)
        self.extra = pair("output_padding", output_padding, 0)
        self.dilation = pair("dilation", dilation)
        self.y_size = conv_transpose_output_size(
            *self.plane, self.kernel_size, self.stride, self.padding, self.extra, self.dilation
        )
        # The windows that the convolution back, from y to x, takes of y: one a pixel of x.
        self.windows = Windows.of(self.y_size, kernel, stride, padding, dilation)
        self.x = build.whole_numbers((1, 1, *self.plane), 1, 5)
        self.weight = build.weights((1, 1, *self.kernel_size))

    def run(self, x, weight=None):
        """y of another image, or by other weights."""
        weight = self.weight if weight is None else weight
        return conv_transpose2d(
            x, weight, None, self.stride, self.padding, self.extra, self.dilation
        )

    def y_grid(self, y, title, name="y", levels=None):
        """A grid of y (1, 1, OH, OW), and around it what is cut off."""
        return self.windows.images(y, title, name, "output", levels)[0]


def explain(size, kernel, stride, padding, output_padding, dilation) -> Explanation:
    """The steps of a transposed convolution of one plane."""
    s = Stamps(size, kernel, stride, padding, output_padding, dilation)
    steps = _sizes(s), _stamping(s), _often(s), _gradient(s)
    names = ("kernel", "stride", "padding", "output_padding", "dilation")
    values = (s.kernel_size, s.stride, s.padding, s.extra, s.dilation)
    shown = [(name, build.as_text(value)) for name, value in zip(names, values, strict=True)]
    return Explanation(
        "conv_transpose2d",
        "conv_transpose2d: every pixel stamps the filter",
        (("x", str(s.x.shape)), *shown),
        steps,
    )


def _sizes(s) -> Step:
    lines = []
    for axis, name in enumerate("HW"):
        before, after = s.padding[2 * axis :][:2]
        lines.append(
            f"    O{name} = ({s.plane[axis]} - 1) {s.stride[axis]} - {before} - {after} + "
            f"{s.dilation[axis]} ({s.kernel_size[axis]} - 1) + {s.extra[axis]} + 1 = "
            f"{s.y_size[axis]}"
        )
    back = s.windows.output_size
    return Step(
        "Sizes, seen from the other side",
        (
            "A transposed convolution makes of x what a convolution with the same settings would "
            "make x of. So its size is the convolution's formula solved for the image:",
            "\n".join(lines),
            f"The convolution back maps {s.y_size[0]}x{s.y_size[1]} to {back[0]}x{back[1]}. Where "
            "the stride is above 1 it maps several sizes to the same one; output_padding chooses "
            "among them.",
        ),
    )


def _stamping(s) -> Step:
    def image_of(pixels):
        kept = np.where(np.arange(s.x.size).reshape(s.x.shape) < pixels, s.x, 0)
        return s.run(kept)

    images = [image_of(count) for count in range(s.x.size + 1)]
    dependence = build.reads(s.run, s.x)
    place, target = s.windows.pixel("y"), build.in_planes("x", s.x.shape)

    def frame(pixel):
        lands = np.flatnonzero(dependence[:, pixel])
        texts = {place(e)[1]: build.number(images[pixel + 1].flat[e]) for e in lands}
        cut = s.weight.size - len(lands)
        return Frame(
            f"x at {divmod(pixel, s.plane[1])} = {build.number(s.x.flat[pixel])}, times the "
            f"filter, is added at {s.windows.where(pixel)}"
            + (f"; {cut} of it cut off" if cut else ""),
            {
                **s.windows.patch(pixel, "y"),
                "weight": tuple(np.ndindex(s.kernel_size)),
            },
            build.places([pixel], target),
            {"y": texts},
        )

    return Step(
        "Every pixel stamps the filter",
        (
            f"Each pixel of x, times the filter, is added into y, {s.stride[0]} rows and "
            f"{s.stride[1]} columns from its neighbour's stamp. Dots are the padding, which here "
            "is cut off.",
        ),
        (
            build.grid("x", "x", "input", s.x[0, 0]),
            build.grid("weight", "weight", "weight", s.weight[0, 0]),
            s.y_grid(images[0], "y, as far as it is summed"),
        ),
        build.link(dependence, place, target),
        tuple(frame(pixel) for pixel in range(s.x.size)),
        shown=-1,
    )


def _often(s) -> Step:
    counts = s.run(np.ones_like(s.x), np.ones_like(s.weight))
    few, many = int(counts.min()), int(counts.max())
    uneven = (
        f"Here between {few} and {many} stamps meet in a pixel. Where the stride does not divide "
        "the kernel's size the counts alternate, which can be seen in pictures as a checkerboard."
        if few < many
        else f"Here {build.counted(many, 'stamp')} meet in every pixel."
    )
    return Step(
        "How many stamps meet",
        ("A transposed convolution of ones by a filter of ones counts them.", uneven),
        (s.y_grid(counts, "stamps in a pixel", "counts", build.heat(counts)),),
    )


def _gradient(s) -> Step:
    y = s.run(s.x)
    settings = s.stride, s.padding, s.dilation
    gradient = conv2d_input_grad(s.x, s.weight, y.shape, *settings)
    columns = s.weight.reshape(1, -1).T @ s.x.reshape(1, -1)
    folded = col2im(columns, y.shape, s.kernel_size, *settings)
    same = [np.allclose(other, y) for other in (gradient, folded)]
    words = ["is" if equal else "is not" for equal in same]
    return Step(
        "It is a convolution's gradient",
        (
            "The same sums carry gradients back through a convolution from y to x: "
            f"conv2d_input_grad(x, weight) {words[0]} equal to y.",
            "    y = col2im(W^T x)",
            f"As matrices: W^T ({s.weight.size}, 1) times x (1, {s.x.size}), folded; col2im of it "
            f"{words[1]} equal to y.",
        ),
        (
            s.windows.columns(columns, "W^T x", "cols"),
            s.y_grid(y, "y = col2im(W^T x)"),
        ),
    )
