"""Resizing, bilinear with a triangle as wide as the reduction, so that nothing aliases."""

import numpy as np

from minidl.data.transforms.images import as_list, as_pair, like, stack


def resize(image, height: int, width: int) -> np.ndarray:
    """An image (C, H, W) as float32 (C, height, width). Values stay within those of the image."""
    from PIL import Image

    if image.shape[1:] == (height, width):
        return np.array(image, np.float32)
    result = np.empty((len(image), height, width), np.float32)
    for channel, pixels in zip(result, np.ascontiguousarray(image, np.float32), strict=True):
        # Mode F: Pillow resamples floating point numbers one channel at a time.
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        channel[:] = resized
    return result


class Resize:
    """To (height, width), or, given one number, so that the shorter side has it, in proportion.

    The longer side is then size * longer / shorter, rounded down. A pair makes an equal-sized
    batch of a list. Raises ValueError for sizes that are not positive integers.
    """

    def __init__(self, size):
        self.size = as_pair("size", size)
        self.shorter = not isinstance(size, (tuple, list))

    def __call__(self, images, rng):
        if self.shorter:
            resized = [resize_shorter(image, self.size[0]) for image in as_list(images)]
            return like(images, resized)
        return stack([resize(image, *self.size) for image in as_list(images)])


class RandomResize:
    """The shorter side of each image drawn uniformly from the integers low to high, in proportion.

    The scale jitter of Simonyan and Zisserman, "Very deep convolutional networks for large-scale
    image recognition", ICLR 2015, section 3.1 (there 256 to 512). Gives a list. Raises ValueError
    unless both are integers and 1 <= low <= high.
    """

    def __init__(self, low: int, high: int):
        self.low, self.high = as_pair("(low, high)", (low, high))
        if low > high:
            raise ValueError(f"low must be at most high, got {low} and {high}")

    def __call__(self, images, rng):
        sizes = rng.integers(self.low, self.high, len(images), endpoint=True)
        return [resize_shorter(image, int(size))
                for image, size in zip(as_list(images), sizes, strict=True)]  # fmt: skip


def resize_shorter(image, size: int) -> np.ndarray:
    """An image (C, H, W) resized in proportion so that its shorter side has `size` pixels."""
    _, h, w = image.shape
    return resize(image, *((size, size * w // h) if h <= w else (size * h // w, size)))
