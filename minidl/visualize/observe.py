"""Running a network to look at it: evaluation mode, and what its layers put out."""

import numpy as np

from minidl.array_module import is_array
from minidl.evaluation import evaluating
from minidl.tensor import Tensor, tensor


def as_images(model, images, name: str = "images") -> Tensor:
    """A copy of `images` as a batch (N, C, H, W) in the model's dtype and on its device.

    `images`: an array or Tensor of one image (C, H, W) or of several (N, C, H, W). Raises
    ValueError for other shapes, TypeError for anything else.
    """
    array = images._array if isinstance(images, Tensor) else images
    if not is_array(array):
        raise TypeError(f"{name} must be an array or a Tensor, got {type(images).__name__}")
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(f"{name} must have shape (C, H, W) or (N, C, H, W), got {array.shape}")
    first = next(model.parameters(), None)
    batch = array if array.ndim == 4 else array[None]
    if first is None:
        return tensor(batch, np.float32 if batch.dtype.kind != "f" else None)
    return tensor(batch, first.dtype).to(first.device)


def layer_names(model) -> list[str]:
    """The dotted names of all modules below `model`, as `named_modules` gives them."""
    return [name for name, _ in model.named_modules() if name]


def observe(model, images: Tensor, layers) -> tuple[dict[str, Tensor], Tensor]:
    """({layer: its output}, the model's output) for `images`, in evaluation mode.

    `layers`: dotted names; "" is the model itself. Of a layer that is called several times the
    last output counts. Raises ValueError for an unknown name (listing those there are) and for a
    layer that was not called.
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise ValueError(f"layer must be one of {', '.join(layer_names(model))}, got {name!r}")
    seen, handles = {}, []

    def keep(name):
        def hook(module, inputs, outputs):
            seen[name] = outputs

        return hook

    try:
        for name in layers:
            handles.append(modules[name].register_forward_hook(keep(name)))
        with evaluating(model):
            output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in seen:
            raise ValueError(f"layer {name!r} was not called: evaluation does not pass through it")
    return {name: seen[name] for name in layers}, output


def as_maps(array, layer: str):
    """A layer's output as maps (N, C, h, w): a vector (N, C) is taken for maps of one element."""
    if array.ndim == 2:
        array = array[:, :, None, None]
    if array.ndim != 4:
        raise ValueError(
            f"layer {layer!r} must put out maps (N, C, h, w) or vectors (N, C), got {array.shape}"
        )
    return array


def check_channel(channel, channels: int, layer: str) -> None:
    """ValueError unless each number of `channel` is a channel of a layer with so many."""
    if not np.all((0 <= np.asarray(channel)) & (np.asarray(channel) < channels)):
        raise ValueError(
            f"channel must lie in [0, {channels}), the maps of layer {layer!r}, got {channel}"
        )


def strongest(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the largest element of each plane (..., h, w); the first of equals."""
    flat = planes.reshape(*planes.shape[:-2], -1).argmax(axis=-1)
    return np.unravel_index(flat, planes.shape[-2:])
