"""Crops: all of them make an equal-sized batch (N, C, H, W) of a list of images."""

import math

import numpy as np

from minidl.data.transforms.basic import Pad
from minidl.data.transforms.images import as_list, as_pair, check_range, stack
from minidl.data.transforms.resize import resize

_TRIES = 10


def _require(image, size, what):
    if image.shape[1] < size[0] or image.shape[2] < size[1]:
        raise ValueError(
            f"{what} of {size[0]}x{size[1]} needs images no smaller, got {image.shape[1]}x"
            f"{image.shape[2]}: resize first"
        )


def _window(image, top, left, size):
    return image[:, top : top + size[0], left : left + size[1]]


def _centre(image, size):
    top, left = (round((n - m) / 2) for n, m in zip(image.shape[1:], size, strict=True))
    return _window(image, top, left, size)


class CenterCrop:
    """The central `size`, a number or (height, width). ValueError where an image is smaller."""

    def __init__(self, size):
        self.size = as_pair("size", size)

    def __call__(self, images, rng):
        images = as_list(images)
        for image in images:
            _require(image, self.size, "CenterCrop")
        return stack([_centre(image, self.size) for image in images])


class RandomCrop:
    """A `size` from a uniformly drawn place of each image, after `padding` pixels of 0 all around.

    Raises ValueError for a negative padding, and where a padded image is smaller than the crop.
    """

    def __init__(self, size, padding: int = 0):
        self.size = as_pair("size", size)
        self.pad = Pad(padding)

    def __call__(self, images, rng):
        images = as_list(self.pad(images, rng) if self.pad.padding else images)
        for image in images:
            _require(image, self.size, "RandomCrop")
        sizes = np.array([image.shape[1:] for image in images]).reshape(-1, 2)
        places = rng.integers(sizes - self.size + 1)
        return stack([_window(image, top, left, self.size)
                      for image, (top, left) in zip(images, places, strict=True)])  # fmt: skip


class RandomResizedCrop:
    """A window of random area and shape of each image, resized to `size`.

    The area is drawn uniformly as a fraction of the image's within `scale`, the ratio of width to
    height from `ratio`, uniformly in its logarithm. After ten draws that do not fit, it is the
    largest central window whose ratio is allowed. (Szegedy et al., "Going deeper with
    convolutions", CVPR 2015, section 6: 8 % to 100 %, 3/4 to 4/3.) Raises ValueError for ranges
    that are not 0 < low <= high, or a scale above 1.
    """

    def __init__(self, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
        self.size = as_pair("size", size)
        self.scale = check_range("scale", scale, 0, 1)
        self.ratio = check_range("ratio", ratio, 0)
        if not (self.scale[0] > 0 and self.ratio[0] > 0):
            raise ValueError(f"scale and ratio must be above 0, got {scale!r} and {ratio!r}")

    def __call__(self, images, rng):
        return stack([self._crop(image, rng) for image in as_list(images)])

    def _crop(self, image, rng):
        top, left, h, w = self.draw(*image.shape[1:], rng)
        return resize(_window(image, top, left, (h, w)), *self.size)

    def draw(self, height: int, width: int, rng) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a window in an image of this size."""
        low, high = map(math.log, self.ratio)
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = rng.integers([height - h + 1, width - w + 1])
                return int(top), int(left), h, w
        h, w = height, width
        if w / h < self.ratio[0]:
            h = max(round(w / self.ratio[0]), 1)
        elif w / h > self.ratio[1]:
            w = max(round(h * self.ratio[1]), 1)
        return (height - h) // 2, (width - w) // 2, h, w


class TenCrop:
    """The four corners and the centre of each image, then their mirror images.

    Gives (N, 10, C, H, W), to be averaged over the ten after the network (Krizhevsky, Sutskever and
    Hinton, NIPS 2012, section 4.1). The order is top left, top right, bottom left, bottom right,
    centre. Raises ValueError where an image is smaller than `size`.
    """

    def __init__(self, size):
        self.size = as_pair("size", size)

    def __call__(self, images, rng):
        return stack([self._crops(image) for image in as_list(images)])

    def _crops(self, image):
        _require(image, self.size, "TenCrop")
        bottom, right = image.shape[1] - self.size[0], image.shape[2] - self.size[1]
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        five = [_window(image, *corner, self.size) for corner in corners]
        five = np.stack([*five, _centre(image, self.size)])
        return np.concatenate([five, five[..., ::-1]])
