"""What layers put out, and the images that make a feature map fire most."""

from dataclasses import dataclass

import numpy as np

from minidl.array_module import is_array, to_device
from minidl.tensor import Tensor, no_grad
from minidl.visualize.observe import as_images, as_maps, check_channel, observe, strongest
from minidl.visualize.receptive_field import receptive_field


def capture(model, images, layers) -> dict[str, np.ndarray]:
    """{layer: its output for `images`} after one evaluation of (C, H, W) or (N, C, H, W).

    `layers`: a dotted name as in `named_modules`, or several. Raises ValueError for an unknown
    layer, or images that do not fit.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    with no_grad():
        seen, _ = observe(model, as_images(model, images), names)
    return {name: to_device(t._array, "cpu") for name, t in seen.items()}


@dataclass(frozen=True, eq=False)
class Patch:
    """Where one image makes a map fire most.

    `index`: the image's number in the set; `value`: the activation; `position`: (row, column) in
    the map; `image`: the network's input (C, H, W); `box`: (top, bottom, left, right), half-open,
    of the pixels that the activation sees, clipped at the image's borders.
    """

    index: int
    value: float
    position: tuple[int, int]
    image: np.ndarray
    box: tuple[int, int, int, int]

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The box cut out of `image` (C, H, W): the patch itself, or its projection's part."""
        top, bottom, left, right = self.box
        return image[:, top:bottom, left:right]


def top_patches(model, images, layer: str, channel: int, k=9, batch_size=64) -> list[Patch]:
    """The `k` images whose strongest activation in one map is the largest, strongest first.

    One patch an image, as in Zeiler and Fergus 2014, figure 2; of equals the earlier image. See
    `top_patches_of_maps` for the arguments and errors.
    """
    return top_patches_of_maps(model, images, layer, [channel], k, batch_size)[channel]


def top_patches_of_maps(
    model, images, layer: str, channels, k=9, batch_size=64
) -> dict[int, list[Patch]]:
    """{channel: its `top_patches`} for several maps in one pass over the images.

    `images`: an array or Tensor (N, C, H, W), cut into batches of `batch_size`, or an iterable of
    batches, (images, labels) as a DataLoader gives them or images alone. Of the images seen only
    the k strongest of each map are kept. Raises ValueError for an unknown layer or channel, a k or
    batch_size below 1, or no images.
    """
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    best = {int(channel): [] for channel in channels}
    first = 0
    for batch in _batches(images, batch_size):
        maps = as_maps(capture(model, batch, layer)[layer], layer)
        check_channel(list(best), maps.shape[1], layer)
        if not first:
            field = receptive_field(model, batch.shape[1:])[layer]
        for channel, patches in best.items():
            found = _strongest_patches(maps[:, channel], batch, first, field, patches, k)
            best[channel] = sorted(patches + found, key=lambda p: (-p.value, p.index))[:k]
        first += len(batch)
    if not first:
        raise ValueError("images must hold at least one image, got none")
    return best


def _strongest_patches(planes, batch, first, field, patches, k):
    """The patches of those images of the batch (from number `first`) that may be among the k."""
    rows, columns = strongest(planes)
    values = planes[np.arange(len(planes)), rows, columns]
    bar = patches[-1].value if len(patches) == k else -np.inf
    chosen = np.argsort(-values, kind="stable")[:k]
    return [
        Patch(
            index=first + int(i),
            value=float(values[i]),
            position=(int(rows[i]), int(columns[i])),
            image=batch[i].copy(),
            box=field.box((rows[i], columns[i]), batch.shape[2:]),
        )
        for i in chosen
        if values[i] > bar
    ]


def _batches(images, batch_size):
    """Arrays (N, C, H, W) on the CPU."""
    if isinstance(images, Tensor) or is_array(images):
        array = images._array if isinstance(images, Tensor) else images
        images = (array[i : i + batch_size] for i in range(0, len(array), batch_size))
    for batch in images:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        batch = to_device(batch._array if isinstance(batch, Tensor) else batch, "cpu")
        if batch.ndim != 4:
            raise ValueError(f"images must have shape (N, C, H, W), got {batch.shape}")
        yield batch
