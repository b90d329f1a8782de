"""Network in Network: Lin, Chen and Yan, ICLR 2014.

A convolution followed by two 1x1 convolutions ("mlpconv", figure 2) slides a small multilayer
perceptron over the image. The last mlpconv has one map a class, averaged globally: there is no
fully connected layer to overfit (section 3.2). GoogLeNet builds on both ideas. 966,986 parameters
for CIFAR-10.
"""

from architectures.common import (
    CIFAR_MEAN,
    CIFAR_STD,
    digits_recipe,
    initialize,
    on_plateau,
    scaled,
    sgd,
)
from minidl import cli, nn
from minidl.architecture import Architecture, Recipe
from minidl.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ToRGB,
)
from minidl.nn import init

SIZE = 32
# Maps of the convolution and of its two 1x1 convolutions.
MLPCONVS = ((192, 160, 96), (192, 192, 192), (192, 192, None))


def mlpconv(in_channels: int, maps: tuple[int, int, int], kernel_size: int) -> nn.Sequential:
    """A convolution and two of 1x1, each followed by ReLU (equation 2)."""
    first, second, third = maps
    return nn.Sequential(
        {
            "conv": nn.Conv2d(in_channels, first, kernel_size, padding=kernel_size // 2),
            "relu1": nn.ReLU(inplace=True),
            "mlp1": nn.Conv2d(first, second, 1),
            "relu2": nn.ReLU(inplace=True),
            "mlp2": nn.Conv2d(second, third, 1),
            "relu3": nn.ReLU(inplace=True),
        }
    )


class NIN(nn.Sequential):
    """(N, 3, H, W) -> logits (N, num_classes); `width` scales the inner maps."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, dropout: float = 0.5):
        one, two, three = (
            tuple(num_classes if c is None else scaled(c, width) for c in maps)
            for maps in MLPCONVS
        )
        super().__init__(
            {
                "mlpconv1": mlpconv(3, one, 5),
                "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
                "drop1": nn.Dropout(dropout),
                "mlpconv2": mlpconv(one[-1], two, 5),
                "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
                "drop2": nn.Dropout(dropout),
                "mlpconv3": mlpconv(two[-1], three, 3),
                "avgpool": nn.GlobalAvgPool2d(),
                "flatten": nn.Flatten(),
            }
        )
        initialize(self)
        # The class maps are rectified, too: one that starts below 0 everywhere would stay dead. A
        # shift that all classes share leaves the softmax as it is.
        init.ones_(self.mlpconv3.mlp2.bias)


def build(num_classes: int = 10, full: bool = True) -> NIN:
    """The paper's network for CIFAR, or one of a quarter of its width, with less to drop."""
    return NIN(num_classes) if full else NIN(num_classes, width=0.25, dropout=0.2)


def recipe(full: bool = True) -> Recipe:
    """Section 4: batches of 128, momentum, the rate divided by 10 where progress stops; crops and
    flips as in the paper's augmented run.

    Rate, weight decay and length are ours, and images are standardised where the paper has global
    contrast normalisation and ZCA whitening.
    """
    if not full:
        return digits_recipe(SIZE, lr=2e-3, epochs=16)
    scale = Compose(ToRGB(), Resize((SIZE, SIZE)), Normalize(CIFAR_MEAN, CIFAR_STD))
    return Recipe(
        epochs=230,
        batch_size=128,
        lr=0.01,
        make_optimizer=sgd(weight_decay=1e-4),
        make_scheduler=on_plateau,
        schedule_by="epoch",
        train_transform=Compose(scale, RandomCrop(SIZE, padding=4), RandomHorizontalFlip()),
        eval_transform=scale,
    )


ARCHITECTURE = Architecture(
    name="nin",
    title="Network in Network (Lin et al. 2014)",
    build=build,
    recipe=recipe,
    input_shape=lambda **options: (3, SIZE, SIZE),
    has_small=True,
)

if __name__ == "__main__":
    cli.main(ARCHITECTURE)
