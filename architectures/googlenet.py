"""GoogLeNet: Szegedy et al., "Going deeper with convolutions", CVPR 2015.

22 layers deep, yet 6,998,552 parameters: nine inception modules look at their input with 1x1, 3x3
and 5x5 filters and a pool side by side, after 1x1 convolutions have made it narrow (figure 2b). Two
auxiliary classifiers on the modules 4a and 4d push gradients into the middle while training; with
them there are 13,378,280 parameters.

``batch_norm=True`` is the form that public weights have: convolutions without bias, followed by
batch normalisation, a 3x3 where the paper has 5x5, and no response normalisation: 6,624,904
parameters, with the auxiliary classifiers 13,004,888.
"""

import click

from architectures.common import (
    centre,
    digits_recipe,
    imagenet_classes,
    initialize,
    response_norm,
    scaled,
    sgd,
    ten_crop,
)
from minidl import cli, nn, ops, optim
from minidl.architecture import Architecture, Recipe
from minidl.data.transforms import (
    ColorJitter,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToRGB,
)

# Table 1: maps of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection, module by module.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY_WEIGHT = 0.3  # section 5
FULL_SIZE, SMALL_SIZE = 224, 64
# Inputs in [-1, 1], as public weights expect them.
HALF = (0.5, 0.5, 0.5)


class ConvReLU(nn.Module):
    """Convolution, batch normalisation where asked for (then without bias), ReLU."""

    def __init__(self, in_channels, out_channels, kernel_size, batch_norm=False, **settings):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, bias=not batch_norm, **settings
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3) if batch_norm else None

    def forward(self, x):
        return nn.conv_block(x, self.conv, self.bn, rectify=True)


class Inception(nn.Module):
    """Figure 2b: four branches on one input, joined along the channels.

    `maps` is a row of `INCEPTIONS`. ``naive=True`` is figure 2a: no reductions and no projection,
    so that the pool passes all its input's maps on. `out_channels` tells how many come out.
    """

    def __init__(self, in_channels, maps, batch_norm=False, naive=False):
        super().__init__()
        one, reduce3, three, reduce5, five, projection = maps
        size = 3 if batch_norm else 5
        conv = _conv(batch_norm)
        wide = {"padding": size // 2}
        pool = nn.MaxPool2d(3, 1, padding=1)
        self.branch1 = conv(in_channels, one, 1)
        if naive:
            self.branch2 = conv(in_channels, three, 3, padding=1)
            self.branch3 = conv(in_channels, five, size, **wide)
            self.branch4 = pool
            projection = in_channels
        else:
            self.branch2 = nn.Sequential(
                conv(in_channels, reduce3, 1), conv(reduce3, three, 3, padding=1)
            )
            self.branch3 = nn.Sequential(
                conv(in_channels, reduce5, 1), conv(reduce5, five, size, **wide)
            )
            self.branch4 = nn.Sequential(pool, conv(in_channels, projection, 1))
        self.out_channels = one + three + five + projection

    def forward(self, x):
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return ops.concatenate([branch(x) for branch in branches], axis=1)


class Auxiliary(nn.Module):
    """A classifier on an inner module (section 5): average-pool, 1x1 convolution, two layers.

    The pool is 5x5 with stride 3, which makes 4x4 of the full network's 14x14; ``adaptive=True``
    makes 4x4 of any size instead.
    """

    def __init__(
        self, in_channels, num_classes, width=1.0, batch_norm=False, adaptive=False, dropout=0.7
    ):
        super().__init__()
        maps, hidden = scaled(128, width), scaled(1024, width)
        self.pool = nn.AdaptiveAvgPool2d(4) if adaptive else nn.AvgPool2d(5, 3)
        self.conv = _conv(batch_norm)(in_channels, maps, 1)
        self.fc1 = nn.Linear(maps * 4 * 4, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x):
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(ops.relu(self.fc1(x))))


def _conv(batch_norm):
    """`ConvReLU` with or without batch normalisation."""

    def make(in_channels, out_channels, kernel_size, **settings):
        return ConvReLU(in_channels, out_channels, kernel_size, batch_norm, **settings)

    return make


