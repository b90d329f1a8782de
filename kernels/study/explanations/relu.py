"""relu: a bias, the rectification, and the gradients that go through it or stop."""

import math

import numpy as np

from kernels.geometry import pair
from kernels.reference import bias_relu, bias_relu_backward, channel_sums, relu_backward
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    options.integers("--size", (2, 3), "Height and width of the images."),
    options.count("--channels", 2, "Channels."),
    options.count("--batch", 2, "Number of images."),
)


class Rectified:
    """Images (N, C, H, W) of small integers, a bias for each channel, gradients at the result."""

    def __init__(self, shape):
        self.shape = shape
        self.x = build.whole_numbers(shape, -5, 5)
        self.bias = build.weights(shape[1:2], seed=2)
        self.y = bias_relu(self.x, self.bias)
        self.dy = build.weights(shape, seed=3)
        self.dx, self.dbias = bias_relu_backward(self.dy, self.y)

    def place(self, name):
        """The place of an element in the grids of `planes`."""
        return build.in_planes(name, self.shape)

    def planes(self, values, name, kind):
        """A grid a plane."""
        return tuple(
            build.grid(title, title, kind, values[n, c])
            for n, c in np.ndindex(self.shape[:2])
            for title in (build.plane_name(name, self.shape, n, c),)
        )

    def channels(self, values, name, kind):
        """A grid of one row, a number a channel."""
        return build.grid(name, f"{name}, by channel", kind, values[None], ("",))

    def where(self, name, element) -> str:
        """The name of a plane and the row and column in it."""
        plane, at = self.place(name)(element)
        return f"{plane} at {at}"

    def channel(self, element) -> int:
        """The channel that an element belongs to."""
        return int(np.unravel_index(element, self.shape)[1])


def explain(size, channels, batch) -> Explanation:
    """The steps of a bias with ReLU, and of their gradients."""
    shape = (batch, channels, *pair("size", size))
    build.check_cells(the_images=math.prod(shape))
    r = Rectified(shape)
    steps = _forward(r), _backward(r), _bias(r)
    shown = ("x", str(shape)), ("bias", str((channels,)))
    return Explanation("relu", "relu: what is above 0 goes through", shown, steps)


def _forward(r) -> Step:
    reads = build.reads(lambda x: bias_relu(x, r.bias), r.x)
    of_bias = build.reads(lambda bias: bias_relu(r.x, bias), r.bias)
    place_bias = build.in_matrix("bias", (1, r.shape[1]))

    def frame(element):
        c = r.channel(element)
        total = r.x.flat[element] + r.bias[c]
        return Frame(
            f"{r.where('y', element)}: max({build.number(r.x.flat[element])} + "
            f"{build.signed(r.bias[c])}, 0) = max({build.number(total)}, 0) = "
            f"{build.number(r.y.flat[element])}",
            build.places([element], r.place("x")) | build.places([c], place_bias),
            build.places([element], r.place("y")),
        )

    zeros = int(np.count_nonzero(r.y == 0))
    return Step(
        "A bias, and the larger of that and 0",
        (
            "All pixels of a channel share one bias. What is not above 0 becomes 0: here "
            f"{zeros} of {r.y.size} values. relu alone is the same with a bias of 0.",
            "    y = max(x + bias, 0)",
            "The two are one kernel, for each is a pass over memory that hardly computes anything: "
            "together they read and write everything once.",
        ),
        (
            *r.planes(r.x, "x", "input"),
            r.channels(r.bias, "bias", "weight"),
            *r.planes(r.y, "y", "output"),
        ),
        (
            *build.link(reads, r.place("y"), r.place("x")),
            *build.link(of_bias, r.place("y"), place_bias),
        ),
        tuple(frame(element) for element in range(r.x.size)),
    )


def _backward(r) -> Step:
    dependence = build.reads(lambda dy: relu_backward(dy, r.y), r.dy)

    def frame(element):
        y, dy = r.y.flat[element], r.dy.flat[element]
        rule = "above 0: it goes through" if y > 0 else "not above 0: it stops"
        return Frame(
            f"{r.where('dx', element)}: dy = {build.number(dy)}, y = {build.number(y)} is {rule}, "
            f"dx = {build.number(r.dx.flat[element])}",
            build.places([element], r.place("dy")) | build.places([element], r.place("y")),
            build.places([element], r.place("dx")),
        )

    return Step(
        "Backward: through, or nothing",
        (
            "The slope is 1 where the result is above 0, and 0 elsewhere; at the kink itself 0 is "
            "taken. The result tells which, so that x need not be kept.",
            "    dx = dy where y > 0, else 0",
            f"Of {r.dy.size} gradients {int(dependence.any(axis=0).sum())} go through.",
        ),
        (
            *r.planes(r.dy, "dy", "gradient"),
            *r.planes(r.y, "y", "output"),
            *r.planes(r.dx, "dx", "gradient"),
        ),
        build.link(dependence, r.place("dx"), r.place("dy")),
        tuple(frame(element) for element in range(r.dy.size)),
    )


def _bias(r) -> Step:
    dependence = build.reads(channel_sums, r.dx)
    place = build.in_matrix("dbias", (1, r.shape[1]))

    def frame(c):
        terms = r.dx[:, c].reshape(-1)
        return Frame(
            f"dbias of channel {c}: the sum of {build.counted(terms.size, 'gradient')} of dx is "
            f"{build.number(r.dbias[c])}",
            build.places(np.flatnonzero(dependence[c]), r.place("dx")),
            build.places([c], place),
        )

    return Step(
        "Backward to the bias: a sum over the channel",
        (
            "A bias was added to every pixel of its channel, in all images, and so it receives the "
            "sum of their gradients. channel_sums does the same for a convolution's bias.",
        ),
        (*r.planes(r.dx, "dx", "gradient"), r.channels(r.dbias, "dbias", "gradient")),
        build.link(dependence, place, r.place("dx")),
        tuple(frame(c) for c in range(r.shape[1])),
    )
