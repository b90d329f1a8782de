"""Dropout: how a counter becomes a mask that nobody has to store."""

import numpy as np

from kernels.geometry import pair
from kernels.reference import dropout, dropout_mask
from kernels.reference.dropout import ROUNDS, check_dropout, drop_below, philox4x32
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step

OPTIONS = (
    options.integers("--size", (3, 4), "Height and width of the array."),
    options.option("--p", 0.5, "Probability of being dropped.", type=float),
    options.count("--seed", 0, "Seed of the random numbers.", minimum=0),
    options.count("--step", 0, "Number of the training step.", minimum=0),
)
_LOW = 0xFFFFFFFF


class Dropped:
    """A dropout of an array (H, W) of small integers."""

    def __init__(self, shape, p, seed, step):
        check_dropout(p, seed, step)
        self.shape, self.p, self.seed, self.step = shape, p, seed, step
        self.x = build.whole_numbers(shape, 1, 9)
        self.y = self.run(self.x)
        self.mask = dropout_mask(shape, p, seed, step)
        self.threshold = int(drop_below(p))
        blocks = -(-self.x.size // 4)
        self.words = np.stack([self.block(b) for b in range(blocks)])

    def run(self, values):
        """Other values through the same dropout."""
        return dropout(values, self.p, self.seed, self.step)

    def counter(self, block) -> tuple:
        """Philox's counter for a block."""
        return block & _LOW, block >> 32, self.step & _LOW, self.step >> 32

    @property
    def key(self) -> tuple:
        """Philox's key."""
        return self.seed & _LOW, self.seed >> 32

    def block(self, block, rounds=ROUNDS) -> np.ndarray:
        """The four words of a block, after so many rounds."""
        return np.array([int(w) for w in philox4x32(self.counter(block), self.key, rounds)])

    def word(self, element) -> int:
        """The random word that decides about an element."""
        return int(self.words.flat[element])

    def place(self, name):
        """The place of an element in a grid of the array's shape."""
        return build.in_matrix(name, self.shape)

    def mask_grid(self, mask, title, name="mask"):
        """A grid of ones and dots."""
        tones = np.where(mask, "", "blank")
        return build.grid(
            name, title, "matrix", mask, tones=tones, show=lambda kept: "1" if kept else "·"
        )


def explain(size, p, seed, step) -> Explanation:
    """The steps of a dropout: random words, mask, scaling, and the same again backward."""
    shape = pair("size", size)
    build.check_cells(the_array=shape[0] * shape[1])
    d = Dropped(shape, p, seed, step)
    steps = _words(d), _rounds(d), _mask(d), _backward(d)
    shown = ("x", str(shape)), ("p", f"{p:g}"), ("seed", str(seed)), ("step", str(step))
    return Explanation("dropout", "dropout: a mask that is computed, not stored", shown, steps)


def _hex(word) -> str:
    return f"{int(word):08x}"


def _words(d) -> Step:
    index = np.arange(d.x.size).reshape(d.shape)

    def frame(block):
        elements = range(4 * block, min(4 * block + 4, d.x.size))
        counter = " ".join(map(_hex, d.counter(block)))
        return Frame(
            f"block {block}: counter {counter}, key {' '.join(map(_hex, d.key))}: words for "
            f"elements {elements[0]} to {elements[-1]}",
            {
                **build.places(elements, d.place("elements")),
                "words": tuple((block, w) for w in range(4)),
            },
        )

    tones = np.where(np.arange(d.words.size).reshape(d.words.shape) < d.x.size, "", "blank")
    return Step(
        "A counter becomes random words",
        (
            "Philox has no state that moves on: it maps a counter and a key to four random words "
            "of 32 bits. Element i takes word i mod 4 of block i // 4; the counter is (block, "
            "step), the key the seed. So any thread can compute any element's word by itself.",
        ),
        (
            build.grid("elements", "elements", "input", index),
            build.grid("words", "words (hexadecimal), a block a row", "matrix", d.words,
                       show=_hex, tones=tones),
        ),
        frames=tuple(frame(block) for block in range(len(d.words))),
    )  # fmt: skip


def _rounds(d) -> Step:
    one, other = (
        np.stack([d.block(block, rounds) for rounds in range(ROUNDS + 1)]) for block in (0, 1)
    )
    bits = [
        sum(int(a ^ b).bit_count() for a, b in zip(*rows, strict=True))
        for rows in zip(one, other, strict=True)
    ]

    def frame(rounds):
        row = tuple((rounds, word) for word in range(4))
        return Frame(
            f"after {build.counted(rounds, 'round')}: {bits[rounds]} of 128 bits differ",
            {"block0": row, "block1": row},
            {"bits": ((rounds, 0),)},
        )

    return Step(
        "Ten rounds of mixing",
        (
            "Blocks 0 and 1 have counters that differ in one bit. Each round multiplies two words "
            "by constants, and mixes the halves of the products with the other words and the key; "
            "after a few rounds half of the bits differ, as if the two had nothing to do with "
            "each other.",
        ),
        (
            build.grid("block0", "block 0, by round", "matrix", one, show=_hex),
            build.grid("bits", "bits that differ", "output", np.array(bits)[:, None],
                       columns=("bits",), levels=np.array(bits)[:, None] / 128),
            build.grid("block1", "block 1, by round", "matrix", other, show=_hex),
        ),
        frames=tuple(frame(rounds) for rounds in range(ROUNDS + 1)),
        shown=-1,
    )  # fmt: skip


def _mask(d) -> Step:
    dependence = build.reads(d.run, d.x)

    def frame(element):
        kept = bool(d.mask.flat[element])
        rule = "at least" if kept else "below"
        fate = f"kept, {build.number(d.x.flat[element])} / {1 - d.p:g} =" if kept else "dropped:"
        return Frame(
            f"element {element}: word {_hex(d.word(element))} is {rule} {_hex(d.threshold)}: "
            f"{fate} {build.number(d.y.flat[element])}",
            {
                **build.places([element], d.place("x")),
                **build.places([element], d.place("words")),
                **build.places([element], d.place("mask")),
            },
            build.places([element], d.place("y")),
        )

    words = d.words.reshape(-1)[: d.x.size].reshape(d.shape)
    kept = int(d.mask.sum())
    return Step(
        "Keep and scale",
        (
            f"An element is kept where its word is at least 2^32 p = {d.threshold}, "
            f"{_hex(d.threshold)} in hexadecimal: here {kept} of {d.x.size}, "
            f"{kept / d.x.size:.3g} of them, where {1 - d.p:g} are expected.",
            f"What is kept is divided by 1 - p = {1 - d.p:g}, so that the expected sum stays the "
            f"same (here {build.number(d.x.sum())} before, {build.number(d.y.sum())} after) and "
            "evaluation has nothing to do.",
        ),
        (
            build.grid("x", "x", "input", d.x),
            build.grid("words", "words", "matrix", words, show=_hex),
            d.mask_grid(d.mask, "mask"),
            build.grid("y", "y", "output", d.y),
        ),
        build.link(dependence, d.place("y"), d.place("x")),
        tuple(frame(element) for element in range(d.x.size)),
    )


def _backward(d) -> Step:
    dy = build.weights(d.shape, seed=3)
    dx = d.run(dy)
    again = dropout_mask(d.shape, d.p, d.seed, d.step)
    next_step = (d.step + 1) % 2**64
    following = dropout_mask(d.shape, d.p, d.seed, next_step)
    same = "the same" if np.array_equal(again, d.mask) else "another"
    differ = int(np.sum(following != d.mask))
    dependence = build.reads(d.run, dy)
    return Step(
        "Backward: the mask is computed again",
        (
            "The gradient goes through the same mask and the same scale: dx = dropout(dy). The "
            "mask was not kept; p, seed and step give "
            f"{same} again, on any backend and any number of threads.",
            f"The next step, {next_step}, has another mask: {differ} of {d.x.size} elements "
            "differ.",
        ),
        (
            build.grid("dy", "dy", "gradient", dy),
            d.mask_grid(again, f"mask of step {d.step}"),
            build.grid("dx", "dx", "gradient", dx),
            d.mask_grid(following, f"mask of step {next_step}", "following"),
        ),
        build.link(dependence, d.place("dx"), d.place("dy")),
    )
