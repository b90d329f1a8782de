"""LeNet-5: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
recognition", Proceedings of the IEEE, 1998, section II.B.

Two forms. ``variant="1998"`` is the paper's: scaled tanh, trainable sub-sampling, a C3 whose maps
see only some of S2, and Euclidean RBF outputs against bitmaps of the characters: 60,000 trainable
parameters. ``variant="modern"`` keeps the sizes but uses ReLU, max-pooling, a full C3 and softmax
logits: 61,706 parameters.

Both take 1x32x32 images, in which the 28x28 digit is centred.
"""

import click
import numpy as np

from minidl import cli, nn, ops, optim
from minidl.architecture import Architecture, Recipe
from minidl.data.transforms import Compose, Normalize, Pad, RandomAffine
from minidl.nn import init
from minidl.tensor import Tensor

# Table I of the paper: the maps of S2 that each map of C3 sees.
C3_INPUTS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The targets of the output layer, 7x12 bitmaps of the ten digits. The paper shows its bitmaps only
# as a figure: these are drawn anew in its style.
GLYPHS = (
    """
    .......
    ..###..
    .#...#.
    #.....#
    #.....#
    #.....#
    #.....#
    #.....#
    #.....#
    .#...#.
    ..###..
    .......
    """,
    """
    .......
    ...#...
    ..##...
    .#.#...
    ...#...
    ...#...
    ...#...
    ...#...
    ...#...
    ...#...
    .#####.
    .......
    """,
    """
    .......
    .#####.
    #.....#
    ......#
    ......#
    .....#.
    ...##..
    .##....
    #......
    #......
    #######
    .......
    """,
    """
    .......
    #######
    .....#.
    ....#..
    ...#...
    ..###..
    .....#.
    ......#
    ......#
    #.....#
    .#####.
    .......
    """,
    """
    .......
    .....#.
    ....##.
    ...#.#.
    ..#..#.
    .#...#.
    #....#.
    #######
    .....#.
    .....#.
    .....#.
    .......
    """,
    """
    .......
    #######
    #......
    #......
    #.###..
    ##...#.
    ......#
    ......#
    ......#
    #....#.
    .####..
    .......
    """,
    """
    .......
    ..####.
    .#.....
    #......
    #......
    #.###..
    ##...#.
    #.....#
    #.....#
    .#...#.
    ..###..
    .......
    """,
    """
    .......
    #######
    ......#
    .....#.
    .....#.
    ....#..
    ....#..
    ...#...
    ...#...
    ..#....
    ..#....
    .......
    """,
    """
    .......
    .#####.
    #.....#
    #.....#
    #.....#
    .#####.
    #.....#
    #.....#
    #.....#
    #.....#
    .#####.
    .......
    """,
    """
    .......
    ..###..
    .#...#.
    #.....#
    #.....#
    .#...##
    ..###.#
    ......#
    ......#
    .....#.
    .####..
    .......
    """,
)


def digit_codes() -> np.ndarray:
    """(10, 84) float32: +1 where a glyph is inked, -1 elsewhere."""
    rows = [[c for c in glyph if c in ".#"] for glyph in GLYPHS]
    return np.array([[1 if c == "#" else -1 for c in row] for row in rows], np.float32)


class ScaledTanh(nn.Module):
    """f(a) = 1.7159 tanh(2a/3), for which f(1) = 1 and f(-1) = -1 (appendix A)."""

    def forward(self, x):
        return ops.tanh(x * (2 / 3)) * 1.7159


class Subsampling(nn.Module):
    """Sum of each 2x2 block times one trainable coefficient a map, plus one bias a map."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(np.empty((channels, 1, 1), np.float32))
        self.bias = nn.Parameter(np.zeros((channels, 1, 1), np.float32))
        _paper_init(self.weight, fan_in=4)

    def forward(self, x):
        return ops.avg_pool2d(x, 2) * 4.0 * self.weight + self.bias

    def multiply_adds(self, output_shape) -> int:
        return int(np.prod(output_shape))


class PartialConv(nn.Module):
    """C3: a 5x5 convolution of which only the 60 kernels of Table I exist.

    `weight` (60, 5, 5) holds them alone, so that every parameter is trained; forward sets them into
    the full (16, 6, 5, 5) weight, whose other kernels are zero.
    """

    def __init__(self):
        super().__init__()
        pairs = [(o, c) for o, inputs in enumerate(C3_INPUTS) for c in inputs]
        self.weight = nn.Parameter(np.empty((len(pairs), 5, 5), np.float32))
        self.bias = nn.Parameter(np.zeros(len(C3_INPUTS), np.float32))
        # Where each kernel of the full weight lies in the packed one; absent kernels read a zero.
        self.places = np.full((len(C3_INPUTS), 6), len(pairs))
        for place, pair in enumerate(pairs):
            self.places[pair] = place
        for inputs, kernel in zip((C3_INPUTS[o] for o, _ in pairs), range(len(pairs)), strict=True):
            with self.weight.mutate() as array:
                part = Tensor(array[kernel])
                _paper_init(part, fan_in=25 * len(inputs))

    def forward(self, x):
        absent = Tensor(np.zeros((1, 5, 5), self.weight.dtype)).to(self.weight.device)
        return ops.conv2d(x, ops.concatenate([self.weight, absent])[self.places], self.bias)

    def multiply_adds(self, output_shape) -> int:
        return self.weight.size * output_shape[1] * output_shape[2]


class EuclideanRBF(nn.Module):
    """y_i = sum_j (x_j - w_ij)^2 with fixed codes w (equation 7): the smallest is the class."""

    def __init__(self, codes: np.ndarray):
        super().__init__()
        self.register_buffer("codes", Tensor(codes))

    def forward(self, x):
        difference = x.reshape(x.shape[0], 1, -1) - self.codes
        return (difference * difference).sum(axis=2)

    def multiply_adds(self, output_shape) -> int:
        return self.codes.size


def _paper_init(weight: Tensor, fan_in: int) -> Tensor:
    """Uniform in +-2.4 / fan_in (section III.A of the appendix on initial weights)."""
    return init.uniform_(weight, -2.4 / fan_in, 2.4 / fan_in)


def lenet_1998(num_classes: int = 10) -> nn.Sequential:
    """The paper's network; outputs are (N, 10) squared distances. ValueError unless 10 classes."""
    if num_classes != 10:
        raise ValueError(f"num_classes must be 10, the digits that have bitmaps, got {num_classes}")
    model = nn.Sequential(
        {
            "c1": nn.Conv2d(1, 6, 5),
            "f1": ScaledTanh(),
            "s2": Subsampling(6),
            "f2": ScaledTanh(),
            "c3": PartialConv(),
            "f3": ScaledTanh(),
            "s4": Subsampling(16),
            "f4": ScaledTanh(),
            "c5": nn.Conv2d(16, 120, 5),
            "f5": ScaledTanh(),
            "flatten": nn.Flatten(),
            "f6": nn.Linear(120, 84),
            "squash6": ScaledTanh(),
            "output": EuclideanRBF(digit_codes()),
        }
    )
    for layer in (model.c1, model.c5, model.f6):
        _paper_init(layer.weight, fan_in=layer.weight[0].size)
        init.zeros_(layer.bias)
    return model


