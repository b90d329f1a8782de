"""How each operation of minidl is written in ONNX: one emitter a Function class.

An emitter appends nodes to a `Graph` and returns the name of the operation's (first) output.
"""

import sys
from operator import index as as_index

import numpy as np
from onnx import helper

from minidl.array_module import to_device
from minidl.onnx.common import OnnxError
from minidl.onnx.graph import Graph, Site
from minidl.ops import conv, elementwise, linalg, loss, norm, pool, reduce, shape
from minidl.ops.cast import Cast

EMITTERS = {}


def emits(*classes):
    """Register the decorated function as the emitter of these Function classes."""

    def register(emitter):
        EMITTERS.update(dict.fromkeys(classes, emitter))
        return emitter

    return register


# -- elementwise -----------------------------------------------------------------------------------

_SAME = {
    elementwise.Add: "Add", elementwise.Sub: "Sub", elementwise.Mul: "Mul", elementwise.Div: "Div",
    elementwise.Pow: "Pow", elementwise.Neg: "Neg", elementwise.Exp: "Exp", elementwise.Log: "Log",
    elementwise.Sqrt: "Sqrt", elementwise.Abs: "Abs", elementwise.Tanh: "Tanh",
    elementwise.Sigmoid: "Sigmoid", elementwise.ReLU: "Relu", elementwise.Maximum: "Max",
    elementwise.Minimum: "Min", linalg.MatMul: "MatMul", pool.GlobalAvgPool2d: "GlobalAveragePool",
}  # fmt: skip


@emits(*_SAME)
def _same(g: Graph, site: Site):
    return g.node(_SAME[type(site.function)], site.inputs)


@emits(elementwise.PowScalar)
def _pow_scalar(g, site):
    exponent = g.constant(np.asarray(site.function.exponent, site.dtype))
    return g.node("Pow", (*site.inputs, exponent))


@emits(elementwise.Clip)
def _clip(g, site):
    bounds = (site.function.low, site.function.high)
    names = ["" if b is None else g.constant(np.asarray(b, site.dtype)) for b in bounds]
    return g.node("Clip", (*site.inputs, *names))


@emits(Cast)
def _cast(g, site):
    return g.node("Cast", site.inputs, to=helper.np_dtype_to_tensor_dtype(site.function.dtype))


# -- convolution, products -------------------------------------------------------------------------


def _pads(padding):
    """ONNX lists all sides before, then all sides after."""
    top, bottom, left, right = padding
    return [top, left, bottom, right]


def _conv_attributes(settings, weight_shape):
    return {
        "kernel_shape": weight_shape[2:],
        "strides": settings.stride,
        "pads": _pads(settings.padding),
        "dilations": settings.dilation,
        "group": settings.groups,
    }


@emits(conv.Conv2d)
def _conv(g, site):
    attributes = _conv_attributes(site.function.settings, site.input_shapes[1])
    return g.node("Conv", site.inputs, **attributes)


@emits(conv.ConvTranspose2d)
def _conv_transpose(g, site):
    attributes = _conv_attributes(site.function.settings, site.input_shapes[1])
    extra = site.function.output_padding
    return g.node("ConvTranspose", site.inputs, output_padding=extra, **attributes)


@emits(conv.BiasReLU)
def _bias_relu(g, site):
    x, bias = site.inputs
    after = list(range(1, len(site.input_shapes[0]) - 1))
    if after:
        bias = g.node("Unsqueeze", (bias, g.ints(after)))
    return g.node("Relu", [g.node("Add", (x, bias))])


@emits(linalg.Linear)
def _linear(g, site):
    return g.node("Gemm", site.inputs, transB=1)


# -- pooling, normalisation ------------------------------------------------------------------------


@emits(pool.MaxPool2d)
def _max_pool(g, site):
    kernel_size, stride, padding, dilation, ceil_mode = site.function.settings
    return g.node(
        "MaxPool", site.inputs, kernel_shape=kernel_size, strides=stride, pads=_pads(padding),
        dilations=dilation, ceil_mode=int(ceil_mode),
    )  # fmt: skip


@emits(pool.AvgPool2d)
def _avg_pool(g, site):
    kernel_size, stride, padding, ceil_mode, count_include_pad = site.function.settings
    return g.node(
        "AveragePool", site.inputs, kernel_shape=kernel_size, strides=stride, pads=_pads(padding),
        ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad),
    )  # fmt: skip


@emits(norm.BatchNormEval)
def _batch_norm(g, site):
    return g.node("BatchNormalization", site.inputs, epsilon=site.function.eps)


