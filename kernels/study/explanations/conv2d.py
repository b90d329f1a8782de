"""conv2d as a matrix product, and its two gradients as two more."""

import math

import numpy as np

from kernels.reference import (
    col2im,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
    im2col,
)
from kernels.study.explanations import build, options
from kernels.study.explanations.filters import Filters
from kernels.study.explanations.model import Explanation, Frame, Step
from kernels.study.explanations.windows import Windows

OPTIONS = (
    options.integers("--size", 4, "Height and width of the image."), options.KERNEL,
    options.STRIDE, options.PADDING, options.DILATION, options.CHANNELS, options.OUTPUTS,
    options.GROUPS,
)  # fmt: skip


def explain(size, kernel, stride, padding, dilation, channels, outputs, groups) -> Explanation:
    """The steps of a convolution of one image and of its gradients, in small integers."""
    windows = Windows.of(size, kernel, stride, padding, dilation, channels)
    filters = Filters(windows, outputs, groups)
    x = build.whole_numbers(windows.shape, 0, 5)
    dy = build.weights(filters.y_shape, seed=3)
    steps = (
        _filters(filters, x),
        _product(filters, x),
        _input_grad(filters, dy),
        _weight_grad(filters, x, dy),
    )
    return Explanation(
        "conv2d", "conv2d: a convolution is a matrix product", filters.shown, steps
    )


def _filters(filters, x) -> Step:
    windows = filters.windows
    y = conv2d(x, filters.weight, None, *filters.settings)
    dependence = build.reads(
        lambda image: conv2d(image, filters.weight, None, *filters.settings), x
    )

    taps = filters.weight[0].size
    count = build.counted(filters.outputs, "filter")
    places = build.counted(math.prod(windows.output_size), "place")

    def frame(element):
        n, output, v, u = (int(i) for i in np.unravel_index(element, y.shape))
        pixels = np.flatnonzero(dependence[element])
        return Frame(
            f"y[{output}] at ({v}, {u}) = {build.number(y[n, output, v, u])} reads "
            f"{build.counted(len(pixels), 'pixel')} and "
            f"{build.counted(taps - len(pixels), 'zero')} of the padding",
            {
                **build.places(pixels, windows.pixel()),
                **filters.filter_marks(output),
            },
            build.places([element], filters.output()),
        )

    return Step(
        "An output is a filter laid on the image",
        (
            f"x {x.shape} and weight {filters.weight.shape}: {count}, laid on the image at "
            f"{places}; the products of what lies on each other are summed. A filter is not turned "
            "over: strictly, it is a correlation.",
        ),
        (
            *windows.images(x, "x"),
            *filters.filter_grids(),
            *windows.outputs(y, "y"),
        ),
        build.link(dependence, filters.output(), windows.pixel()),
        tuple(frame(element) for element in range(y.size)),
    )


def _product(filters, x) -> Step:
    windows, w = filters.windows, filters.matrix
    cols = im2col(x, *windows.settings)
    y = conv2d(x, filters.weight, None, *filters.settings)[0].reshape(filters.outputs, -1)

    def frame(o, k):
        rows = np.flatnonzero(filters.stored[o])
        terms = " + ".join(
            f"{build.signed(w[o, r])}·{build.number(cols[r, k])}" for r in rows if cols[r, k]
        )
        return Frame(
            f"y[{o}, {k}] = {terms or '0'} = {build.number(y[o, k])}",
            {"W": tuple((o, int(r)) for r in rows), "cols": tuple((int(r), k) for r in rows)},
            {"y": ((o, k),)},
        )

    rows, count = cols.shape
    sums = int(filters.stored.sum()) * count
    text = (
        f"Each filter becomes a row of W, each patch a column of cols: y = W cols, here "
        f"({filters.outputs}, {rows}) x ({rows}, {count}) = ({filters.outputs}, {count}), "
        f"{sums:,} multiply-adds. The rows of y are the output's channels, its columns the places.",
    )
    if filters.groups > 1:
        text += (
            f"With {filters.groups} groups W is block diagonal. Only the blocks are stored and "
            "multiplied; a filter sees the rows of its own group.",
        )
    return Step(
        "The same as one matrix product",
        text,
        (
            filters.matrix_grid(),
            windows.columns(cols, "cols = im2col(x)"),
            build.grid("y", "y = W cols", "output", y),
        ),
        filters.product_links(cols.shape),
        tuple(frame(o, k) for o in range(filters.outputs) for k in range(count)),
    )


