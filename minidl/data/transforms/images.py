"""What the transforms share: the two forms that images come in."""

import numpy as np


def as_list(images) -> list[np.ndarray]:
    """The images (C, H, W) of a batch, whether it is an array or already a list.

    Raises TypeError for anything else, ValueError for images of other than three axes.
    """
    if not isinstance(images, (np.ndarray, list)):
        raise TypeError(f"images must be an array or a list, got {type(images).__name__}")
    for image in images:
        if np.ndim(image) != 3:
            raise ValueError(f"each image must be (C, H, W), got shape {np.shape(image)}")
    return list(images)


def like(images, results):
    """`results`, one an image, in the form of `images`: stacked where that is an array."""
    if isinstance(images, list):
        return results
    return np.stack(results) if results else images


def stack(results) -> np.ndarray:
    """Equal-sized images as one array (N, C, H, W). ValueError where there are none."""
    if not results:
        raise ValueError("images must hold at least one image, got none")
    if len({len(image) for image in results}) > 1:
        raise ValueError("images must have equally many channels: convert them (ToRGB)")
    return np.stack(results)


def as_pair(name: str, size) -> tuple[int, int]:
    """(height, width) from one number or two. ValueError unless they are positive integers."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise ValueError(f"{name} must be a positive integer or a pair of them, got {size!r}")
    return pair


def check_range(name: str, value, lowest: float, highest: float = np.inf) -> tuple[float, float]:
    """`value` as (low, high). ValueError unless lowest <= low <= high <= highest."""
    low, high = value
    if not lowest <= low <= high <= highest:
        raise ValueError(
            f"{name} must be (low, high) within [{lowest:g}, {highest:g}], got {value!r}"
        )
    return float(low), float(high)
