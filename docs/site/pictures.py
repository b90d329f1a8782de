"""The chapters' pictures, drawn by Matplotlib from what the reference kernels compute."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kernels import reference

COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#eeca3b", "#72b7b2", "#9d755d",
           "#ff9da6"]  # fmt: skip
PALE = "#eef1f5"
_PICTURES = {}


def picture(caption):
    """Enter a function, which draws into an empty figure, under its name."""

    def enter(function):
        _PICTURES[function.__name__] = (function, caption)
        return function

    return enter


def draw(name: str) -> tuple[str, str]:
    """(SVG, caption) of a picture. KeyError where there is none of this name."""
    function, caption = _PICTURES[name]
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        function(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several pictures may stand in one page: their ids must differ.
    return re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", svg), caption


def names() -> list[str]:
    """The names of all pictures."""
    return list(_PICTURES)


def _axes(figure, size, *widths):
    """Bare axes side by side, of these relative widths, in a figure of this size in inches."""
    figure.set_size_inches(*size)
    row = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for ax in row:
        ax.set_axis_off()
        ax.set_aspect("equal")
    return row


def _grid(ax, values, title="", colours=None, form="{}", origin=(0, 0)):
    """A matrix as labelled squares; `colours` by (row, column), pale where there is none."""
    rows, columns = values.shape
    top, left = origin
    for r, c in np.ndindex(rows, columns):
        colour = (colours or {}).get((r, c), PALE)
        ax.add_patch(Rectangle((left + c, top + r), 1, 1, facecolor=colour, edgecolor="white"))
        if form:
            ax.text(left + c + 0.5, top + r + 0.5, form.format(values[r, c]), ha="center",
                    va="center", fontsize=7)  # fmt: skip
    ax.set_xlim(left - 0.1, left + columns + 0.1)
    ax.set_ylim(top + rows + 0.1, top - 0.1)
    ax.set_title(title, fontsize=9)


def _outline(ax, top, left, height, width, colour, **style):
    ax.add_patch(
        Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=2, **style)
    )


def _heat(ax, values, title, form="{:.2g}"):
    """A matrix as numbers on shades of blue."""
    _grid(ax, values, title, form=form)
    largest = np.abs(values).max() or 1
    for patch, value in zip(ax.patches, values.ravel(), strict=True):
        patch.set_facecolor(COLOURS[0])
        patch.set_alpha(0.08 + 0.7 * abs(value) / largest)


@picture("Element (1, 2) of the product needs row 1 of a and column 2 of b; the whole is the sum "
         "of the outer products of a's columns with b's rows.")  # fmt: skip
def matmul(figure):
    a = np.arange(12).reshape(3, 4) % 5
    b = (np.arange(16).reshape(4, 4) * 3) % 4
    axes = _axes(figure, (7, 2), 4, 4, 4)
    row, column = {(1, k): COLOURS[0] for k in range(4)}, {(k, 2): COLOURS[1] for k in range(4)}
    _grid(axes[0], a, "a (3, 4)", row)
    _grid(axes[1], b, "b (4, 4)", column)
    _grid(axes[2], a @ b, "a b (3, 4)", {(1, 2): COLOURS[2]})


@picture("im2col of a 5x5 image (kernel 3x3, stride 2, padding 1): every colour is a patch, and "
         "becomes a column of nine. A dot is padding.")  # fmt: skip
def im2col(figure):
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    cols = reference.im2col(x + 1, (3, 3), (2, 2), (1, 1, 1, 1)).astype(int) - 1
    image = np.full((7, 7), "·", object)
    image[1:6, 1:6] = x[0, 0].astype(int)
    axes = _axes(figure, (7, 3.6), 7, 9)
    _grid(axes[0], image, "the padded image, pixels numbered")
    for k in range(9):
        shift = 0.06 * (k % 3 - 1)
        _outline(axes[0], 2 * (k // 3) + shift, 2 * (k % 3) + shift, 3, 3, COLOURS[k])
    labels = np.where(cols < 0, "·", cols.astype(str))
    fills = {(r, c): COLOURS[c] + "88" for r, c in np.ndindex(9, 9)}
    _grid(axes[1], labels, "columns: rows are taps, columns are outputs", fills)


@picture("col2im of ones counts how often im2col copied a pixel: so many terms its gradient has. "
         "With stride 2, the pixels in four windows get four times the terms.")  # fmt: skip
def col2im(figure):
    axes = _axes(figure, (7, 2.5), 5, 5, 5)
    for ax, stride, padding in zip(axes, (1, 2, 2), (1, 1, 0), strict=True):
        settings = (3, 3), (stride, stride), (padding,) * 4
        cols = reference.im2col(np.ones((1, 1, 5, 5)), *settings)
        counts = reference.col2im(np.ones_like(cols), (1, 1, 5, 5), *settings)[0, 0]
        _heat(ax, counts, f"stride {stride}, padding {padding}", "{:.0f}")


@picture("The matrix W of a convolution from 4 to 6 channels in two groups is block diagonal: what "
         "is blank is not stored and not multiplied.")  # fmt: skip
def groups(figure):
    axes = _axes(figure, (7, 2.2), 12, 12)
    values = np.full((6, 12), "")
    for ax, count, title in zip(axes, (1, 2), ("groups = 1", "groups = 2"), strict=True):
        fills = {
            (o, k): COLOURS[o * count // 6]
            for o, k in np.ndindex(6, 12)
            if o * count // 6 == k * count // 12
        }
        _grid(ax, values, f"{title}: W (6, 4 x 3 taps)", fills)


@picture("A 3x3 kernel of dilation 1, 2 and 3 has nine taps each time, and reaches over 3, 5 and 7 "
         "pixels.")  # fmt: skip
def dilation(figure):
    for ax, d in zip(_axes(figure, (7, 2.5), 7, 7, 7), (1, 2, 3), strict=True):
        x = np.arange(1.0, 50).reshape(1, 1, 7, 7)
        taps = set(reference.im2col(x, (3, 3), dilation=(d, d))[:, 0].astype(int))
        fills = {(r, c): COLOURS[0] for r, c in np.ndindex(7, 7) if int(x[0, 0, r, c]) in taps}
        _grid(ax, np.full((7, 7), ""), f"dilation {d}", fills)


@picture("A transposed convolution paints a kernel for every pixel and adds up. How often each "
         "pixel of the result is painted, for inputs of 4x4: where the stride does not divide the "
         "kernel, in a checkerboard.")  # fmt: skip
def conv_transpose(figure):
    axes = _axes(figure, (7, 2.6), 9, 8, 10)
    for ax, (kernel, stride) in zip(axes, ((3, 2), (2, 2), (4, 2)), strict=True):
        weight = np.ones((1, 1, kernel, kernel))
        y = reference.conv_transpose2d(np.ones((1, 1, 4, 4)), weight, stride=(stride, stride))
        _heat(ax, y[0, 0], f"kernel {kernel}, stride {stride}", "{:.0f}")


@picture("F(4x4, 3x3): tiles of 6x6 pixels, four pixels apart, overlap by two. Each gives the 4x4 "
         "results of its colour with 36 multiplications instead of 144.")  # fmt: skip
def winograd(figure):
    axes = _axes(figure, (7, 3.4), 10, 8)
    _grid(axes[0], np.full((10, 10), ""), "padded image: four tiles")
    fills = {(r, c): COLOURS[2 * (r // 4) + c // 4] + "99" for r, c in np.ndindex(8, 8)}
    for k in range(4):
        shift = 0.08 * (k - 1.5)
        _outline(axes[0], 4 * (k // 2) + shift, 4 * (k % 2) + shift, 6, 6, COLOURS[k])
    _grid(axes[1], np.full((8, 8), ""), "results", fills)


@picture("Max-pooling 3x3 with stride 2: the winners (coloured), their values, and what the "
         "gradient 1 of every output becomes. A winner of two windows gets 2.")  # fmt: skip
def max_pool(figure):
    x = np.random.default_rng(6).integers(0, 30, (1, 1, 7, 7)).astype(float)
    y, switches = reference.max_pool2d(x, (3, 3), (2, 2))
    back = reference.max_unpool2d(np.ones_like(y), switches, (7, 7))
    axes = _axes(figure, (7, 2.5), 7, 3, 7)
    fills = {divmod(int(s), 7): COLOURS[0] + "aa" for s in switches.ravel()}
    _grid(axes[0], x[0, 0].astype(int), "x, winners coloured", fills)
    _grid(axes[1], y[0, 0].astype(int), "y")
    _grid(axes[2], back[0, 0].astype(int), "dx for dy = 1", fills)


@picture("Kernel 3, stride 2 on six pixels: rounding down leaves the last pixel out; ceil_mode "
         "adds a window, which is clipped to the image.")  # fmt: skip
def ceil_mode(figure):
    figure.set_size_inches(7, 2)
    for ax, mode in zip(figure.subplots(1, 2), (False, True), strict=True):
        x = np.arange(6.0).reshape(1, 1, 1, 6)
        y, _ = reference.max_pool2d(x, (1, 3), (1, 2), (0, 0, 0, 0), ceil_mode=mode)
        _grid(ax, np.array([["0", "1", "2", "3", "4", "5", ""]]), f"ceil_mode={mode}")
        for k in range(y.shape[3]):
            _outline(ax, 1.2 + 0.4 * k, 2 * k, 0.2, 3, COLOURS[k])
        ax.set_ylim(2.8, -0.2)
        ax.set_axis_off()
        ax.set_aspect("equal")


@picture("What the sum of a 3x3 window is divided by, on 5x5 pixels with stride 2 and padding 1: "
         "with the padding, without it; and on 6x6 with ceil_mode, whose last windows reach beyond "
         "even the padding.")  # fmt: skip
def avg_pool(figure):
    axes = _axes(figure, (7, 2.4), 3, 3, 4)
    for ax, extent, options in zip(
        axes, (5, 5, 6),
        ({}, {"count_include_pad": False}, {"ceil_mode": True}), strict=True,
    ):  # fmt: skip
        # The mean of ones at the real taps alone is (real taps) / count.
        x = np.ones((1, 1, extent, extent))
        real = reference.im2col(x, (3, 3), (2, 2), (1, 3, 1, 3))
        y = reference.avg_pool2d(x, (3, 3), (2, 2), (1,) * 4, **options)[0, 0]
        side = int(np.sqrt(real.shape[1]))
        counts = real.sum(0).reshape(side, side)[: y.shape[0], : y.shape[1]] / y
        _heat(ax, counts, ", ".join(f"{k}={v}" for k, v in options.items()) or "default", "{:.0f}")


@picture("ReLU, its gradient for dy = 1, and a bias that moves the kink to -b.")
def relu(figure):
    figure.set_size_inches(7, 2.2)
    left, right = figure.subplots(1, 2)
    x = np.linspace(-2, 2, 401).reshape(1, 1, -1)
    left.plot(x[0, 0], reference.relu(x)[0, 0], color=COLOURS[0], label="relu(x)")
    for k, b in enumerate((-1.0, 1.0)):
        y = reference.bias_relu(x, np.array([b]))
        left.plot(x[0, 0], y[0, 0], color=COLOURS[k + 1], label=f"relu(x + {b:g})", lw=1)
    gradient = reference.relu_backward(np.ones_like(x), reference.relu(x))
    right.plot(x[0, 0], gradient[0, 0], color=COLOURS[3], label="gradient")
    for ax in (left, right):
        ax.legend(frameon=False)


@picture("Logits, their softmax, and the gradient of the cross-entropy: softmax minus target. It "
         "sums to 0 and pulls up the one right class.")  # fmt: skip
def cross_entropy(figure):
    figure.set_size_inches(7, 2)
    logits, target = np.array([1.0, 3.0, 0.2, 1.8, -1.0]), np.eye(5)[3]
    p = np.exp(logits - logits.max())
    p /= p.sum()
    panels = zip(
        figure.subplots(1, 3), (logits, p, p - target), ("logits z", "softmax p", "p - t"),
        strict=True,
    )  # fmt: skip
    for ax, values, title in panels:
        ax.bar(range(5), values, color=[COLOURS[1] if k == 3 else COLOURS[0] for k in range(5)])
        ax.axhline(0, color="black", lw=0.5)
        ax.set_title(title, fontsize=9)


@picture("Which channels j (across) enter the scale of channel i (down), for windows of 5 and of 4 "
         "over 8 channels: clipped at the ends. Backward reads the same matrix by columns; for an "
         "even size that is another window.")  # fmt: skip
def lrn(figure):
    axes = _axes(figure, (7, 2.5), 8, 8, 8)
    for ax, size, turned in zip(axes, (5, 4, 4), (False, False, True), strict=True):
        # The scale of unit images, one for each channel, shows whom the channel reaches.
        unit = np.eye(8).reshape(8, 8, 1, 1)
        _, scale = reference.lrn(unit, size, 1.0, 0.75, 1.0)
        reach = scale[:, :, 0, 0].T - 1
        reach = reach.T if turned else reach
        fills = {(r, c): COLOURS[1 if turned else 0] for r, c in np.argwhere(reach).tolist()}
        title = f"size {size}, backward" if turned else f"size {size}"
        _grid(ax, np.full((8, 8), ""), title, fills)


@picture("Left: two channels before and after normalisation. Right: the gradient that comes in has "
         "a mean and follows xh; in what goes out, both are next to 0, for a shift or a stretch of "
         "x does not change y.")  # fmt: skip
def batchnorm(figure):
    figure.set_size_inches(7, 2.3)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((64, 2, 4, 4)) * [[[[0.5]], [[2.0]]]] + [[[[3.0]], [[-2.0]]]]
    y, mean, _, inv_std = reference.batchnorm_train(x, np.ones(2), np.zeros(2), 1e-5)
    before, after, slopes = figure.subplots(1, 3)
    for ax, values, title in ((before, x, "x"), (after, y, "xh")):
        for c in range(2):
            ax.hist(values[:, c].ravel(), 40, color=COLOURS[c], alpha=0.7)
        ax.set_title(title, fontsize=9)
    dy = draw.standard_normal(x.shape) + 0.5 + 0.8 * y
    dx, _, _ = reference.batchnorm_backward(dy, x, np.ones(2), mean, inv_std)
    for k, gradient in enumerate((dy, dx)):
        values = [gradient[:, 0].mean(), (gradient * y)[:, 0].mean()]
        slopes.bar(np.arange(2) + 0.3 * k, values, 0.3, color=COLOURS[2 + k], label=("dy", "dx")[k])
    slopes.set_xticks([0.15, 1.15], ["mean", "mean of (. xh)"])
    slopes.legend(frameon=False)


@picture("Masks of p = 0.5 for steps 0, 1 and 2 of one seed: element i takes word i mod 4 of block "
         "i // 4 (framed), and nothing is stored between the steps.")  # fmt: skip
def dropout(figure):
    for step, ax in enumerate(_axes(figure, (7, 2.4), 8, 8, 8)):
        mask = reference.dropout_mask((8, 8), 0.5, 1, step)
        fills = {(r, c): COLOURS[0] for r, c in np.argwhere(mask).tolist()}
        _grid(ax, np.full((8, 8), ""), f"step {step}: {mask.sum()} of 64 kept", fills)
        for k in range(16):
            _outline(ax, k // 2, 4 * (k % 2), 1, 4, COLOURS[1])


@picture("60 steps from the same point down a long valley, 25 times steeper across than along.")
def optimisers(figure):
    figure.set_size_inches(7, 2.8)
    ax = figure.subplots()
    curvature = np.array([1.0, 25.0])
    a, b = np.meshgrid(np.linspace(-5, 1, 80), np.linspace(-1.2, 1.5, 60))
    ax.contour(a, b, a**2 + 25 * b**2, 12, colors="#cccccc", linewidths=0.6)
    for k, (name, step) in enumerate(_optimisers().items()):
        point = np.array([-4.5, 1.2])
        path = [point.copy()]
        for t in range(1, 61):
            step(point, curvature * point, t)
            path.append(point.copy())
        ax.plot(*np.transpose(path), ".-", ms=3, lw=1, color=COLOURS[k], label=name)
    ax.legend(frameon=False)


def _optimisers():
    """name -> function (values, gradient, step number) that steps."""
    velocity, nesterov = np.zeros(2), np.zeros(2)
    mean, square = np.zeros(2), np.zeros(2)
    return {
        "SGD": lambda p, g, t: reference.sgd_step(p, g, None, 0.03),
        "momentum 0.9": lambda p, g, t: reference.sgd_step(p, g, velocity, 0.01, 0.9),
        "Nesterov 0.9": lambda p, g, t: reference.sgd_step(p, g, nesterov, 0.01, 0.9, True),
        "Adam": lambda p, g, t: reference.adam_step(
            p, g, mean, square, t, 0.2, (0.9, 0.999), 1e-8
        ),
    }
