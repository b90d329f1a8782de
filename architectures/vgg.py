"""VGG: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015.

Nothing but 3x3 convolutions of stride 1, five max-pools that halve the size, and three fully
connected layers. `CONFIGS` is table 1 of the paper: a number is the maps of a convolution, "/1"
marks a 1x1 kernel, M a max-pool. Parameters: 132,863,336 (A), 133,047,848 (B), 133,638,952 (C),
138,357,544 (D, called VGG-16), 143,667,240 (E, called VGG-19).
"""

import click

from architectures.common import (
    IMAGENET_MEAN,
    IMAGENET_STD,
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
from minidl import cli, nn, ops
from minidl.architecture import Architecture, Protocol, Recipe
from minidl.data.transforms import (
    Compose,
    Mirrored,
    Normalize,
    PCALighting,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResize,
    Resize,
    ToRGB,
)
from minidl.nn import init

CONFIGS = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "A-LRN": "64 LRN M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "C": "64 64 M 128 128 M 256 256 256/1 M 512 512 512/1 M 512 512 512/1 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
FULL_SIZE, SMALL_SIZE = 224, 32
REDUCTION = 32  # five pools halve each side


class VGG(nn.Sequential):
    """(N, 3, 224, 224) -> logits (N, num_classes).

    `config`: a row of `CONFIGS`; `batch_norm` puts batch normalisation behind every convolution;
    `width` scales maps and hidden units; `grid` is the side of the maps that fc6 reads, 7 for the
    full size (an average-pool adapts other sizes to it). Raises ValueError for another config.
    """

    def __init__(
        self, config: str = "D", num_classes: int = 1000, batch_norm: bool = False,
        width: float = 1.0, dropout: float = 0.5, grid: int = 7,
    ):  # fmt: skip
        if config not in CONFIGS:
            raise ValueError(f"config must be one of {tuple(CONFIGS)}, got {config!r}")
        hidden = scaled(4096, width)
        layers = conv_layers(config, batch_norm, width)
        maps = [layer for layer in layers.values() if isinstance(layer, nn.Conv2d)][-1].out_channels
        super().__init__(
            {
                **layers,
                "adapt": nn.AdaptiveAvgPool2d(grid),
                "flatten": nn.Flatten(),
                **fully_connected(maps * grid * grid, hidden, num_classes, dropout),
            }
        )
        # The paper's note to section 3.1: with Glorot and Bengio's procedure no pre-training of a
        # shallower network is needed.
        initialize(self, init.xavier_normal_)


def conv_layers(config: str, batch_norm: bool, width: float = 1.0) -> dict[str, nn.Module]:
    """The layers before the fully connected ones; conv3_2 is the second of the third stage."""
    layers, channels, stage, number = {}, 3, 1, 1
    for word in CONFIGS[config].split():
        if word == "M":
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
            stage, number = stage + 1, 1
        elif word == "LRN":
            layers["norm1"] = response_norm()
        else:
            maps, _, one = word.partition("/")
            place, maps = f"{stage}_{number}", scaled(int(maps), width)
            kernel = 1 if one else 3
            layers[f"conv{place}"] = nn.Conv2d(channels, maps, kernel, padding=kernel // 2)
            if batch_norm:
                layers[f"bn{place}"] = nn.BatchNorm2d(maps)
            layers[f"relu{place}"] = nn.ReLU(inplace=True)
            channels, number = maps, number + 1
    return layers


def warm_start(model: VGG, state: dict) -> None:
    """Copy network A's first four convolutions and fully connected layers (section 3.1).

    `state`: the state_dict of a shallower network. Its first four convolutions (in A: conv1_1,
    conv2_1, conv3_1 and conv3_2) go to their namesakes, which have the same shapes. Raises
    ValueError where one is missing or has another shape.
    """
    convs = [name.removesuffix(".weight") for name in state
             if name.startswith("conv") and name.endswith(".weight")]  # fmt: skip
    layers = [*convs[:4], "fc6", "fc7", "fc8"]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    known = model.state_dict()
    missing = [name for name in names if name not in state or name not in known]
    if missing:
        raise ValueError(f"state must hold, and the network have, {', '.join(missing)}")
    model.load_state_dict({name: state[name] for name in names}, strict=False)


class Dense(nn.Module):
    """A trained VGG as a fully convolutional network (section 3.2), on images of any size.

    fc6 becomes a convolution of the size of its grid, fc7 and fc8 become 1x1; the map of class
    scores is averaged over its positions: (N, 3, H, W) -> logits (N, num_classes). The image must
    have at least 32 x grid pixels a side, else ValueError. Parameters are shared with `model`.
    """

    def __init__(self, model: VGG):
        super().__init__()
        self.model = model
        features = list(model.named_children())
        end = [name for name, _ in features].index("adapt")
        self.features = nn.Sequential(dict(features[:end]))
        self.grid = model.adapt.output_size

    def forward(self, x):
        model = self.model
        smallest = REDUCTION * self.grid[0]
        if min(x.shape[2:]) < smallest:
            raise ValueError(f"x must have at least {smallest} pixels a side, got {x.shape}")
        x = self.features(x)
        kernels = [(x.shape[1], *self.grid), (model.fc7.in_features, 1, 1),
                   (model.fc8.in_features, 1, 1)]  # fmt: skip
        for layer, kernel in zip((model.fc6, model.fc7, model.fc8), kernels, strict=True):
            weight = layer.weight.reshape(layer.out_features, *kernel)
            x = ops.conv2d(x, weight, layer.bias)
            if layer is not model.fc8:
                x = (model.drop6 if layer is model.fc6 else model.drop7)(ops.relu(x))
        return ops.global_avg_pool2d(x).flatten(1)


def build(
    num_classes: int = 1000, config: str = "D", batch_norm: bool = False, full: bool = True
) -> VGG:
    """The full network, or one of a quarter of its width for images of 32x32."""
    if full:
        return VGG(config, num_classes, batch_norm)
    model = VGG(config, num_classes, batch_norm, width=0.25, grid=1)
    initialize(model)
    return model


def input_shape(full: bool = True, **options) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    size = FULL_SIZE if full else SMALL_SIZE
    return 3, size, size


def recipe(full: bool = True, **options) -> Recipe:
    """Section 3.1: 74 epochs of SGD in batches of 256, with scale jitter of S in [256, 512], flips
    and AlexNet's random shift of colours.

    Images are standardised, as public weights expect them; the paper takes off the mean alone.
    """
    if not full:
        return digits_recipe(SMALL_SIZE)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return Recipe(
        epochs=74,
        batch_size=256,
        lr=0.01,
        make_optimizer=sgd(weight_decay=5e-4),
        make_scheduler=on_plateau,
        schedule_by="epoch",
        train_transform=Compose(
            ToRGB(), RandomResize(256, 512), RandomCrop(FULL_SIZE), RandomHorizontalFlip(),
            PCALighting(0.1), normalize,
        ),  # fmt: skip
        eval_transform=centre(FULL_SIZE),
        protocols={
            "ten-crop": ten_crop(FULL_SIZE),
            # Images keep their aspect, so that they cannot share a batch.
            "dense": Protocol(
                Compose(ToRGB(), Resize(384), Mirrored(), normalize), prepare=Dense, batch_size=1
            ),
        },
    )


def public_names(config: str = "D", batch_norm: bool = False, full: bool = True) -> dict[str, str]:
    """The layers' names in public weights, which count convolutions, norms, ReLUs and pools."""
    layers = conv_layers(config, batch_norm)
    names = {name: f"features.{i}" for i, (name, layer) in enumerate(layers.items())
             if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))}  # fmt: skip
    return {**names, "fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


ARCHITECTURE = Architecture(
    name="vgg",
    title="VGG (Simonyan and Zisserman 2015)",
    build=build,
    recipe=recipe,
    input_shape=input_shape,
    options=(
        click.Option(
            ["--config"], type=click.Choice(tuple(CONFIGS)), default="D", show_default=True,
            help="The column of the paper's table 1: 11 (A) to 19 (E) layers.",
        ),
        click.Option(
            ["--batch-norm"], is_flag=True, help="Batch normalisation behind every convolution."
        ),
    ),
    num_classes=imagenet_classes,
    has_small=True,
    public_names=public_names,
    warm_start=warm_start,
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
