"""Batch normalisation: a channel's statistics, and the three terms of its gradient."""

import numpy as np

from kernels.geometry import pair
from kernels.reference import batchnorm_backward, batchnorm_eval_backward, batchnorm_train
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    options.count("--batch", 3, "Number of images."),
    options.count("--channels", 2, "Channels."),
    options.integers("--size", (1, 2), "Height and width of the images."),
    options.option("--eps", 1e-5, "What is added to the variance.", type=float),
)


class Normalised:
    """A batch of small integers, normalised, with gradients at its output."""

    def __init__(self, shape, eps):
        self.x = build.whole_numbers(shape, 0, 9, seed=7)
        self.dy = build.whole_numbers(shape, -2, 4, seed=8)
        self.gamma = build.whole_numbers(shape[1:2], 1, 3, seed=9)
        self.beta = build.whole_numbers(shape[1:2], -1, 1, seed=10)
        self.eps, self.shape = eps, shape
        self.count = shape[0] * shape[2] * shape[3]
        self.y, self.mean, self.var, self.inv_std = self.run(self.x)
        ones, zeros = np.ones_like(self.gamma), np.zeros_like(self.gamma)
        self.normal = batchnorm_train(self.x, ones, zeros, eps)[0]

    def run(self, x):
        """(y, mean, var, inv_std) of other values."""
        return batchnorm_train(x, self.gamma, self.beta, self.eps)

    def gradients(self, dy):
        """(dx, dgamma, dbeta) from a gradient of y."""
        return batchnorm_backward(dy, self.x, self.gamma, self.mean, self.inv_std)

    def place(self, name):
        """The place of an element in the grids of `grids`: a row an image, a column a position."""
        _, channels, h, w = self.shape

        def find(element):
            n, c, r, column = (int(i) for i in np.unravel_index(element, self.shape))
            return self.name(name, c), (n, r * w + column)

        return find

    def name(self, name, channel) -> str:
        """The name and the title of a channel's grid."""
        return f"{name}[{channel}]" if self.shape[1] > 1 else name

    def where(self, element) -> str:
        """The channel, the image and the position of an element."""
        n, c, r, column = (int(i) for i in np.unravel_index(element, self.shape))
        return f"channel {c}, image {n}, position {r},{column}"

    def grids(self, values, name, kind):
        """A grid a channel: a row for every image, a column for every position."""
        n, channels, h, w = self.shape
        positions = [f"{r},{c}" for r in range(h) for c in range(w)]
        return tuple(
            build.grid(
                self.name(name, c), self.name(name, c), kind, values[:, c].reshape(n, h * w),
                columns=positions,
            )
            for c in range(channels)
        )  # fmt: skip

    def channel(self, name, c) -> dict:
        """Marks of a whole channel."""
        n, _, h, w = self.shape
        return {self.name(name, c): tuple((i, p) for i in range(n) for p in range(h * w))}


def explain(batch, channels, size, eps) -> Explanation:
    """The steps of a batch normalisation in training, and of its gradient."""
    shape = (batch, channels, *pair("size", size))
    build.check_cells(the_batch=int(np.prod(shape)))
    build.check_finite(eps=eps)
    if eps <= 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    n = Normalised(shape, eps)
    steps = _statistics(n), _normalise(n), _spread(n), _terms(n)
    shown = ("x", str(shape)), ("eps", f"{eps:g}")
    return Explanation(
        "batchnorm", "batchnorm: each channel by its own mean and variance", shown, steps
    )


def _statistics(n) -> Step:
    table = np.array([n.mean, n.var, n.var * n.count / (n.count - 1), n.inv_std])
    names = ("mean", "biased variance", "unbiased variance", "1 / sqrt(var + eps)")

    def frame(c):
        return Frame(
            f"channel {c}: {n.count} values with mean {build.number(n.mean[c])} and squared "
            f"deviations of mean {build.number(n.var[c])}",
            n.channel("x", c),
            {"statistics": tuple((row, c) for row in range(4))},
        )

    return Step(
        "Statistics, channel by channel",
        (
            f"A channel's mean and variance run over {n.shape[0]} images and {n.shape[2]}x"
            f"{n.shape[3]} positions: m = {n.count} values. Rows are images, columns positions.",
            "The batch is normalised by the biased variance, divided by m. The running average "
            f"for evaluation takes the unbiased one, divided by m - 1 = {n.count - 1}: two "
            "numbers that are easily confused.",
        ),
        (
            *n.grids(n.x, "x", "input"),
            build.grid(
                "statistics", "statistics, by channel", "matrix", table, names, show=build.number
            ),
        ),
        frames=tuple(frame(c) for c in range(n.shape[1])),
    )


