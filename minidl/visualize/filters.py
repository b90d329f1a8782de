"""Filters and feature maps as sheets of tiles: arrays of grey values or colours in [0, 1]."""

import math

import numpy as np

from minidl.array_module import to_device


def unit_range(image: np.ndarray) -> np.ndarray:
    """`image` stretched to [0, 1] in float64; 0 where all its values are equal."""
    image = image.astype(np.float64)
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def around_grey(image: np.ndarray) -> np.ndarray:
    """`image` scaled to [0, 1] in float64 such that 0 becomes 0.5, the middle grey."""
    largest = np.abs(image).max()
    return 0.5 + image.astype(np.float64) / (2 * largest if largest > 0 else 1)


def as_picture(image: np.ndarray) -> np.ndarray:
    """(C, H, W) as (H, W) for one channel or (H, W, 3) for three; other counts are averaged."""
    if len(image) == 3:
        return image.transpose(1, 2, 0)
    return image.mean(axis=0)


def tile(pictures, gap: int = 1, background: float = 1.0) -> np.ndarray:
    """Pictures, (h, w) or (h, w, 3) each, row by row on a sheet that is about square.

    Each lies in the middle of a cell as large as the largest; between cells are `gap` pixels of
    `background`. Raises ValueError for no pictures or for grey ones beside coloured ones.
    """
    if not len(pictures):
        raise ValueError("pictures must hold at least one, got none")
    kinds = {picture.shape[2:] for picture in pictures}
    if len(kinds) > 1:
        raise ValueError(f"pictures must all be grey or all be coloured, got both: {kinds}")
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    columns = tile_columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full((*size, *kinds.pop()), background)
    for i, picture in enumerate(pictures):
        h, w = picture.shape[:2]
        top = i // columns * (height + gap) + (height - h) // 2
        left = i % columns * (width + gap) + (width - w) // 2
        sheet[top : top + h, left : left + w] = picture
    return sheet


def tile_columns(count: int) -> int:
    """How many of `count` pictures `tile` puts into a row."""
    return math.ceil(math.sqrt(count))


def first_filters(model) -> tuple[str, np.ndarray]:
    """(name, weight (O, C, kh, kw)) of the first layer with such a weight. ValueError if none."""
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 4:
            return name, to_device(weight._array, "cpu")
    raise ValueError("model must have a convolution to show the filters of, it has none")


def filter_pictures(weight: np.ndarray) -> list[np.ndarray]:
    """The filters of a weight (O, C, kh, kw) as pictures, each scaled to its own range.

    With three input channels a filter is one coloured picture, else C grey ones.
    """
    if weight.shape[1] == 3:
        return [unit_range(as_picture(filter)) for filter in weight]
    return [unit_range(plane) for filter in weight for plane in filter]


def map_pictures(maps: np.ndarray) -> list[np.ndarray]:
    """The maps (C, h, w) of one image as pictures, each scaled to its own range.

    Maps of a single element, which have no range, are all scaled to one.
    """
    if maps[0].size == 1:
        return list(unit_range(maps))
    return [unit_range(plane) for plane in maps]
