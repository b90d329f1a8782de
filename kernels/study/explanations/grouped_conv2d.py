"""Grouped convolution: a block-diagonal matrix, and what the missing blocks save."""

import math

import numpy as np

from kernels.reference import conv2d, conv2d_input_grad, im2col
from kernels.study.explanations import build, options
from kernels.study.explanations.filters import Filters
from kernels.study.explanations.model import Explanation, Frame, Link, Step
from kernels.study.explanations.windows import Windows

OPTIONS = (
    options.integers("--size", 3, "Height and width of the image."),
    options.integers("--kernel", 2, "Height and width of the kernel."),
    options.STRIDE, options.PADDING, options.DILATION,
    options.count("--channels", 4, "Channels of the image."),
    options.count("--outputs", 4, "Channels of the result."),
    options.count("--groups", 2, "Groups of channels."),
)  # fmt: skip


def explain(size, kernel, stride, padding, dilation, channels, outputs, groups) -> Explanation:
    """The steps of a grouped convolution of one image, and of its gradient."""
    windows = Windows.of(size, kernel, stride, padding, dilation, channels)
    build.check_cells(the_connections=channels * outputs)
    filters = Filters(windows, outputs, groups)
    x = build.whole_numbers(windows.shape, 0, 5)
    steps = _connections(filters, x), _blocks(filters, x), _savings(filters), _backward(filters)
    return Explanation(
        "grouped_conv2d", "Grouped convolution: a block-diagonal matrix", filters.shown, steps
    )


def _by_channel(dependence, y_shape, x_shape) -> np.ndarray:
    """Which channels of y depend on which of x, (O, C), from the dependence of their elements."""
    (n, o, *_), (m, c, *_) = y_shape, x_shape
    return dependence.reshape(n, o, -1, m, c, math.prod(x_shape[2:])).any(axis=(0, 2, 3, 5))


def _channel_step(filters, reads, title, text, names, kinds) -> Step:
    """Channels of a result and of what it is computed from, and who reads whom."""
    (result, source), (count, sources) = names, reads.shape
    tones = [[f"group{filters.group_of_output(o) % 4}" for o in range(count)]]
    grids = (
        build.grid(source, f"channels of {source}", kinds[1], [range(sources)], ("",)),
        build.grid(result, f"channels of {result}", kinds[0], [range(count)], ("",), tones=tones),
        build.grid(
            "reads", f"{result} (rows) by {source} (columns)", "matrix", reads,
            show=lambda yes: "1" if yes else "", tones=np.where(reads, "", "blank"),
        ),
    )  # fmt: skip
    pairs = tuple(((0, int(o)), (0, int(c))) for o, c in zip(*np.nonzero(reads), strict=True))

    def frame(o):
        seen = [int(c) for c in np.flatnonzero(reads[o])]
        listed = ", ".join(map(str, seen)) or "none"
        marks = {source: tuple((0, c) for c in seen), "reads": tuple((o, c) for c in seen)}
        caption = f"channel {o} of {result} reads channels {listed} of {source}"
        return Frame(caption, marks, {result: ((0, o),)})

    frames = tuple(frame(o) for o in range(count))
    return Step(title, text, grids, (Link(result, source, pairs),), frames)


def _connections(filters, x) -> Step:
    dependence = build.reads(
        lambda image: conv2d(image, filters.weight, None, *filters.settings), x
    )
    reads = _by_channel(dependence, filters.y_shape, x.shape)
    groups, (o, c) = filters.groups, reads.shape
    text = [
        f"{c} channels and {o} outputs in {build.counted(groups, 'group')}: an output sees the "
        f"{build.counted(c // groups, 'channel')} of its own group, instead of all {c}. The "
        f"weight is {filters.weight.shape}."
    ]
    if groups == c and groups > 1:
        text.append("With as many groups as channels the convolution is called depthwise.")
    text.append(
        "AlexNet had two groups because its channels were spread over two graphics cards: the "
        "second, fourth and fifth layer read only those on their own."
    )
    title = "Who sees whom"
    kinds = ("output", "input")
    return _channel_step(filters, reads, title, tuple(text), ("y", "x"), kinds)