@emits(norm.LocalResponseNorm)
def _lrn(g, site):
    size, alpha, beta, k, size_normalized = site.function.settings
    if size % 2:
        alpha = alpha if size_normalized else alpha * size
        return g.node("LRN", site.inputs, size=size, alpha=alpha, beta=beta, bias=k)
    # ONNX mirrors an even window, and ONNX Runtime has none. The scale is a convolution of the
    # squares as well, whose 1x1 kernels are bands of alpha.
    (x,) = site.inputs
    alpha = alpha / size if size_normalized else alpha
    channels = np.arange(site.input_shapes[0][1])
    reach = channels - channels[:, None]
    band = alpha * ((-(size // 2) <= reach) & (reach <= (size - 1) // 2))
    weight = g.constant(band[:, :, None, None].astype(site.dtype))
    bias = g.constant(np.full(len(channels), k, site.dtype))
    scale = g.node("Conv", (g.node("Mul", (x, x)), weight, bias))
    power = g.node("Pow", (scale, g.constant(np.asarray(beta, site.dtype))))
    return g.node("Div", (x, power))


@emits(loss.Softmax)
def _softmax(g, site):
    return g.node("Softmax", site.inputs, axis=site.function.axis)


@emits(loss.LogSoftmax)
def _log_softmax(g, site):
    return g.node("LogSoftmax", site.inputs, axis=site.function.axis)


# -- reductions ------------------------------------------------------------------------------------


def _reduce(g, site, op_type, axes_are_input):
    axes, keepdims = site.function.axes, int(site.function.keepdims)
    if axes_are_input:
        return g.node(op_type, (*site.inputs, g.ints(axes)), keepdims=keepdims)
    return g.node(op_type, site.inputs, axes=axes, keepdims=keepdims)


@emits(reduce.Sum)
def _sum(g, site):
    return _reduce(g, site, "ReduceSum", True)


@emits(reduce.Max)
def _max(g, site):
    return _reduce(g, site, "ReduceMax", g.opset >= 18)


@emits(reduce.LogSumExp)
def _log_sum_exp(g, site):
    return _reduce(g, site, "ReduceLogSumExp", g.opset >= 18)


# -- shapes ----------------------------------------------------------------------------------------


@emits(shape.Reshape)
def _reshape(g, site):
    entries = []
    x_shapes = list(zip(site.input_shapes[0], site.other_inputs[0], strict=True))
    for i, (size, other) in enumerate(zip(site.output_shape, site.other_output, strict=True)):
        if size == other:
            entries.append(size)
        elif i < len(x_shapes) and x_shapes[i] == (size, other):
            entries.append(0)  # the input's size on that axis
        else:
            entries.append(-1)
    if entries.count(-1) > 1:
        raise OnnxError(
            f"Reshape to {site.output_shape}: more than one of its sizes follows the batch; "
            "export with batch=N"
        )
    return g.node("Reshape", (*site.inputs, g.ints(entries)))


@emits(shape.BroadcastTo)
def _broadcast_to(g, site):
    target = site.output_shape
    lead = len(target) - len(site.input_shapes[0])
    entries = []
    for i, (size, other) in enumerate(zip(target, site.other_output, strict=True)):
        grows = size != other
        if grows and (i < lead or site.input_shapes[0][i - lead] != size):
            raise OnnxError(
                f"BroadcastTo {target}: axis {i} is repeated as often as the batch is large; "
                "export with batch=N"
            )
        entries.append(1 if grows else size)
    return g.node("Expand", (*site.inputs, g.ints(entries)))


@emits(shape.Transpose)
def _transpose(g, site):
    return g.node("Transpose", site.inputs, perm=site.function.axes)


@emits(shape.Concatenate)
def _concatenate(g, site):
    return g.node("Concat", site.inputs, axis=site.function.axis)


@emits(shape.Pad)
def _pad(g, site):
    before, after = zip(*site.function.pad_width, strict=True)
    value = g.constant(np.asarray(site.function.value, site.dtype))
    return g.node("Pad", (*site.inputs, g.ints(before + after), value))


@emits(shape.GetItem)
def _getitem(g, site):
    """Slices, then squeezing where the index was an integer, then new axes where it was None.

    An array of integers among whole slices is a Gather.
    """
    if 0 in site.output_shape:
        raise OnnxError(f"GetItem: the index selects nothing of shape {site.input_shapes[0]}")
    (name,) = site.inputs
    parts = _index_parts(site.function.key, len(site.input_shapes[0]))
    arrays = [axis for axis, part in enumerate(parts) if hasattr(part, "ndim") and part.ndim]
    if arrays:
        (axis, *others) = arrays
        rest = [part for i, part in enumerate(parts) if i != axis]
        if others or rest != [slice(None)] * len(rest):
            raise OnnxError("GetItem: an index array is supported only beside whole slices")
        indices = to_device(parts[axis], "cpu").astype(np.int64)
        return g.node("Gather", (name, g.constant(indices)), axis=axis)
    slices, squeezed, inserted = _plan_index(parts)
    if slices:
        axes, starts, ends, steps = zip(*slices, strict=True)
        name = g.node("Slice", (name, *map(g.ints, (starts, ends, axes, steps))))
    if squeezed:
        name = g.node("Squeeze", (name, g.ints(squeezed)))
    if inserted:
        name = g.node("Unsqueeze", (name, g.ints(inserted)))
    return name if slices or squeezed or inserted else g.node("Identity", (name,))


def _index_parts(key, ndim):
    """An index as a list of slices, integers, arrays and None, the Ellipsis written out."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(_is_mask(part) for part in parts):
        raise OnnxError("GetItem: a boolean index is not supported")
    places = [i for i, part in enumerate(parts) if part is Ellipsis]
    for place in places:
        rest = ndim - sum(part is not None and part is not Ellipsis for part in parts)
        parts[place : place + 1] = [slice(None)] * rest
    return parts


def _is_mask(part):
    return isinstance(part, bool) or getattr(part, "dtype", None) == np.dtype(bool)


def _plan_index(parts):
    """([(axis, start, end, step)], axes to squeeze, axes of the result to insert) of an index."""
    slices, squeezed, inserted = [], [], []
    axis = result_axis = 0
    for part in parts:
        if part is None:
            inserted.append(result_axis)
            result_axis += 1
            continue
        if isinstance(part, slice):
            if part != slice(None):
                slices.append((axis, *_slice_bounds(part)))
            result_axis += 1
        else:
            i = as_index(part)
            slices.append((axis, i, sys.maxsize if i == -1 else i + 1, 1))
            squeezed.append(axis)
        axis += 1
    return slices, squeezed, inserted


def _slice_bounds(part):
    step = 1 if part.step is None else as_index(part.step)
    first, last = (0, sys.maxsize) if step > 0 else (sys.maxsize, -sys.maxsize)
    start = first if part.start is None else as_index(part.start)
    end = last if part.stop is None else as_index(part.stop)
    return start, end, step
