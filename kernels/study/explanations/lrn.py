"""Local response normalisation: the window over the channels, and what alpha means to whom."""

import numpy as np

from kernels.reference import lrn, lrn_backward
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    options.count("--channels", 8, "Channels of the single pixel that is shown."),
    options.count("--size", 5, "Channels of a window."),
    options.option("--alpha", 1e-4, "Weight of the window's sum of squares.", type=float),
    options.option("--beta", 0.75, "Exponent.", type=float),
    options.option("--k", 2.0, "What is added to the sum.", type=float),
    options.flag("--size-normalized", "Divide alpha by the size, as Caffe, PyTorch and ONNX do."),
)


class Normalisation:
    """The settings of an lrn, and the two kernels that take them."""

    def __init__(self, size, alpha, beta, k, size_normalized):
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.size_normalized = size_normalized

    @property
    def settings(self):
        """In the order that the kernels take them."""
        return self.size, self.alpha, self.beta, self.k, self.size_normalized

    @property
    def effective_alpha(self) -> float:
        """What the sum of squares is multiplied by."""
        return self.alpha / self.size if self.size_normalized else self.alpha

    def forward(self, x):
        """(y, scale)."""
        return lrn(x, *self.settings)

    def backward(self, dy, x):
        """dx, from the scale of x."""
        return lrn_backward(dy, x, self.forward(x)[1], *self.settings)


def explain(channels, size, alpha, beta, k, size_normalized) -> Explanation:
    """The steps of an lrn of one pixel, and of its gradient."""
    build.check_cells(the_table=8 * channels)
    build.check_finite(alpha=alpha, beta=beta, k=k)
    if k <= 0:
        raise ValueError(f"k must be above 0, got {k}")
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    how = Normalisation(size, alpha, beta, k, size_normalized)
    x = build.whole_numbers((1, channels, 1, 1), -120, 120, seed=5)
    dy = build.weights(x.shape, seed=4)
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            build.check_finite(alpha_times_size=alpha * size)
            steps = _window(how, x), _conventions(how, x), _mirror(how, x, dy), _terms(how, x, dy)
    except ArithmeticError:
        raise ValueError(
            f"alpha {alpha:g}, beta {beta:g} and k {k:g} make scales or powers of them that are "
            "larger than any float"
        ) from None
    shown = [("x", str(x.shape)), ("size", str(size)), ("alpha", f"{alpha:g}")]
    shown += [("beta", f"{beta:g}"), ("k", f"{k:g}")]
    shown.append(("size_normalized", "yes" if size_normalized else "no"))
    return Explanation(
        "lrn", "lrn: a channel is damped by its neighbours", tuple(shown), steps
    )


def _columns(name, title, kind, columns: dict):
    """A grid with a row a channel and a named column for each array (1, C, 1, 1)."""
    values = np.stack([value.reshape(-1) for value in columns.values()], axis=1)
    return build.grid(name, title, kind, values, columns=tuple(columns))


def _window(how, x) -> Step:
    y, scale = how.forward(x)
    dependence = build.reads(lambda values: how.forward(values)[0], x)
    sums = (dependence @ (x * x).reshape(-1)).reshape(x.shape)

    def frame(channel):
        window = np.flatnonzero(dependence[channel])
        return Frame(
            f"channel {channel}: the window is {_channels(window)}; scale = {how.k:g} + "
            f"{how.effective_alpha:g} · {build.number(sums.reshape(-1)[channel])} = "
            f"{build.number(scale.reshape(-1)[channel])}, y = "
            f"{build.number(x.reshape(-1)[channel])} · "
            f"{build.number(scale.reshape(-1)[channel])}^{0 - how.beta:g} = "
            f"{build.number(y.reshape(-1)[channel])}",
            {"x": tuple((int(c), column) for c in window for column in (0, 1))},
            {"y": tuple((channel, column) for column in range(3))},
        )

    before, after = how.size // 2, (how.size - 1) // 2
    place_y, place_x = (lambda c: ("y", (c, 2))), (lambda c: ("x", (c, 0)))
    return Step(
        "The window",
        (
            f"One pixel with {x.shape[1]} channels. The window of channel i reaches from i - "
            f"{before} to i + {after}, and is clipped at the first and last channel.",
            "    scale = k + alpha · sum of x^2 over the window\n    y = x · scale^-beta",
            f"At most {dependence.sum(axis=1).max()} channels are read for one, at the edges "
            f"{dependence.sum(axis=1).min()}.",
        ),
        (
            _columns("x", "x, by channel", "input", {"x": x, "x^2": x * x}),
            _columns("y", "y", "output", {"sum of x^2": sums, "scale": scale, "y": y}),
        ),
        build.link(dependence, place_y, place_x),
        tuple(frame(channel) for channel in range(x.shape[1])),
        shown=min(x.shape[1] - 1, before),
    )