class GoogLeNet(nn.Module):
    """(N, 3, 224, 224) -> logits (N, num_classes); in training (logits, auxiliary 1, auxiliary 2).

    `auxiliary=False` leaves the two classifiers out: then logits alone come out in training too.
    `batch_norm`: the form of public weights. `naive`: inception modules without reductions.
    `width` scales all maps; `adaptive` lets the auxiliary classifiers take other image sizes, as
    those of public weights do.
    """

    def __init__(
        self, num_classes: int = 1000, auxiliary: bool = True, batch_norm: bool = False,
        naive: bool = False, width: float = 1.0, adaptive: bool = False, dropout: float = 0.4,
        auxiliary_dropout: float = 0.7,
    ):  # fmt: skip
        super().__init__()
        conv = _conv(batch_norm)
        c1, c3 = scaled(64, width), scaled(192, width)
        self.conv1 = conv(3, c1, 7, stride=2, padding=3)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.Identity() if batch_norm else response_norm()
        self.conv2 = conv(c1, c1, 1)
        self.conv3 = conv(c1, c3, 3, padding=1)
        self.norm2 = nn.Identity() if batch_norm else response_norm()
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = c3
        self.has_auxiliary = auxiliary
        for name, row in INCEPTIONS.items():
            maps = [scaled(c, width) for c in row]
            module = Inception(channels, maps, batch_norm, naive)
            setattr(self, f"inception{name}", module)
            channels = module.out_channels
            if auxiliary and name in ("4a", "4d"):
                head = Auxiliary(
                    channels, num_classes, width, batch_norm, adaptive or batch_norm,
                    auxiliary_dropout,
                )  # fmt: skip
                setattr(self, "aux1" if name == "4a" else "aux2", head)
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool4 = nn.MaxPool2d(2 if batch_norm else 3, 2, ceil_mode=True)
        self.avgpool = nn.GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x):
        x = self.norm1(self.pool1(self.conv1(x)))
        x = self.pool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.pool3(self.inception3b(self.inception3a(x)))
        inner1 = x = self.inception4a(x)
        inner2 = x = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.pool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.training and self.has_auxiliary:
            return logits, self.aux1(inner1), self.aux2(inner2)
        return logits


def main_logits(outputs):
    """The logits of the main classifier, in training and in evaluation."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def loss(model, outputs, labels):
    """Cross-entropy, plus 0.3 times that of each auxiliary classifier where there are any."""
    total = ops.cross_entropy(main_logits(outputs), labels)
    for logits in outputs[1:] if isinstance(outputs, tuple) else ():
        total = total + AUXILIARY_WEIGHT * ops.cross_entropy(logits, labels)
    return total


def build(
    num_classes: int = 1000, batch_norm: bool = False, naive: bool = False, auxiliary: bool = True,
    full: bool = True,
) -> GoogLeNet:  # fmt: skip
    """The full network, or one of a quarter of its width for images of 64x64."""
    if full:
        return GoogLeNet(num_classes, auxiliary, batch_norm, naive)
    return GoogLeNet(num_classes, auxiliary, batch_norm, naive, width=0.25, adaptive=True)


def input_shape(full: bool = True, **options) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    size = FULL_SIZE if full else SMALL_SIZE
    return 3, size, size


def recipe(full: bool = True, **options) -> Recipe:
    """Section 6: SGD with momentum 0.9, the rate lowered by 4 % every eight epochs, crops of 8 to
    100 % of the image's area with aspects between 3/4 and 4/3, photometric distortions.

    The paper tells neither batch size, rate, weight decay nor length: those are ours. Not done here
    are its Polyak averaging of the weights for the test, and its test on 144 crops.
    """
    if not full:
        return digits_recipe(SMALL_SIZE, loss=loss, scores=main_logits)
    return Recipe(
        epochs=250,
        batch_size=128,
        lr=0.01,
        make_optimizer=sgd(weight_decay=2e-4),
        make_scheduler=lambda optimizer, epochs, steps: optim.StepLR(optimizer, 8, gamma=0.96),
        schedule_by="epoch",
        train_transform=Compose(
            ToRGB(), RandomResizedCrop(FULL_SIZE), RandomHorizontalFlip(),
            ColorJitter(0.4, 0.4, 0.4), Normalize(HALF, HALF),
        ),  # fmt: skip
        eval_transform=centre(FULL_SIZE, HALF, HALF),
        loss=loss,
        scores=main_logits,
        protocols={"ten-crop": ten_crop(FULL_SIZE, HALF, HALF)},
    )


def public_names(batch_norm: bool = False, naive: bool = False, **options) -> dict[str, str]:
    """Public weights use these very names; ValueError for a form that they do not have."""
    if not batch_norm:
        raise ValueError("batch_norm must be on for public weights (--batch-norm)")
    if naive:
        raise ValueError("naive must be off for public weights")
    return {}


def left_out(auxiliary: bool = True, **options) -> tuple[str, ...]:
    """The auxiliary classifiers in a file of weights, for a network that has none."""
    return () if auxiliary else ("aux1", "aux2")


ARCHITECTURE = Architecture(
    name="googlenet",
    title="GoogLeNet (Szegedy et al. 2015)",
    build=build,
    recipe=recipe,
    input_shape=input_shape,
    options=(
        click.Option(
            ["--batch-norm"], is_flag=True,
            help="The batch-normalised form that public weights have.",
        ),
        click.Option(
            ["--naive"], is_flag=True, help="Inception modules without dimension reduction."
        ),
        click.Option(
            ["--auxiliary/--no-auxiliary"], default=True, show_default=True,
            help="The two auxiliary classifiers that help training.",
        ),
    ),
    num_classes=imagenet_classes,
    has_small=True,
    public_names=public_names,
    left_out=left_out,
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
