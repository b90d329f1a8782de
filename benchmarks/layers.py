"""The layers of the networks one by one, on the batches of `benchmarks.subjects`."""

import math

import numpy as np

from benchmarks.collect import Layer, collect
from benchmarks.subjects import SUBJECTS
from benchmarks.tasks import Task
from kernels.dispatch import kernels_for
from minidl import Tensor, no_grad, ops

ITEM = 4  # bytes of a float32, and of a switch of max-pooling
PASSES = ("forward", "forward and backward")
NOTES = (
    "Convolutions have no bias here, and their three passes are the bare kernels; the other layers "
    "run as modules in training mode, backward by their own graph.",
    "Floor: the larger of 2 x multiply-adds at the peak and the bytes of all inputs and results, "
    "each moved once, at the bandwidth. Small arrays stay in the cache: they can be above 100 %.",
)


def tasks(wanted, subjects=SUBJECTS):
    """A task for every pass of every layer, as far as ``wanted(name)`` is true."""
    for layer, networks in collect(subjects).items():
        name = f"{', '.join(networks)}: {layer.name}"
        make = _conv_tasks if layer.kind == "Conv2d" else _module_tasks
        yield from (task for task in make(name, layer) if wanted(task.name))
    for shape in dict.fromkeys((s.batch, s.classes) for s in subjects):
        yield from (task for task in _cross_entropy_tasks(*shape) if wanted(task.name))


def _draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


# -- convolutions ----------------------------------------------------------------------------------


def _conv_tasks(name, layer: Layer):
    conv, x_shape, y_shape = layer.module, layer.input_shape, layer.output_shape
    flops = 2 * x_shape[0] * conv.multiply_adds(y_shape[1:])
    traffic = ITEM * (math.prod(x_shape) + conv.weight.size + math.prod(y_shape))
    for kind in ("forward", "input gradient", "weight gradient"):

        def prepare(peer, kind=kind):
            x, dy, weight = _draw(x_shape, y_shape, conv.weight.shape)
            runs = {"minidl": conv_run(kind, conv, x, dy, weight)}
            if peer:
                runs["PyTorch"] = torch_conv_run(kind, conv, x, dy, weight)
            return runs

        yield Task(f"{name}, {kind}", flops, traffic, prepare)


def conv_run(kind, conv, x, dy, weight):
    """One pass of the convolution with the settings of the module `conv`."""
    kernels = kernels_for(x)
    settings = conv.stride, conv.padding, conv.dilation, conv.groups
    return {
        "forward": lambda: kernels.conv2d(x, weight, None, *settings),
        "input gradient": lambda: kernels.conv2d_input_grad(dy, weight, x.shape, *settings),
        "weight gradient": lambda: kernels.conv2d_weight_grad(dy, x, conv.kernel_size, *settings),
    }[kind]


def torch_conv_run(kind, conv, x, dy, weight):
    """The same in PyTorch."""
    import torch
    from torch.nn.grad import conv2d_input, conv2d_weight

    x, dy, weight = map(torch.from_numpy, (x, dy, weight))
    settings = conv.stride, _symmetric(conv.padding), conv.dilation, conv.groups
    return {
        "forward": lambda: torch.conv2d(x, weight, None, *settings),
        "input gradient": lambda: conv2d_input(x.shape, weight, dy, *settings),
        "weight gradient": lambda: conv2d_weight(x, weight.shape, dy, *settings),
    }[kind]


def _symmetric(padding):
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        raise ValueError(f"padding must be symmetric for PyTorch, got {padding}")
    return top, left


# -- other layers ----------------------------------------------------------------------------------


def _module_tasks(name, layer: Layer):
    x_bytes, y_bytes = (ITEM * math.prod(s) for s in (layer.input_shape, layer.output_shape))
    # What backward reads besides dy; the switches of max-pooling are written first.
    kept = {"ReLU": y_bytes, "LocalResponseNorm": x_bytes, "BatchNorm2d": x_bytes,
            "MaxPool2d": 2 * y_bytes}.get(layer.kind, 0)  # fmt: skip
    once = x_bytes + y_bytes
    for kind, traffic in zip(PASSES, (once, 2 * once + kept), strict=True):

        def prepare(peer, kind=kind):
            x, dy = _draw(layer.input_shape, layer.output_shape)
            runs = {"minidl": _minidl_passes(layer.module, x, dy)[kind]}
            if peer:
                runs["PyTorch"] = _torch_passes(torch_module(layer.module), x, dy)[kind]
            return runs

        yield Task(f"{name}, {kind}", 0, traffic, prepare)


def _minidl_passes(function, x, dy):
    x = Tensor(x, requires_grad=True)
    dy = Tensor(dy)

    def forward():
        with no_grad():
            function(x)

    def both():
        x.grad = None
        function(x).backward(dy)

    return dict(zip(PASSES, (forward, both), strict=True))


def _torch_passes(function, x, dy):
    import torch

    # Copies: minidl makes the arrays of its Tensors read-only.
    x, dy = torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def forward():
        with torch.no_grad():
            function(x)

    def both():
        x.grad = None
        function(x).backward(dy)

    return dict(zip(PASSES, (forward, both), strict=True))


def torch_module(module):
    """PyTorch's layer of the same settings, in training mode."""
    from torch import nn

    kind = type(module).__name__
    if kind in ("MaxPool2d", "AvgPool2d"):
        windows = module.kernel_size, module.stride, _symmetric(module.padding)
        return getattr(nn, kind)(*windows, ceil_mode=module.ceil_mode)
    if kind == "LocalResponseNorm":
        alpha = module.alpha if module.size_normalized else module.alpha * module.size
        return nn.LocalResponseNorm(module.size, alpha, module.beta, module.k)
    if kind == "BatchNorm2d":
        return nn.BatchNorm2d(module.num_features, module.eps, module.momentum)
    if kind == "Dropout":
        return nn.Dropout(module.p)
    return {"ReLU": nn.ReLU, "GlobalAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1)}[kind]()


def _cross_entropy_tasks(batch, classes):
    nbytes = ITEM * batch * classes
    for kind, traffic in zip(PASSES, (nbytes, 2 * nbytes), strict=True):

        def prepare(peer, kind=kind):
            (logits,), one = _draw((batch, classes)), np.ones((), np.float32)
            labels = np.arange(batch) % classes
            loss = lambda z: ops.cross_entropy(z, labels)  # noqa: E731
            runs = {"minidl": _minidl_passes(loss, logits, one)[kind]}
            if peer:
                runs["PyTorch"] = _torch_passes(_torch_loss(labels), logits, one)[kind]
            return runs

        yield Task(f"softmax cross-entropy on {batch}x{classes}, {kind}", 0, traffic, prepare)


def _torch_loss(labels):
    import torch

    labels = torch.from_numpy(labels)
    return lambda z: torch.nn.functional.cross_entropy(z, labels)
