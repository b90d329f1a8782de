"""AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
neural networks", NIPS 2012.

``towers=2`` is the paper's network, split over two GPUs that talk to each other in conv3 and in the
fully connected layers only: conv2, conv4 and conv5 are convolutions in two groups, and maps are
normalised beside those of their own tower. 60,965,224 parameters. It takes 227x227 pixels: the 224
of the paper do not divide. `architectures.alexnet_two_gpus` spreads it over two processes.

``towers=1`` is the form that public weights have (Krizhevsky, "One weird trick for parallelizing
convolutional neural networks", 2014): fewer maps, no response normalisation, 224x224 pixels padded
by 2, and an average-pool to 6x6 that lets other sizes in. 61,100,840 parameters.
"""

import click

from architectures.common import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    central_square,
    centre,
    digits_recipe,
    fully_connected,
    imagenet_classes,
    initialize,
    on_plateau,
    response_norm,
    scaled,
    sgd,
    ten_crop,
)
from minidl import cli, nn
from minidl.architecture import Architecture, Recipe
from minidl.data.transforms import (
    Compose,
    Normalize,
    PCALighting,
    RandomCrop,
    RandomHorizontalFlip,
)
from minidl.nn import init

CHANNELS = {2: (96, 256, 384, 384, 256), 1: (64, 192, 384, 256, 256)}
FULL_SIZE = {2: 227, 1: 224}
SMALL_SIZE = 67  # the smallest image of which conv1 and the three pools leave a pixel


class WithinTowers(nn.Module):
    """A layer on the maps of each of the two towers by itself."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        n, c, h, w = x.shape
        return self.layer(x.reshape(2 * n, c // 2, h, w)).reshape(n, c, h, w)


class AlexNet(nn.Sequential):
    """(N, 3, H, W) -> logits (N, num_classes).

    `towers`: 2 (the paper) or 1 (public weights); `width` scales the maps and hidden units; `grid`
    is the side of the maps that fc6 reads: 6 for the full image size. With two towers the image
    must be of the size that gives it, with one the pool adapts. Raises ValueError for other towers.
    """

    def __init__(
        self, num_classes: int = 1000, towers: int = 2, width: float = 1.0, dropout: float = 0.5,
        grid: int = 6,
    ):  # fmt: skip
        if towers not in CHANNELS:
            raise ValueError(f"towers must be 1 or 2, got {towers!r}")
        c1, c2, c3, c4, c5 = (scaled(c, width, divisor=towers) for c in CHANNELS[towers])
        hidden = scaled(4096, width)
        two = towers == 2
        super().__init__(
            {
                "conv1": nn.Conv2d(3, c1, 11, stride=4, padding=0 if two else 2),
                "relu1": nn.ReLU(inplace=True),
                "norm1": WithinTowers(response_norm()) if two else nn.Identity(),
                "pool1": nn.MaxPool2d(3, 2),
                "conv2": nn.Conv2d(c1, c2, 5, padding=2, groups=towers),
                "relu2": nn.ReLU(inplace=True),
                "norm2": WithinTowers(response_norm()) if two else nn.Identity(),
                "pool2": nn.MaxPool2d(3, 2),
                "conv3": nn.Conv2d(c2, c3, 3, padding=1),
                "relu3": nn.ReLU(inplace=True),
                "conv4": nn.Conv2d(c3, c4, 3, padding=1, groups=towers),
                "relu4": nn.ReLU(inplace=True),
                "conv5": nn.Conv2d(c4, c5, 3, padding=1, groups=towers),
                "relu5": nn.ReLU(inplace=True),
                "pool5": nn.MaxPool2d(3, 2),
                "adapt": nn.Identity() if two else nn.AdaptiveAvgPool2d(grid),
                "flatten": nn.Flatten(),
                **fully_connected(c5 * grid * grid, hidden, num_classes, dropout),
            }
        )
        if two:
            paper_init(self)
        else:
            # Made for pixels in 0..255, the paper's deviation would let standardised ones fade.
            initialize(self)


def paper_init(model: AlexNet) -> None:
    """Section 5: weights N(0, 0.01^2); biases 1 in conv2, conv4, conv5, fc6 and fc7, else 0."""
    initialize(model, lambda weight: init.normal_(weight, std=0.01))
    for name in ("conv2", "conv4", "conv5", "fc6", "fc7"):
        init.ones_(getattr(model, name).bias)


def build(num_classes: int = 1000, towers: int = 2, full: bool = True) -> AlexNet:
    """The full network, or one of a quarter of the width for images of 67x67."""
    if full:
        return AlexNet(num_classes, towers)
    model = AlexNet(num_classes, towers, width=0.25, grid=1)
    # So far down, the paper's deviation of 0.01 would let the signal fade.
    initialize(model)
    return model


def input_shape(towers: int = 2, full: bool = True) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    size = FULL_SIZE[towers] if full else SMALL_SIZE
    return 3, size, size


def recipe(towers: int = 2, full: bool = True) -> Recipe:
    """Section 5 of the paper: about 90 epochs of SGD, the rate divided by 10 on plateaus; crops,
    flips and lighting of section 4.1.

    The paper's network reads pixels in 0..255 less their mean, the public one standardised ones.
    The mean is one a channel; the paper's is one a pixel.
    """
    size = input_shape(towers, full)[1]
    if not full:
        return digits_recipe(size)
    scaling = (IMAGENET_MEAN, (1 / 255,) * 3 if towers == 2 else IMAGENET_STD)
    return Recipe(
        epochs=90,
        batch_size=128,
        lr=0.01,
        make_optimizer=sgd(weight_decay=5e-4),
        make_scheduler=on_plateau,
        schedule_by="epoch",
        train_transform=Compose(
            *central_square(256), RandomCrop(size), RandomHorizontalFlip(), PCALighting(0.1),
            Normalize(*scaling),
        ),  # fmt: skip
        eval_transform=centre(size, *scaling),
        protocols={"ten-crop": ten_crop(size, *scaling)},
    )


def public_names(towers: int = 2, full: bool = True) -> dict[str, str]:
    """The layers' names in public weights; ValueError for the two-tower form, which has none."""
    if towers != 1:
        raise ValueError("towers must be 1 for public weights (--towers 1)")
    places = ("features.0", "features.3", "features.6", "features.8", "features.10",
              "classifier.1", "classifier.4", "classifier.6")  # fmt: skip
    names = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    return dict(zip(names, places, strict=True))


ARCHITECTURE = Architecture(
    name="alexnet",
    title="AlexNet (Krizhevsky et al. 2012)",
    build=build,
    recipe=recipe,
    input_shape=input_shape,
    options=(
        click.Option(
            ["--towers"], type=click.Choice(["1", "2"]), default="2", show_default=True,
            callback=lambda context, option, value: int(value),
            help="Two towers as in the paper, or the one of public weights.",
        ),
    ),
    num_classes=imagenet_classes,
    has_small=True,
    public_names=public_names,
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
