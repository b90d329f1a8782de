"""ZFNet: Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.

AlexNet in one tower, after a look inside: the first layer's 11x11 filters with stride 4 became 7x7
with stride 2, and the second convolution got a stride of 2 (figure 3). 62,357,608 parameters.
``width="wide"`` has 512, 1024 and 512 maps in conv3 to conv5: 107,627,624 parameters.

What the paper is about, the projection of activations back to pixels, is the command ``visualize``.
"""

import click

from architectures.common import (
    IMAGENET_MEAN,
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
    RandomCrop,
    RandomHorizontalFlip,
)
from minidl.nn import init

CHANNELS = {"paper": (384, 384, 256), "wide": (512, 1024, 512)}  # conv3, conv4, conv5
FULL_SIZE, SMALL_SIZE = 224, 64
MAX_FILTER_RMS = 0.1


class ZFNet(nn.Sequential):
    """(N, 3, H, W) -> logits (N, num_classes).

    `width`: "paper" or "wide"; `scale` multiplies all maps and hidden units; `grid` is the side of
    the maps that fc6 reads, 6 for 224x224. Contrast is normalised with AlexNet's constants, whose
    set-up the paper keeps. Raises ValueError for another width.
    """

    def __init__(
        self, num_classes: int = 1000, width: str = "paper", scale: float = 1.0,
        dropout: float = 0.5, grid: int = 6,
    ):  # fmt: skip
        if width not in CHANNELS:
            raise ValueError(f"width must be one of {tuple(CHANNELS)}, got {width!r}")
        c1, c2, c3, c4, c5 = (scaled(c, scale) for c in (96, 256, *CHANNELS[width]))
        hidden = scaled(4096, scale)
        super().__init__(
            {
                "conv1": nn.Conv2d(3, c1, 7, stride=2, padding=1),
                "relu1": nn.ReLU(inplace=True),
                "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
                "norm1": response_norm(),
                "conv2": nn.Conv2d(c1, c2, 5, stride=2),
                "relu2": nn.ReLU(inplace=True),
                "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
                "norm2": response_norm(),
                "conv3": nn.Conv2d(c2, c3, 3, padding=1),
                "relu3": nn.ReLU(inplace=True),
                "conv4": nn.Conv2d(c3, c4, 3, padding=1),
                "relu4": nn.ReLU(inplace=True),
                "conv5": nn.Conv2d(c4, c5, 3, padding=1),
                "relu5": nn.ReLU(inplace=True),
                "pool5": nn.MaxPool2d(3, 2),
                "flatten": nn.Flatten(),
                **fully_connected(c5 * grid * grid, hidden, num_classes, dropout),
            }
        )
        # Section 3.1: all weights 10^-2, biases 0.
        initialize(self, lambda weight: init.normal_(weight, std=0.01))


def renormalize_filters(model: ZFNet, limit: float = MAX_FILTER_RMS) -> None:
    """Scale every filter of the convolutions whose RMS exceeds `limit` down to it (section 3.1)."""
    for layer in (model.conv1, model.conv2, model.conv3, model.conv4, model.conv5):
        with layer.weight.mutate() as weight:
            rms = (weight**2).mean(axis=(1, 2, 3), keepdims=True) ** 0.5
            weight *= limit / rms.clip(limit, None)


def build(num_classes: int = 1000, width: str = "paper", full: bool = True) -> ZFNet:
    """The full network, or one of a quarter of its maps for images of 64x64."""
    if full:
        return ZFNet(num_classes, width)
    model = ZFNet(num_classes, width, scale=0.25, grid=1)
    initialize(model)  # at this width the paper's deviation of 0.01 would let the signal fade
    return model


def input_shape(width: str = "paper", full: bool = True) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    size = FULL_SIZE if full else SMALL_SIZE
    return 3, size, size


def recipe(width: str = "paper", full: bool = True) -> Recipe:
    """Section 3: 70 epochs of SGD in mini-batches of 128 on pixels in 0..255 less their mean.

    The mean is one a channel, the paper's one a pixel; its ten fixed crops are drawn at random.
    """
    if not full:
        return digits_recipe(SMALL_SIZE)
    scaling = (IMAGENET_MEAN, (1 / 255,) * 3)
    return Recipe(
        epochs=70,
        batch_size=128,
        lr=0.01,
        make_optimizer=sgd(weight_decay=0.0),
        make_scheduler=on_plateau,
        schedule_by="epoch",
        train_transform=Compose(
            *central_square(256), RandomCrop(FULL_SIZE), RandomHorizontalFlip(),
            Normalize(*scaling),
        ),  # fmt: skip
        eval_transform=centre(FULL_SIZE, *scaling),
        protocols={"ten-crop": ten_crop(FULL_SIZE, *scaling)},
        after_step=renormalize_filters,
    )


ARCHITECTURE = Architecture(
    name="zfnet",
    title="ZFNet (Zeiler and Fergus 2014)",
    build=build,
    recipe=recipe,
    input_shape=input_shape,
    options=(
        click.Option(
            ["--width"], type=click.Choice(tuple(CHANNELS)), default="paper", show_default=True,
            help="384, 384 and 256 maps in conv3 to conv5, or 512, 1024 and 512.",
        ),
    ),
    num_classes=imagenet_classes,
    has_small=True,
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
