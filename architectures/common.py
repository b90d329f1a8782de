"""What the networks for photographs share: scaled widths, initial weights, ways of training."""

from minidl import nn, optim
from minidl.architecture import Protocol, Recipe
from minidl.data.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomAffine,
    Resize,
    TenCrop,
    ToRGB,
)
from minidl.nn import init

IMAGENET_CLASSES = 1000
# Mean and standard deviation of ImageNet's RGB values in [0, 1], as public weights expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The same of CIFAR-10's training images.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
# Mean and standard deviation of MNIST's pixels in [0, 1].
DIGITS_MEAN, DIGITS_STD = 0.1307, 0.3081


def imagenet_classes(full: bool = True, **options) -> int:
    """The number of classes that the paper's network, or the small one, is made for."""
    return IMAGENET_CLASSES if full else 10


def scaled(channels: int, width: float, divisor: int = 1) -> int:
    """`channels` times `width`, rounded to a multiple of `divisor`, at least one of it.

    Raises ValueError for a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width must be above 0, got {width}")
    return divisor * max(1, round(channels * width / divisor))


def response_norm() -> nn.LocalResponseNorm:
    """Local response normalisation with the constants of Krizhevsky et al. 2012, section 3.3."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0, size_normalized=False)


def fully_connected(
    in_features: int, hidden: int, num_classes: int, dropout: float
) -> dict[str, nn.Module]:
    """fc6 to fc8, with which AlexNet, ZFNet and VGG end: two hidden layers, dropped out behind."""
    return {
        "fc6": nn.Linear(in_features, hidden),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout(dropout),
        "fc7": nn.Linear(hidden, hidden),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout(dropout),
        "fc8": nn.Linear(hidden, num_classes),
    }


def initialize(model: nn.Module, draw=init.he_normal_) -> None:
    """Draw the weights of every convolution and fully connected layer; biases start at 0."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            draw(layer.weight)
            if layer.bias is not None:
                init.zeros_(layer.bias)


def sgd(weight_decay: float):
    """Make the optimiser that all six papers use: SGD with momentum 0.9."""

    def make(parameters, lr):
        return optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)

    return make


def on_plateau(optimizer, epochs, steps_per_epoch):
    """Divide the rate by 10 when the test loss has stopped falling, once an epoch."""
    return optim.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)


def cosine(optimizer, epochs, steps_per_epoch):
    """Half a cosine over the whole run, a step a batch."""
    return optim.CosineAnnealingLR(optimizer, epochs * steps_per_epoch)


def centre(size: int, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize: int = 256) -> Compose:
    """The central `size` x `size` of the image whose shorter side became `resize`."""
    return Compose(ToRGB(), Resize(resize), CenterCrop(size), Normalize(mean, std))


def central_square(size: int) -> tuple:
    """The RGB image with its shorter side `size`, then the middle `size` x `size` of it."""
    return ToRGB(), Resize(size), CenterCrop(size)


def ten_crop(size: int, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize: int = 256) -> Protocol:
    """Corners and centre of the image's central square, and their mirror images, averaged.

    Krizhevsky et al. 2012: section 2 for the square of `resize` pixels, section 4.1 for the rest.
    """
    crops = Compose(*central_square(resize), TenCrop(size), Normalize(mean, std))
    return Protocol(crops)


def digits_recipe(size: int, lr: float = 1e-3, epochs: int = 12, **settings) -> Recipe:
    """Training of a small form on the bundled digits, resized to `size` x `size` RGB."""
    scale = Compose(Resize((size, size)), ToRGB(), Normalize(DIGITS_MEAN, DIGITS_STD))
    distort = RandomAffine(degrees=10, translate=0.06, scale=(0.9, 1.1), shear=8)
    return Recipe(
        epochs=epochs,
        batch_size=64,
        lr=lr,
        make_optimizer=lambda parameters, lr: optim.AdamW(parameters, lr, weight_decay=0.01),
        make_scheduler=cosine,
        train_transform=Compose(distort, scale),
        eval_transform=scale,
        **settings,
    )