def _normalise(n) -> Step:
    place = n.place("y")

    def frame(element):
        c = int(np.unravel_index(element, n.shape)[1])
        return Frame(
            f"{n.where(element)}: xh = ({build.number(n.x.flat[element])} - "
            f"{build.signed(n.mean[c])}) · {build.number(n.inv_std[c])} = "
            f"{build.number(n.normal.flat[element])}; y = {build.number(n.gamma[c])} · xh + "
            f"{build.signed(n.beta[c])} = {build.number(n.y.flat[element])}",
            {
                **build.places([element], n.place("x")),
                **build.places([element], n.place("xh")),
            },
            build.places([element], place),
        )

    return Step(
        "Normalise, scale and shift",
        (
            "In every channel xh has mean 0 and variance var / (var + eps), which is almost 1 "
            "where eps is small beside var; gamma and beta are learned, so that the network can "
            "undo it.",
            "    xh = (x - mean) / sqrt(var + eps)      y = gamma xh + beta",
        ),
        (
            *n.grids(n.x, "x", "input"),
            *n.grids(n.normal, "xh", "matrix"),
            *n.grids(n.y, "y", "output"),
        ),
        frames=tuple(frame(element) for element in range(n.x.size)),
    )


def _spread(n) -> Step:
    dependence = build.reads(lambda dy: n.gradients(dy)[0], n.dy)
    dx, place = n.gradients(n.dy)[0], n.place("dy")

    def frame(element):
        lands = np.flatnonzero(dependence[:, element])
        return Frame(
            f"{n.where(element)}: dy = {build.number(n.dy.flat[element])} changes {len(lands)} "
            f"of {n.x.size} elements of dx: its whole channel",
            build.places(lands, n.place("dx")),
            build.places([element], place),
        )

    return Step(
        "Backward: every gradient reaches the whole channel",
        (
            "Each x moves the mean and the variance of its channel, and with them every y of it. "
            "So each dy lands in every dx of the channel, and in no other.",
        ),
        (*n.grids(n.dy, "dy", "gradient"), *n.grids(dx, "dx", "gradient")),
        build.link(dependence, n.place("dx"), place),
        tuple(frame(element) for element in range(n.dy.size)),
    )


def _terms(n) -> Step:
    dx, dgamma, dbeta = n.gradients(n.dy)
    direct = batchnorm_eval_backward(n.dy, n.x, n.gamma, n.mean, n.inv_std)[0]
    scale = (n.gamma * n.inv_std)[:, None, None]
    by_mean = np.broadcast_to(-scale * (dbeta / n.count)[:, None, None], n.shape)
    by_variance = -scale * n.normal * (dgamma / n.count)[:, None, None]
    rest = np.abs(direct + by_mean + by_variance - dx).max()

    def frame(element):
        parts = [build.signed(term.flat[element]) for term in (direct, by_mean, by_variance)]
        names = ("direct", "by mean", "by variance")
        marks = {}
        for name in names:
            marks |= build.places([element], n.place(name))
        return Frame(
            f"{n.where(element)}: {' + '.join(parts)} = {build.number(dx.flat[element])}",
            marks,
            build.places([element], n.place("dx")),
        )

    return Step(
        "Backward: three terms",
        (
            "The first term is what constant statistics would give, and what evaluation gives; the "
            "others go through the mean and the variance:",
            "    dx = gamma / sqrt(var + eps) (dy - mean(dy) - xh mean(dy xh))",
            "They take out of dy what only shifts or stretches the channel, for y does not depend "
            "on that. So dx sums to "
            f"{', '.join(build.number(s) for s in _clean(dx.sum((0, 2, 3))))} in the channels. "
            f"The three terms differ from the kernel's dx by {rest:.1g} at most. dgamma = sum dy "
            f"xh = {', '.join(map(build.number, dgamma))}; dbeta = sum dy = "
            f"{', '.join(map(build.number, dbeta))}.",
        ),
        (
            *n.grids(direct, "direct", "gradient"),
            *n.grids(by_mean, "by mean", "gradient"),
            *n.grids(by_variance, "by variance", "gradient"),
            *n.grids(dx, "dx", "output"),
        ),
        frames=tuple(frame(element) for element in range(n.dy.size)),
    )


def _clean(values):
    """Sums that are zero but for rounding are shown as zero."""
    return np.where(np.abs(values) < 1e-12, 0.0, values)