def _channels(window) -> str:
    if len(window) == 1:
        return f"channel {window[0]}"
    return f"channels {window[0]} to {window[-1]}"


def _conventions(how, x) -> Step:
    size, alpha, beta, k, _ = how.settings
    paper, _ = lrn(x, size, alpha, beta, k, False)
    others, _ = lrn(x, size, alpha, beta, k, True)
    times, _ = lrn(x, size, alpha * size, beta, k, True)
    same = "equal to" if np.allclose(times, paper) else "not equal to"
    text = (
        "The paper multiplies alpha with the sum over the window. Caffe, PyTorch and ONNX take the "
        "mean instead: they divide alpha by the size (size_normalized). The same number gives "
        f"another result there. With {size} times the alpha, {alpha * size:g}, it is {same} the "
        "paper's.",
    )
    if size % 2 == 0:
        text += (
            f"An even size has no middle. The window here reaches {size // 2} before and "
            f"{(size - 1) // 2} after, as in PyTorch; in ONNX it is the other way round.",
        )
    columns = {
        f"alpha {alpha:g}": paper,
        f"{alpha:g} / {size}": others,
        f"{alpha * size:g} / {size}": times,
    }
    grid = _columns("y", "y, by channel", "output", columns)
    return Step("What alpha means to whom", text, (grid,))


def _mirror(how, x, dy) -> Step:
    dependence = build.reads(lambda gradient: how.backward(gradient, x), dy)
    dx = how.backward(dy, x)

    def frame(channel):
        lands = np.flatnonzero(dependence[:, channel])
        return Frame(
            f"dy of channel {channel} = {build.number(dy.reshape(-1)[channel])} lands in "
            f"{_channels(lands)}: those that its window has read",
            {"dx": tuple((int(c), column) for c in lands for column in (0, 1))},
            {"dy": ((channel, 0),)},
        )

    often = dependence.sum(axis=1).reshape(x.shape)
    place_dx, place_dy = (lambda c: ("dx", (c, 0))), (lambda c: ("dy", (c, 0)))
    return Step(
        "Backward: where each gradient lands",
        (
            "x of a channel enters y of every channel whose window holds it. Seen from x, that is "
            f"the window mirrored: from i - {(how.size - 1) // 2} to i + {how.size // 2}.",
        ),
        (
            _columns("dy", "dy, by channel", "gradient", {"dy": dy}),
            _columns("dx", "dx", "gradient", {"dx": dx, "how many": often}),
        ),
        build.link(dependence, place_dx, place_dy),
        tuple(frame(channel) for channel in range(x.shape[1])),
        shown=min(x.shape[1] - 1, how.size // 2),
    )


def _terms(how, x, dy) -> Step:
    _, scale = how.forward(x)
    dx = how.backward(dy, x)
    direct = dy * scale**-how.beta
    columns = {"dy": dy, "direct": direct, "by scales": dx - direct, "dx": dx}

    def frame(c):
        own, through, total = (
            build.signed(columns[name].reshape(-1)[c]) for name in ("direct", "by scales", "dx")
        )
        marks = {"dx": tuple((c, column) for column in range(len(columns)))}
        return Frame(f"channel {c}: {own} + {through} = {total}", strong=marks)

    return Step(
        "Backward: two terms",
        (
            "The first term is what a constant scale would give; the second goes through the "
            "scales, and can turn the sign:",
            "    dx_i = dy_i scale_i^-beta\n"
            "           - 2 alpha beta x_i · sum of dy_j x_j scale_j^(-beta - 1), i in window(j)",
        ),
        (_columns("dx", "dx, by channel", "gradient", columns),),
        frames=tuple(frame(channel) for channel in range(x.shape[1])),
    )
