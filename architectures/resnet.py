"""ResNet: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, and
its pre-activation form, "Identity mappings in deep residual networks", ECCV 2016.

A block adds what its convolutions compute to what came in, so that a block which has nothing to add
can leave its input alone. Table 1 of the paper (ImageNet: 18, 34, 50, 101 and 152 layers) and
section 4.2 (CIFAR: 20, 32, 44, 56 and 110 layers).

`version` is "1" (the paper: a bottleneck's stride is on its first 1x1), "1.5" (on its 3x3, as in
public weights) or "2" (pre-activation). Basic blocks are the same in 1 and 1.5.
"""

import click

from architectures.common import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre,
    digits_recipe,
    initialize,
    on_plateau,
    scaled,
    sgd,
    ten_crop,
)
from minidl import cli, nn, ops, optim
from minidl.architecture import Architecture, Recipe, SameNames
from minidl.data.transforms import (
    Compose,
    Normalize,
    PCALighting,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResize,
    Resize,
    ToRGB,
)
from minidl.nn import init

# Blocks a stage (table 1), and whether they are bottlenecks.
IMAGENET_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
# 6 n + 2 layers: n blocks in each of three stages (section 4.2).
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
DEPTHS = (*IMAGENET_DEPTHS, *CIFAR_DEPTHS)
VERSIONS = ("1", "1.5", "2")
SHORTCUTS = ("A", "B", "C")
EXPANSION = 4
FULL_SIZE, CIFAR_SIZE, SMALL_SIZE = 224, 32, 64