def _input_grad(filters, dy) -> Step:
    windows = filters.windows

    def run(gradient):
        return conv2d_input_grad(gradient, filters.weight, windows.shape, *filters.settings)

    dx = run(dy)
    dcols = filters.matrix.T @ dy[0].reshape(filters.outputs, -1)
    same = np.allclose(col2im(dcols, windows.shape, *windows.settings), dx)
    dependence = build.reads(run, dy)
    often = dependence.sum(axis=1).reshape(windows.shape)
    place = filters.output("dy")

    def frame(element):
        n, o, v, u = (int(i) for i in np.unravel_index(element, dy.shape))
        pixels = np.flatnonzero(dependence[:, element])
        where = windows.where(v * windows.output_size[1] + u)
        return Frame(
            f"dy[{o}] at ({v}, {u}) = {build.number(dy[n, o, v, u])}, times filter {o}, is added "
            f"at {where}: {build.counted(len(pixels), 'pixel')}",
            {
                **build.places(pixels, windows.pixel("dx")),
                **build.places(pixels, windows.pixel("often")),
            },
            build.places([element], place),
        )

    return Step(
        "Backward to the image: where each gradient lands",
        (
            "Each gradient of the output goes back to the pixels that the output has read, times "
            "the weights it was read with. As matrices: dcols = W^T dy, and dx = col2im(dcols)"
            f"{', which is' if same else ', which is not'} what conv2d_input_grad gives.",
            "A pixel sums as many gradients as outputs have read it, over all filters of its "
            "group; where filters and strides do not fit, some pixels count more than others.",
        ),
        (
            *windows.outputs(dy, "dy", "dy", "gradient"),
            *windows.images(dx, "dx", "dx", "gradient"),
            *windows.images(often, "how many: dx", "often", "gradient", build.heat(often)),
        ),
        build.link(dependence, windows.pixel("dx"), place),
        tuple(frame(element) for element in range(dy.size)),
    )


def _weight_grad(filters, x, dy) -> Step:
    windows, weight = filters.windows, filters.weight

    def run(image, gradient):
        return conv2d_weight_grad(gradient, image, windows.kernel_size, *filters.settings)

    dw = run(x, dy)
    from_dy = build.reads(lambda gradient: run(x, gradient), dy)
    from_x = build.reads(lambda image: run(image, dy), x)
    place = filters.tap("dW")

    def frame(element):
        o, c, i, j = (int(k) for k in np.unravel_index(element, weight.shape))
        pixels = np.flatnonzero(from_x[element])
        gradients = np.flatnonzero(from_dy[element])
        name = f"dW[{o}, {c}]" if weight.shape[1] > 1 else f"dW[{o}]"
        return Frame(
            f"{name} at ({i}, {j}) = {build.number(dw[o, c, i, j])}: "
            f"{build.counted(len(gradients), 'gradient')} times the pixels under this tap, of "
            f"which {len(pixels)} in the image",
            {
                **build.places(pixels, windows.pixel()),
                **build.places(gradients, filters.output("dy")),
            },
            build.places([element], place),
        )

    rows, count = windows.columns_shape
    outputs, rows = filters.outputs // filters.groups, rows // filters.groups
    each = "" if filters.groups == 1 else f", for each of {filters.groups} groups"
    return Step(
        "Backward to the filters",
        (
            "A weight has multiplied one pixel of every window. Its gradient sums the gradients of "
            f"all outputs of its filter, each times that pixel: dW = dy cols^T, "
            f"({outputs}, {count}) x ({count}, {rows}) = ({outputs}, {rows}){each}.",
        ),
        (
            *windows.images(x, "x"),
            *windows.outputs(dy, "dy", "dy", "gradient"),
            *filters.filter_grids(dw, "dW", "gradient"),
        ),
        (
            *build.link(from_x, place, windows.pixel()),
            *build.link(from_dy, place, filters.output("dy")),
        ),
        tuple(frame(element) for element in range(dw.size)),
    )