def lenet_modern(num_classes: int = 10) -> nn.Sequential:
    """ReLU, max-pooling, full connections; outputs are logits (N, num_classes)."""
    model = nn.Sequential(
        {
            "c1": nn.Conv2d(1, 6, 5),
            "relu1": nn.ReLU(inplace=True),
            "s2": nn.MaxPool2d(2),
            "c3": nn.Conv2d(6, 16, 5),
            "relu3": nn.ReLU(inplace=True),
            "s4": nn.MaxPool2d(2),
            "c5": nn.Conv2d(16, 120, 5),
            "relu5": nn.ReLU(inplace=True),
            "flatten": nn.Flatten(),
            "f6": nn.Linear(120, 84),
            "relu6": nn.ReLU(inplace=True),
            "output": nn.Linear(84, num_classes),
        }
    )
    for layer in (model.c1, model.c3, model.c5, model.f6):
        init.he_normal_(layer.weight)
        init.zeros_(layer.bias)
    return model


def map_loss(distances: Tensor, labels, j: float = 0.1) -> Tensor:
    """The discriminative loss y_c + log(e^-j + sum_i e^-y_i), averaged over images (equation 9)."""
    n = distances.shape[0]
    rubbish = Tensor(np.full((n, 1), -j, distances.dtype)).to(distances.device)
    correct = distances[np.arange(n), labels]
    return (correct + ops.logsumexp(ops.concatenate([-distances, rubbish], 1), axis=1)).mean()


def build(num_classes: int = 10, variant: str = "modern") -> nn.Sequential:
    """LeNet-5 in one of its two forms, "modern" or "1998". ValueError for another."""
    forms = {"modern": lenet_modern, "1998": lenet_1998}
    if variant not in forms:
        raise ValueError(f"variant must be one of {tuple(forms)}, got {variant!r}")
    return forms[variant](num_classes)


def recipe(variant: str = "modern") -> Recipe:
    """The default training; digits are distorted a little, as in section III.C of the paper."""
    # The paper's scale for both: background -0.1, ink 1.175 (mean about 0, variance about 1).
    scale = Compose(Pad(2), Normalize(0.1 / 1.275, 1 / 1.275))
    augment = Compose(RandomAffine(degrees=10, translate=0.06, scale=(0.9, 1.1), shear=8), scale)

    def cosine(optimizer, epochs, steps_per_epoch):
        return optim.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)

    if variant == "modern":
        return Recipe(
            epochs=20,
            batch_size=64,
            lr=3e-3,
            make_optimizer=lambda parameters, lr: optim.AdamW(parameters, lr, weight_decay=0.01),
            make_scheduler=cosine,
            train_transform=augment,
            eval_transform=scale,
        )
    return Recipe(
        epochs=20,
        batch_size=64,
        lr=3e-3,
        make_optimizer=lambda parameters, lr: optim.Adam(parameters, lr),
        make_scheduler=cosine,
        train_transform=augment,
        eval_transform=scale,
        loss=lambda model, distances, labels: map_loss(distances, labels),
        scores=lambda distances: -distances,
    )


ARCHITECTURE = Architecture(
    name="lenet",
    title="LeNet-5 (LeCun et al. 1998)",
    build=build,
    recipe=recipe,
    input_shape=lambda **options: (1, 32, 32),
    options=(
        click.Option(
            ["--variant"], type=click.Choice(["modern", "1998"]), default="modern",
            show_default=True,
            help="The paper's network (1998), or the same sizes with ReLU, max-pooling, softmax.",
        ),
    ),
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
