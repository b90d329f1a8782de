"""Colour: random brightness, contrast, saturation and hue; lighting along principal components."""

import numpy as np

from minidl.data.transforms.images import as_list, check_range, like

# Luma of red, green and blue, with the digits torchvision takes.
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)

# Eigenvalues and -vectors (columns; rows are red, green, blue) of the covariance of ImageNet's
# pixels in [0, 1], as published with Facebook's fb.resnet.torch (datasets/imagenet.lua, 2016).
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def grey(image) -> np.ndarray:
    """The luma (1, H, W) of an image (3, H, W); an image of one channel is its own."""
    return image if len(image) == 1 else np.tensordot(_LUMA, image, 1)[None]


def _blend(image, other, factor):
    """factor * image + (1 - factor) * other, within [0, 1]."""
    factor = np.float32(factor)
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def adjust_brightness(image, factor: float) -> np.ndarray:
    """Blend an image (C, H, W) in [0, 1] with black."""
    return _blend(image, np.float32(0), factor)


def adjust_contrast(image, factor: float) -> np.ndarray:
    """Blend an image (C, H, W) in [0, 1] with the mean of its luma."""
    return _blend(image, grey(image).mean(dtype=np.float64).astype(np.float32), factor)


def adjust_saturation(image, factor: float) -> np.ndarray:
    """Blend an image (C, H, W) in [0, 1] with its luma; grey ones stay."""
    return image if len(image) == 1 else _blend(image, grey(image), factor)


def adjust_hue(image, shift: float) -> np.ndarray:
    """Turn the hue of an image (C, H, W) in [0, 1] by `shift` of a full circle; grey ones stay.

    Hue, saturation and value of the hexagonal cone: of the six sextants, each has one channel at
    its largest, one at its smallest, and one between them.
    """
    if len(image) == 1:
        return image
    red, green, blue = image
    value, lowest = image.max(axis=0), image.min(axis=0)
    chroma = value - lowest
    safe = np.where(chroma > 0, chroma, np.float32(1))
    hue = np.where(
        value == red, (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )  # fmt: skip
    hue = hue + np.float32(6 * shift)
    # A channel's distance in hue from where it peaks: within 1 it is at the top, beyond 2 at the
    # bottom, and linear between.
    peaks = np.array([0, 2, 4], np.float32)[:, None, None]
    distance = np.abs((hue - peaks + 3) % 6 - 3)
    return np.clip(value - chroma * np.clip(distance - 1, 0, 1), 0, 1)


class ColorJitter:
    """Brightness, contrast, saturation and hue of each image changed at random, in random order.

    The definitions are torchvision's: a number x draws the factor uniformly from
    [max(0, 1 - x), 1 + x] and the turn of the hue from [-x, x] (x at most 0.5: half a circle); a
    pair is the range itself. Images are (C, H, W) in [0, 1] and stay so; C is 1 or 3, and one
    channel has neither saturation nor hue. Raises ValueError for ranges that do not fit.
    """

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
        self._steps = (
            (adjust_brightness, 1, _factors("brightness", brightness)),
            (adjust_contrast, 1, _factors("contrast", contrast)),
            (adjust_saturation, 1, _factors("saturation", saturation)),
            (adjust_hue, 0, _turns(hue)),
        )

    def __call__(self, images, rng):
        return like(images, [self._jitter(image, rng) for image in as_list(images)])

    def _jitter(self, image, rng):
        if len(image) not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {len(image)}")
        for index in rng.permutation(len(self._steps)):
            adjust, neutral, (low, high) = self._steps[index]
            amount = rng.uniform(low, high)  # drawn in any case, so that none shifts the others'
            if amount != neutral:
                image = adjust(image, amount)
        return image


def _factors(name, value):
    if np.ndim(value) == 0:
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value!r}")
        value = (max(0, 1 - value), 1 + value)
    return check_range(name, value, 0)


def _turns(value):
    return check_range("hue", (-value, value) if np.ndim(value) == 0 else value, -0.5, 0.5)


class PCALighting:
    """Adds p_1 a_1 l_1 + p_2 a_2 l_2 + p_3 a_3 l_3 to every pixel; a_i ~ N(0, std), once an image.

    p and l are the eigenvectors (columns) and eigenvalues of the covariance of the set's red, green
    and blue values (Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep
    convolutional neural networks", NIPS 2012, section 4.1); `covariance_eigen` computes them. The
    default is ImageNet's, for values in [0, 1], as fb.resnet.torch publishes them. Values may
    leave [0, 1]. Raises ValueError for a negative std, other shapes than (3,) and (3, 3), and
    images of other than three channels.
    """

    def __init__(
        self, std=0.1, eigenvalues=IMAGENET_EIGENVALUES, eigenvectors=IMAGENET_EIGENVECTORS
    ):
        values, vectors = np.asarray(eigenvalues), np.asarray(eigenvectors)
        if not std >= 0:
            raise ValueError(f"std must not be negative, got {std}")
        if values.shape != (3,) or vectors.shape != (3, 3):
            raise ValueError(
                "eigenvalues and eigenvectors must have shapes (3,) and (3, 3), got "
                f"{values.shape} and {vectors.shape}"
            )
        self.std = std
        self.directions = vectors * values

    def __call__(self, images, rng):
        drawn = rng.normal(0, self.std, (len(images), 3))
        shifts = (drawn @ self.directions.T).astype(np.float32)[:, :, None, None]
        pairs = zip(as_list(images), shifts, strict=True)
        return like(images, [self._add(image, shift) for image, shift in pairs])

    def _add(self, image, shift):
        if len(image) != 3:
            raise ValueError(f"images must have 3 channels, got {len(image)}")
        return image + shift


def covariance_eigen(images, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(eigenvalues (3,) from the largest down, eigenvectors (3, 3) as columns) for PCALighting.

    They are those of the covariance of the red, green and blue values of all pixels. `images` is a
    data set, read in batches, an array (N, 3, H, W), or a list of images (3, H, W). Every vector's
    largest component is positive. float64. Raises ValueError for other than three channels, or no
    pixels at all.
    """
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for image in _each_image(images, batch_size):
        if len(image) != 3:
            raise ValueError(f"images must have 3 channels, got {len(image)}")
        # About the middle of the range the sums lose no digits to a large common offset.
        pixels = image.reshape(3, -1).astype(np.float64) - 0.5
        count += pixels.shape[1]
        total += pixels.sum(axis=1)
        products += pixels @ pixels.T
    if not count:
        raise ValueError("images must hold at least one pixel, got none")
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return values.clip(min=0), vectors * np.sign(largest)


def _each_image(images, batch_size):
    if not hasattr(images, "batch"):
        yield from as_list(images)
        return
    for start in range(0, len(images), batch_size):
        yield from images.batch(np.arange(start, min(start + batch_size, len(images))))[0]
