"""The deconvnet: which pixels made a feature map fire.

One activation of a layer is kept, all others are set to zero, and what is left goes down through
the layers that it came up through, each replaced by its opposite:

* max-pooling by *unpooling*: every value returns to the place (the switch) it was taken from; where
  windows overlap and share a switch, their values are added;
* rectification by rectification: the positive part of what comes down passes, wherever the forward
  pass was positive or not;
* convolution by convolution with the transposed filters, without the bias.

All but the second is what backward does anyway, for the transpose of a linear map is its gradient.
A deconvnet is thus a walk back through the graph with another rule at rectifications, and holds for
every graph: branches that were concatenated receive their slices, summands of a residual addition
the whole, and what comes down several ways is added. Average pooling spreads evenly, and batch
normalisation (in evaluation a linear map) scales.

Contrast normalisation is passed over, as in the paper, which does not invert it. For every other
non-linearity (tanh, sigmoid, softmax, maximum, clip) there is no rule in the paper: its own
derivative at the forward activations is used, which makes a network without rectification show
the gradient, as Simonyan, Vedaldi and Zisserman (2014) do.

Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks" (2014), section
2.1.
"""

import numpy as np

from minidl import ops
from minidl.array_module import device_of, to_device
from minidl.graph import grad
from minidl.ops.conv import BiasReLU, Conv2d, Conv2dReLU
from minidl.ops.elementwise import ReLU
from minidl.ops.norm import LocalResponseNorm
from minidl.tensor import Tensor, enable_grad
from minidl.visualize.observe import as_images, as_maps, check_channel, observe, strongest


def _rectify(node, down):
    return ops.relu(down)


def _rectify_without_bias(node, down):
    return ops.relu(down), None


def _rectify_behind_convolution(node, down):
    return Conv2d.backward(node, ops.relu(down))


def _pass_over(node, down):
    return down


RULES = {
    ReLU: _rectify, BiasReLU: _rectify_without_bias, Conv2dReLU: _rectify_behind_convolution,
    LocalResponseNorm: _pass_over,
}  # fmt: skip


def project(model, image, layer: str, channel, position=None) -> np.ndarray:
    """The pixels (N, C, H, W) that one activation of `layer` projects down to, for each image.

    `image`: the network's input, (C, H, W) or (N, C, H, W). `layer`: a dotted name as in
    `named_modules`, whose output is (N, channels, h, w) or (N, channels). `channel`: the map, one
    for all images or one each. `position`: (row, column) in the map, likewise; None for the
    strongest activation of the map. The activation starts with its own value, so that a negative
    one (of a layer before its rectification) shows what spoke against it.

    The model is run in evaluation mode, and is left as it was. Raises ValueError for an unknown
    layer, channel or position, or an image that does not fit.
    """
    images = as_images(model, image, "image").requires_grad_()
    with enable_grad():
        seen, _ = observe(model, images, [layer])
    output = seen[layer]
    kept = _one_activation(as_maps(output._array, layer), layer, channel, position)
    (pixels,) = grad(output, images, Tensor._wrap(kept.reshape(output.shape)), rules=RULES)
    return to_device(pixels._array, "cpu")


def _one_activation(maps, layer, channel, position):
    """`maps` (N, C, h, w), zero but for one element an image, on their device."""
    device, maps = device_of(maps), to_device(maps, "cpu")
    count, channels, height, width = maps.shape
    if np.shape(channel) not in ((), (count,)):
        raise ValueError(f"channel must be one number or one an image ({count}), got {channel}")
    check_channel(channel, channels, layer)
    each = np.arange(count)
    channel = np.broadcast_to(channel, count)
    if position is None:
        position = np.stack(strongest(maps[each, channel]), axis=1)
    else:
        _check_position(position, count, (height, width), layer)
    rows, columns = np.broadcast_to(position, (count, 2)).T
    place = (each, channel, rows, columns)
    kept = np.zeros_like(maps)
    kept[place] = maps[place]
    return to_device(kept, device)


def _check_position(position, count, size, layer):
    position = np.asarray(position)
    fits = position.shape in ((2,), (count, 2))
    if not fits or not np.all((0 <= position) & (position < size)):
        raise ValueError(
            f"position must be a (row, column) below {size}, the size of the maps of layer "
            f"{layer!r}, or one an image ({count}), got {position.tolist()}"
        )