class ZeroPadShortcut(nn.Module):
    """Option A: every stride-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.extra = out_channels - in_channels
        self.stride = stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return ops.pad(x, ((0, 0), (0, self.extra), (0, 0), (0, 0)))


def make_shortcut(option, in_channels, out_channels, stride, batch_norm=True):
    """What carries the input past a block; None is the identity.

    Option A pads with zeros and B projects (1x1 convolution) where the shape changes; C always
    projects.
    """
    changes = stride != 1 or in_channels != out_channels
    if not changes and option != "C":
        return None
    if option == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    if not batch_norm:
        return nn.Sequential(projection)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


def block_convs(in_channels, channels, stride, bottleneck, version):
    """The convolutions of a block: 3x3-3x3, or 1x1-3x3-1x1 with four times the maps at its end."""
    if not bottleneck:
        return (
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
    first, second = (stride, 1) if version == "1" else (1, stride)
    return (
        nn.Conv2d(in_channels, channels, 1, first, bias=False),
        nn.Conv2d(channels, channels, 3, second, padding=1, bias=False),
        nn.Conv2d(channels, EXPANSION * channels, 1, bias=False),
    )


class Block(nn.Module):
    """Figure 2 and figure 5: relu(x + F(x)), F = conv-BN(-ReLU) two or three times."""

    def __init__(self, in_channels, channels, stride, bottleneck, version, shortcut):
        super().__init__()
        convs = block_convs(in_channels, channels, stride, bottleneck, version)
        self.depth = len(convs)
        for i, conv in enumerate(convs, 1):
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        self.downsample = make_shortcut(shortcut, in_channels, convs[-1].out_channels, stride)

    def forward(self, x):
        y = x
        for i in range(1, self.depth):
            y = nn.conv_block(y, getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), rectify=True)
        conv, norm = getattr(self, f"conv{self.depth}"), getattr(self, f"bn{self.depth}")
        shortcut = x if self.downsample is None else self.downsample(x)
        return nn.conv_block(y, conv, norm, shortcut, rectify=True)


class PreActBlock(nn.Module):
    """Figure 4e of the second paper: x + F(x), F = BN-ReLU-conv two or three times.

    ``first=True``, the first block of the network, gets an input that is activated already. A
    shortcut that is not the identity starts from the activated input, too.
    """

    def __init__(self, in_channels, channels, stride, bottleneck, shortcut, first):
        super().__init__()
        convs = block_convs(in_channels, channels, stride, bottleneck, "2")
        self.depth = len(convs)
        self.first = first
        for i, conv in enumerate(convs, 1):
            if i > 1 or not first:
                setattr(self, f"bn{i}", nn.BatchNorm2d(conv.in_channels))
            setattr(self, f"conv{i}", conv)
        self.downsample = make_shortcut(
            shortcut, in_channels, convs[-1].out_channels, stride, batch_norm=False
        )

    def forward(self, x):
        y = x if self.first else nn.norm_block(x, self.bn1, rectify=True)
        around = x if self.downsample is None else self.downsample(y)
        for i in range(1, self.depth):
            norm = getattr(self, f"bn{i + 1}")
            y = nn.conv_block(y, getattr(self, f"conv{i}"), norm, rectify=True)
        return nn.conv_block(y, getattr(self, f"conv{self.depth}"), None, around)


class ResNet(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes).

    `depth`: a key of `IMAGENET_DEPTHS` (7x7 stem and pool, 224x224 images) or one of `CIFAR_DEPTHS`
    (3x3 stem, 32x32). `version`: see the module. `shortcut`: option A, B or C of the paper; None
    takes its choice, B for ImageNet and A for CIFAR. `zero_gamma` starts the last normalisation of
    every block at 0, so that the network begins as an identity (Goyal et al. 2017, section 5.1).
    `width` scales all maps. Raises ValueError for settings not listed.
    """

    def __init__(
        self, depth: int = 18, num_classes: int = 1000, version: str = "1",
        shortcut: str | None = None, zero_gamma: bool = False, width: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (
            ("depth", depth, DEPTHS), ("version", version, VERSIONS),
            ("shortcut", shortcut, (None, *SHORTCUTS)),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if zero_gamma and version == "2":
            raise ValueError("zero_gamma must be off in version 2, whose blocks end unnormalised")
        self.is_cifar = depth in CIFAR_DEPTHS
        if self.is_cifar:
            blocks, bottleneck, maps = ((depth - 2) // 6,) * 3, False, 16
        else:
            (blocks, bottleneck), maps = IMAGENET_DEPTHS[depth], 64
        shortcut = shortcut or ("A" if self.is_cifar else "B")
        channels = scaled(maps, width)
        stem = {"kernel_size": 3, "padding": 1} if self.is_cifar else {
            "kernel_size": 7, "stride": 2, "padding": 3,
        }  # fmt: skip
        self.conv1 = nn.Conv2d(3, channels, bias=False, **stem)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if self.is_cifar else nn.MaxPool2d(3, 2, padding=1)
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            inner = scaled(maps * 2**stage, width)
            layers = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                if version == "2":
                    block = PreActBlock(
                        channels, inner, stride, bottleneck, shortcut, first=stage == i == 0
                    )
                else:
                    block = Block(channels, inner, stride, bottleneck, version, shortcut)
                layers.append(block)
                channels = inner * (EXPANSION if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn_last = nn.BatchNorm2d(channels) if version == "2" else None
        self.avgpool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(channels, num_classes)
        initialize(self, lambda weight: init.he_normal_(weight, mode="fan_out"))
        # A few classes are no measure of the scale of so many features: fan_in here.
        init.lecun_normal_(self.fc.weight)
        if zero_gamma:
            for module in self.modules():
                if isinstance(module, Block):
                    init.zeros_(getattr(module, f"bn{module.depth}").weight)

    def forward(self, x):
        x = self.maxpool(nn.conv_block(x, self.conv1, self.bn1, rectify=True))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        if self.bn_last is not None:
            x = nn.norm_block(x, self.bn_last, rectify=True)
        return self.fc(self.avgpool(x).flatten(1))


def build(
    num_classes: int = 1000, depth: int = 18, version: str = "1", shortcut: str | None = None,
    zero_gamma: bool = False, full: bool = True,
) -> ResNet:  # fmt: skip
    """The full network, or one of a quarter of its width; CIFAR's are small as they are."""
    width = 1.0 if full or depth in CIFAR_DEPTHS else 0.25
    return ResNet(depth, num_classes, version, shortcut, zero_gamma, width)


def input_shape(depth: int = 18, full: bool = True, **options) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    size = FULL_SIZE if full else SMALL_SIZE
    return (3, CIFAR_SIZE, CIFAR_SIZE) if depth in CIFAR_DEPTHS else (3, size, size)


def classes(depth: int = 18, full: bool = True, **options) -> int:
    """The number of classes of the paper's data set."""
    return IMAGENET_CLASSES if full and depth in IMAGENET_DEPTHS else 10


def recipe(depth: int = 18, full: bool = True, **options) -> Recipe:
    """Section 3.4 (ImageNet) or 4.2 (CIFAR); the small form's for the bundled digits."""
    if not full:
        return digits_recipe(input_shape(depth, full)[1])
    return cifar_recipe(depth) if depth in CIFAR_DEPTHS else imagenet_recipe()


def imagenet_recipe() -> Recipe:
    """Section 3.4: batches of 256, about 120 epochs (600,000 steps), rate 0.1 / 10 on plateaus.

    Images are standardised, as public weights expect them; the paper takes off the mean alone.
    """
    return Recipe(
        epochs=120,
        batch_size=256,
        lr=0.1,
        make_optimizer=sgd(weight_decay=1e-4),
        make_scheduler=on_plateau,
        schedule_by="epoch",
        train_transform=Compose(
            ToRGB(), RandomResize(256, 480), RandomCrop(FULL_SIZE), RandomHorizontalFlip(),
            PCALighting(0.1), Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ),  # fmt: skip
        eval_transform=centre(FULL_SIZE),
        protocols={"ten-crop": ten_crop(FULL_SIZE)},
    )


def cifar_recipe(depth: int) -> Recipe:
    """Section 4.2: 64,000 steps of 128 images, rate 0.1 divided by 10 after 1/2 and 3/4 of them;
    flips, and crops after a border of zeros around the standardised image.

    The 110-layer network needs a gentle start: the paper trains it at 0.01 for some 400 steps; here
    the rate rises linearly over as many.
    """
    size = (CIFAR_SIZE, CIFAR_SIZE)
    scale = Normalize(CIFAR_MEAN, CIFAR_STD)

    def schedule(optimizer, epochs, steps_per_epoch):
        steps = epochs * steps_per_epoch
        warmup = 400 if depth == 110 else 0
        milestones = [steps // 2 - warmup, steps * 3 // 4 - warmup]
        rest = optim.MultiStepLR(optimizer, milestones)
        return optim.LinearWarmup(optimizer, warmup, rest) if warmup else rest

    return Recipe(
        epochs=164,
        batch_size=128,
        lr=0.1,
        make_optimizer=sgd(weight_decay=1e-4),
        make_scheduler=schedule,
        train_transform=Compose(
            ToRGB(), Resize(size), scale, RandomCrop(CIFAR_SIZE, padding=4), RandomHorizontalFlip()
        ),
        eval_transform=Compose(ToRGB(), Resize(size), scale),
    )


def public_names(depth: int = 18, version: str = "1", **options) -> dict[str, str]:
    """Public weights use these very names; ValueError for a form that they do not have.

    Bottlenecks of version 1 have the same names and shapes, but their strides elsewhere: SameNames.
    """
    if depth not in IMAGENET_DEPTHS:
        raise ValueError(f"depth must be one of {tuple(IMAGENET_DEPTHS)} for public weights")
    problem = "version must be 1.5 for public weights (--version 1.5)"
    if version == "2":
        raise ValueError(problem)
    if IMAGENET_DEPTHS[depth][1] and version == "1":
        raise SameNames(f"{problem}; those of version 1 cannot be told from them")
    return {}


ARCHITECTURE = Architecture(
    name="resnet",
    title="ResNet (He et al. 2016)",
    build=build,
    recipe=recipe,
    input_shape=input_shape,
    options=(
        click.Option(
            ["--depth"], type=click.Choice([str(d) for d in DEPTHS]), default="18",
            show_default=True, callback=lambda context, option, value: int(value),
            help="Layers: 18 to 152 for photographs, 20, 32, 44, 56 and 110 for CIFAR.",
        ),
        click.Option(
            ["--version"], type=click.Choice(VERSIONS), default="1", show_default=True,
            help="Stride on a bottleneck's first 1x1 (1), on its 3x3 (1.5), or pre-activation (2).",
        ),
        click.Option(
            ["--shortcut"], type=click.Choice(SHORTCUTS), default=None,
            help="Where the shape changes: zero-padding (A) or projection (B); projections "
            "everywhere (C).  [default: B, for CIFAR A]",
        ),
        click.Option(
            ["--zero-gamma"], is_flag=True, help="Start every block as the identity."
        ),
    ),
    num_classes=classes,
    has_small=True,
    public_names=public_names,
)  # fmt: skip

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
