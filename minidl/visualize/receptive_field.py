"""Receptive fields: the input pixels that an element of a layer can see.

Along one axis, element i of a layer sees the pixels start + i j ... start + i j + r - 1: r is the
*size* of its field, j its *stride* (or jump) from one element to the next, and *start* the place of
element 0's, negative where that reaches into the padding. The image itself has r = 1, j = 1 and
start 0. A window of k taps (stride s, dilation d, padding p before the first element) leads from
the field of its input to that of its output:

    r_out     = r_in + (k - 1) d j_in
    j_out     = j_in s
    start_out = start_in - p j_in

Where branches meet (a concatenation, a residual addition), the field spans those of all branches. A
map that mixes all positions (a fully connected layer, a global pooling) sees what all of its
inputs see together.

Source: Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks",
Distill (2019).
"""

from typing import NamedTuple

import numpy as np

from minidl.graph import _topological_order
from minidl.ops.conv import Conv2d, ConvTranspose2d
from minidl.ops.linalg import MatMul
from minidl.ops.loss import LogSoftmax, Softmax
from minidl.ops.pool import AvgPool2d, MaxPool2d, MaxUnpool2d
from minidl.ops.shape import Concatenate, GetItem, Pad, Reshape, Transpose
from minidl.tensor import Tensor, enable_grad
from minidl.visualize.observe import as_images, observe


class ReceptiveField(NamedTuple):
    """What an element of a layer sees, in input pixels; each entry is (vertical, horizontal).

    `stride` is 0 where all elements see the same pixels.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, position, image_size) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of the pixels that element `position` (row, column) sees.

        Half-open, clipped at the borders of an image of `image_size` (H, W).
        """
        edges = []
        for axis, extent in enumerate(image_size):
            first = self.start[axis] + int(position[axis]) * self.stride[axis]
            edges += [min(max(first, 0), extent), min(max(first + self.size[axis], 0), extent)]
        return tuple(edges)


def receptive_field(model, input_shape=None) -> dict[str, ReceptiveField]:
    """{layer: its receptive field} for every module that puts out a tensor, in order of calls.

    Names are those of `named_modules`, "" the model itself. `input_shape` (C, H, W) defaults to
    ``model.input_shape``. The graph of one evaluation is followed, so that every way of composing
    windows counts, whether modules or functions made them. A Function that is not of minidl's own
    is taken to keep each element in its place where it keeps the height and width; one that
    changes them, and a transposed convolution, to see all of its input.

    Of a layer called several times the last call counts; layers that the evaluation does not pass
    through are left out. Raises ValueError without an input shape or for one that does not fit.
    """
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise ValueError("input_shape must be given: the model has no attribute input_shape")
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (C, H, W), got {tuple(shape)}")
    image = as_images(model, np.zeros(shape, np.float32), "input_shape").requires_grad_()
    with enable_grad():
        outputs = _all_outputs(model, image)
    fields = _follow(image, [t for t in outputs.values() if t.requires_grad])
    found = {name: _field_of(t, image, fields) for name, t in outputs.items()}
    return {
        name: ReceptiveField(*zip(*field, strict=True))
        for name, field in found.items()
        if field is not None
    }


def _all_outputs(model, image) -> dict[str, Tensor]:
    """The output tensor of every module that is called, in order of (last) calls."""
    outputs, handles = {}, []

    def keep(name):
        def hook(module, inputs, result):
            outputs.pop(name, None)
            if isinstance(result, Tensor):
                outputs[name] = result

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(keep(name)))
        observe(model, image, [])
    finally:
        for handle in handles:
            handle.remove()
    return outputs


class _Axis(NamedTuple):
    size: int
    stride: int
    start: int


_PIXEL = (_Axis(1, 1, 0), _Axis(1, 1, 0))


def _follow(image, tensors) -> dict:
    """{node: (vertical, horizontal) _Axis, or None where it does not depend on the image}."""
    fields = {}
    for node in _topological_order([t._node for t in tensors if t._node is not None]):
        rule = _RULES.get(type(node), _same_place)
        reached = [
            rule(node, index, field)
            for index, edge in enumerate(node.edges)
            if edge is not None and (field := _lookup(edge[0], image, fields)) is not None
        ]
        fields[node] = _span(reached, _extents(node.output_meta[0][0])) if reached else None
    return fields


def _lookup(source, image, fields):
    """The field of an edge's source: a node, the image, or another leaf (None)."""
    return _PIXEL if source is image else fields.get(source)


def _field_of(tensor, image, fields):
    return _lookup(tensor if tensor._node is None else tensor._node, image, fields)


