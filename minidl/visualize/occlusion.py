"""Occlusion: is it the object that the network looks at, or what stands around it?

A grey square slides over the image. Where it hides what the network needs, the probability of the
correct class falls, and so does the activation of a feature map that responds to the object.

Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks" (2014), section
4.2 and figure 7.
"""

from dataclasses import dataclass

import numpy as np

from minidl import ops
from minidl.array_module import to_device
from minidl.tensor import Tensor, no_grad
from minidl.visualize.observe import as_images, as_maps, observe


@dataclass(frozen=True, eq=False)
class Occlusion:
    """Maps with one entry a place of the square, whose centre is at (row, column) `stride` apart.

    `probability`: of the correct class; `best`: the most probable class; `activation`: the sum over
    the map `channel` of the chosen layer (None without one). `label`, `size` and `stride` are as
    they were given.
    """

    label: int
    size: int
    stride: int
    probability: np.ndarray
    best: np.ndarray
    activation: np.ndarray | None
    channel: int | None


def occlusion_map(
    model, image, label: int, size: int, stride: int, fill=None, layer=None, scores=None,
    batch_size=64,
) -> Occlusion:  # fmt: skip
    """Slide a square of `size` pixels over `image` (C, H, W) in steps of `stride`.

    Its centre goes from pixel (0, 0) over all multiples of `stride` inside the image; what reaches
    beyond the border is cut off. `fill`: its value, one number or one a channel; by default the
    middle between the image's least and greatest value, which is grey. `layer`: whose map with the
    largest total activation in the bare image is followed. `scores`: from the model's outputs to
    class scores (N, classes), the outputs themselves by default. `batch_size` images are
    evaluated at a time.

    Raises ValueError for sizes below 1, an unknown label or layer, or an image that does not fit.
    """
    for name, value in (("size", size), ("stride", stride), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    bare = as_images(model, image, "image")
    if len(bare) != 1:
        raise ValueError(f"image must be one image (C, H, W), got {len(bare)}")
    follow = _Follower(model, layer, scores)
    classes = follow(bare)[0].shape[1]
    if not 0 <= label < classes:
        raise ValueError(f"label must lie in [0, {classes}), got {label}")
    pixels = to_device(bare._array, "cpu")[0]
    fill = (pixels.min() + pixels.max()) / 2 if fill is None else fill
    centres = [range(0, extent, stride) for extent in pixels.shape[1:]]
    places = [(row, column) for row in centres[0] for column in centres[1]]
    found = []
    for start in range(0, len(places), batch_size):
        occluded = _occlude(pixels, places[start : start + batch_size], size, fill)
        found.append(follow(as_images(model, occluded)))
    shape = tuple(map(len, centres))
    probabilities = np.concatenate([p for p, _ in found])
    activation = None
    if layer is not None:
        activation = np.concatenate([a for _, a in found]).reshape(shape)
    return Occlusion(
        label=label,
        size=size,
        stride=stride,
        probability=probabilities[:, label].reshape(shape),
        best=probabilities.argmax(axis=1).reshape(shape),
        activation=activation,
        channel=follow.channel,
    )


class _Follower:
    """From images to class probabilities (N, classes) and the total activation (N,) of a map.

    The map is the strongest in the first image it is called with.
    """

    def __init__(self, model, layer, scores):
        self.model = model
        self.layers = [] if layer is None else [layer]
        self.scores = scores or (lambda outputs: outputs)
        self.channel = None

    def __call__(self, images: Tensor):
        with no_grad():
            seen, outputs = observe(self.model, images, self.layers)
            probabilities = ops.softmax(self.scores(outputs), axis=1)
        totals = None
        for layer, output in seen.items():
            totals = as_maps(to_device(output._array, "cpu"), layer).sum(axis=(2, 3))
            if self.channel is None:
                self.channel = int(totals[0].argmax())
            totals = totals[:, self.channel]
        return to_device(probabilities._array, "cpu"), totals


def _occlude(pixels, places, size, fill):
    """A copy of the image for every place, with the square centred there."""
    occluded = np.repeat(pixels[None], len(places), axis=0)
    colour = np.broadcast_to(np.asarray(fill, pixels.dtype), len(pixels)).reshape(-1, 1, 1)
    for copy, (row, column) in zip(occluded, places, strict=True):
        top, left = row - size // 2, column - size // 2
        copy[:, max(top, 0) : top + size, max(left, 0) : left + size] = colour
    return occluded