def _blocks(filters, x) -> Step:
    windows, groups = filters.windows, filters.groups
    cols = im2col(x, *windows.settings)
    y = conv2d(x, filters.weight, None, *filters.settings)[0].reshape(filters.outputs, -1)
    agree = np.allclose(filters.matrix @ cols, y)
    rows, count = cols.shape
    each = filters.outputs // groups, rows // groups

    def frame(group):
        outputs = [o for o in range(filters.outputs) if filters.group_of_output(o) == group]
        taken = np.flatnonzero(filters.stored[outputs].any(axis=0))
        return Frame(
            f"group {group}: W_{group} {each} x cols_{group} ({each[1]}, {count}) = y_{group} "
            f"({each[0]}, {count}), rows {outputs[0]} to {outputs[-1]} of y",
            {
                "W": tuple((o, int(r)) for o in outputs for r in taken),
                "cols": tuple((int(r), k) for r in taken for k in range(count)),
            },
            {"y": tuple((o, k) for o in outputs for k in range(count))},
        )

    return Step(
        "The matrix is block diagonal",
        (
            "Laid out over all channels, the filters have zeros wherever an output does not see a "
            f"channel. W ({filters.outputs}, {rows}) was found by convolving images with a single "
            f"one; W cols {'equals' if agree else 'differs from'} conv2d. Only the blocks {each}, "
            f"here {groups}, are stored, and multiplied one by one with their rows of cols.",
        ),
        (
            filters.matrix_grid(),
            windows.columns(cols, "cols = im2col(x)"),
            build.grid("y", "y = W cols", "output", y),
        ),
        filters.product_links(cols.shape),
        tuple(frame(group) for group in range(groups)),
    )


def _savings(filters) -> Step:
    windows, outputs = filters.windows, filters.outputs
    common = math.gcd(windows.shape[1], outputs)
    divisors = [g for g in range(1, common + 1) if common % g == 0]
    places = windows.columns_shape[1]
    weights = [Filters(windows, outputs, g).weight.size for g in divisors]
    table = [[w, w * places, weights[0] / w] for w in weights]
    row = divisors.index(filters.groups)
    marks = {"savings": tuple((row, column) for column in range(3))}
    return Step(
        "What it saves",
        (
            "Weights and multiply-adds fall by the number of groups. What is lost is that channels "
            "of different groups meet: the next layer has to mix them.",
        ),
        (
            build.grid(
                "savings", "by number of groups", "table", table, divisors,
                ("weights", "multiply-adds", "times fewer"),
            ),
        ),
        frames=(
            Frame(
                f"here, {build.counted(filters.groups, 'group')}: "
                f"{build.counted(weights[row], 'weight')}",
                marks,
            ),
        ),
    )  # fmt: skip


def _backward(filters) -> Step:
    dy = build.weights(filters.y_shape, seed=3)
    shape = filters.windows.shape
    dependence = build.reads(
        lambda g: conv2d_input_grad(g, filters.weight, shape, *filters.settings), dy
    )
    reads = _by_channel(dependence, shape, filters.y_shape).T
    pairs = tuple(((0, int(o)), (0, int(c))) for o, c in zip(*np.nonzero(reads), strict=True))
    o, c = reads.shape

    def frame(output):
        lands = [int(channel) for channel in np.flatnonzero(reads[output])]
        return Frame(
            f"dy of channel {output} lands in channels {', '.join(map(str, lands))} of dx",
            {"dx": tuple((0, channel) for channel in lands)},
            {"dy": ((0, output),)},
        )

    tones = [[f"group{filters.group_of_output(output) % 4}" for output in range(o)]]
    return Step(
        "Backward stays in the group",
        (
            "dcols = W^T dy, and the transpose of a block-diagonal matrix is one too. dW has the "
            f"shape of the weight, {filters.weight.shape}: what is not stored has no gradient.",
        ),
        (
            build.grid("dy", "channels of dy", "gradient", [range(o)], ("",), tones=tones),
            build.grid("dx", "channels of dx", "gradient", [range(c)], ("",)),
        ),
        (Link("dx", "dy", tuple((there, here) for here, there in pairs)),),
        tuple(frame(output) for output in range(o)),
    )