def _extents(shape) -> tuple[int, int]:
    """How many positions a tensor has along either axis: vectors have one."""
    return shape[-2:] if len(shape) >= 4 else (1, 1)


def _span(fields, extents):
    """The smallest field that holds all of `fields`, which belong to one tensor's elements."""
    return tuple(_span_axis([field[i] for field in fields], extents[i]) for i in (0, 1))


def _span_axis(axes, extent):
    strides = {axis.stride for axis in axes}
    if len(strides) > 1:
        # The ends of the union do not advance evenly: give every element what all see together.
        axes = [_all_along(axis, extent) for axis in axes]
        strides = {0}
    start = min(axis.start for axis in axes)
    stop = max(axis.start + axis.size for axis in axes)
    return _Axis(stop - start, strides.pop(), start)


def _all_along(axis, extent):
    """What `extent` elements see together."""
    return _Axis(axis.size + (extent - 1) * axis.stride, 0, axis.start)


# -- one rule a kind of node: the field of the output, as far as input `index` reaches it ---------


def _everything(node, index, field):
    extents = _extents(node.input_meta[index][0])
    return tuple(_all_along(axis, n) for axis, n in zip(field, extents, strict=True))


def _same_place(node, index, field):
    before, after = node.input_meta[index][0], node.output_meta[0][0]
    return tuple(
        axis if n == m else _all_along(axis, n)
        for axis, n, m in zip(field, _extents(before), _extents(after), strict=True)
    )


def _window(field, kernel_size, stride, padding, dilation):
    return tuple(
        _Axis(
            axis.size + (kernel_size[i] - 1) * dilation[i] * axis.stride,
            axis.stride * stride[i],
            axis.start - padding[2 * i] * axis.stride,
        )
        for i, axis in enumerate(field)
    )


def _conv(node, index, field):
    if index:  # a weight computed from the image
        return _everything(node, index, field)
    kernel_size = node.input_meta[1][0][2:]
    return _window(field, kernel_size, *node.settings[:3])


def _max_pool(node, index, field):
    return _window(field, *node.settings[:4])


def _avg_pool(node, index, field):
    kernel_size, stride, padding = node.settings[:3]
    return _window(field, kernel_size, stride, padding, (1, 1))


def _pad(node, index, field):
    if len(node.pad_width) < 4:
        return field
    (top, _), (left, _) = node.pad_width[-2:]
    return _window(field, (1, 1), (1, 1), (top, 0, left, 0), (1, 1))


def _slice(node, index, field):
    shape = node.input_meta[index][0]
    slices = _plain_slices(node.key, len(shape))
    if slices is None or len(shape) < 4:
        return _everything(node, index, field)
    steps = [s.indices(n) for s, n in zip(slices[-2:], shape[-2:], strict=True)]
    if any(step < 0 for _, _, step in steps):
        return _everything(node, index, field)
    (top, _, down), (left, _, across) = steps
    return _window(field, (1, 1), (down, across), (-top, 0, -left, 0), (1, 1))


def _plain_slices(key, ndim):
    """`key` as one slice an axis, or None where it holds anything but slices and Ellipsis."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if not all(part is Ellipsis or isinstance(part, slice) for part in parts):
        return None
    filler = [slice(None)] * (ndim - sum(part is not Ellipsis for part in parts))
    if Ellipsis not in parts:
        return parts + filler
    at = parts.index(Ellipsis)
    return parts[:at] + filler + parts[at + 1 :]


def _reshape(node, index, field):
    shapes = (node.input_meta[0][0], node.output_meta[0][0])
    kept = _extents(shapes[0]) == _extents(shapes[1])
    return field if kept else _everything(node, index, field)


def _along_axes(axes_of):
    """The rule of nodes that mix the elements along ``axes_of(node)``, and along no others."""

    def rule(node, index, field):
        ndim = len(node.input_meta[index][0])
        mixes = any(axis % ndim >= ndim - 2 for axis in axes_of(node))
        return (_everything if mixes and ndim >= 4 else _same_place)(node, index, field)

    return rule


_RULES = {
    Conv2d: _conv,
    MaxPool2d: _max_pool,
    AvgPool2d: _avg_pool,
    Pad: _pad,
    GetItem: _slice,
    Reshape: _reshape,
    Concatenate: _along_axes(lambda node: (node.axis,)),
    Softmax: _along_axes(lambda node: (node.axis,)),
    LogSoftmax: _along_axes(lambda node: (node.axis,)),
    Transpose: _along_axes(lambda node: [a for i, a in enumerate(node.axes) if a != i]),
    MatMul: _everything,
    ConvTranspose2d: _everything,
    MaxUnpool2d: _everything,
}
