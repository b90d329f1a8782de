"""The CPU kernels one by one: those that wait for memory, and the ways of convolving."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.layers import ITEM, conv_run, torch_conv_run
from benchmarks.tasks import Task
from kernels import cpu
from kernels.cpu.conv import choose
from kernels.cpu.conv_direct import conv2d_direct
from kernels.cpu.conv_tiles import conv2d_tiles
from kernels.cpu.epilogue import plain
from minidl import nn

NOTES = (
    "Floor: the larger of 2 x multiply-adds at the peak and the bytes of all operands and results, "
    "each moved once, at the bandwidth: passes over the data beyond the first cost percents.",
    "The bandwidth, for kernels that wait for memory: the best copy or triad of those that took "
    "their turns with the kernel. Above: the highest of all.",
)
# ResNet-18's first maps, halved twice by a pool of 3x3 or 2x2.
SHAPE = (16, 64, 112, 112)
WINDOWS = {"3x3": ((3, 3), (2, 2), (1, 1, 1, 1)), "2x2": ((2, 2), (2, 2), (0, 0, 0, 0))}
LRN = (5, 1e-4, 0.75, 2.0)
# Stride-1 layers of LeNet-5, GoogLeNet, VGG-16 and AlexNet, each of another character: batch,
# convolution, height and width of the input.
CONVOLUTIONS = (
    (128, nn.Conv2d(1, 6, 5), 32),
    (128, nn.Conv2d(6, 16, 5), 14),
    (16, nn.Conv2d(192, 64, 1), 28),
    (16, nn.Conv2d(16, 32, 5, padding=2), 28),
    (4, nn.Conv2d(3, 64, 3, padding=1), 224),
    (4, nn.Conv2d(256, 256, 3, padding=1), 56),
    (16, nn.Conv2d(256, 384, 3, padding=1), 13),
)


@dataclass(frozen=True)
class Streaming:
    """A kernel that waits for memory: `moved` counts the float32 values it reads and writes.

    `make()` and `peer(torch)` draw the operands and give the call; `peer` is None where PyTorch
    has no such function.
    """

    name: str
    moved: int
    make: Callable
    peer: Callable | None = None


def tasks(wanted):
    """A task a kernel, as far as ``wanted(name)`` is true."""
    for kernel in (*_streaming(), *_pooling()):
        if wanted(kernel.name):
            yield Task(
                kernel.name, 0, ITEM * kernel.moved, _preparation(kernel), under_ceilings=True
            )
    for batch, conv, size in CONVOLUTIONS:
        yield from (task for task in _conv_tasks(batch, conv, size) if wanted(task.name))


def _preparation(kernel):
    def prepare(peer):
        runs = {"minidl": kernel.make()}
        if peer and kernel.peer:
            import torch

            runs["PyTorch"] = kernel.peer(torch)
        return runs

    return prepare


def _draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.random(shape, np.float32) + np.float32(0.5) for shape in shapes]


def _call(function, shapes, *settings):
    """Make of a function of arrays and settings a call on new arrays of these shapes."""

    def make():
        arrays = _draw(*shapes)
        return lambda: function(*arrays, *settings)

    return make


def _torch_call(pick, shapes, *settings):
    """The same of PyTorch's function ``pick(torch)``."""

    def make(torch):
        function, tensors = pick(torch), [torch.from_numpy(array) for array in _draw(*shapes)]
        return lambda: function(*tensors, *settings)

    return make


def _streaming():
    size, channels = math.prod(SHAPE), SHAPE[1:2]
    one, two, each = (SHAPE,), (SHAPE, SHAPE), (SHAPE, channels, channels)

    def lrn_backward():
        dy, x = _draw(*two)
        scale = cpu.lrn(x, *LRN)[1]
        return lambda: cpu.lrn_backward(dy, x, scale, *LRN)

    def native_batchnorm(torch):
        return lambda x, gamma, beta: torch.native_batch_norm(
            x, gamma, beta, None, None, True, 0.1, 1e-5
        )

    backward = (SHAPE, SHAPE, channels, channels, channels)
    return (
        Streaming("relu", 2 * size, _call(cpu.relu, one), _torch_call(lambda t: t.relu, one)),
        Streaming(
            "relu_backward", 3 * size, _call(cpu.relu_backward, two),
            _torch_call(lambda t: t.ops.aten.threshold_backward, two, 0),
        ),
        Streaming("add", 3 * size, _call(cpu.add, two), _torch_call(lambda t: t.add, two)),
        Streaming("bias_relu", 2 * size, _call(cpu.bias_relu, (SHAPE, channels))),
        Streaming("bias_relu_backward", 3 * size, _call(cpu.bias_relu_backward, two)),
        Streaming(
            "channel_sums", size, _call(cpu.channel_sums, one),
            _torch_call(lambda t: t.sum, one, (0, 2, 3)),
        ),
        Streaming(
            "batchnorm_train", 2 * size, _call(cpu.batchnorm_train, each, 1e-5),
            _torch_call(native_batchnorm, each),
        ),
        Streaming("batchnorm_backward", 3 * size, _call(cpu.batchnorm_backward, backward)),
        Streaming(
            "dropout", 2 * size, _call(cpu.dropout, one, 0.5, 0, 0),
            _torch_call(lambda t: t.nn.functional.dropout, one),
        ),
        Streaming(
            "lrn", 3 * size, _call(cpu.lrn, one, *LRN),
            _torch_call(lambda t: t.nn.functional.local_response_norm, one, *LRN),
        ),
        Streaming("lrn_backward", 4 * size, lrn_backward),
        Streaming("sgd_step", 5 * size, _call(cpu.sgd_step, (SHAPE,) * 3, 1e-6, 0.9)),
        Streaming(
            "adam_step", 7 * size, _call(cpu.adam_step, (SHAPE,) * 4, 1, 1e-6, (0.9, 0.999), 1e-8)
        ),
    )  # fmt: skip


def _pooling():
    size, planes = math.prod(SHAPE), math.prod(SHAPE[:2])
    pooled = (*SHAPE[:2], SHAPE[2] // 2, SHAPE[3] // 2)
    one = (SHAPE,)
    for name, (kernel_size, stride, padding) in WINDOWS.items():
        windows = kernel_size, stride, padding
        torch_windows = kernel_size, stride, padding[::2]

        def switched(windows=windows):
            return *_draw(pooled), cpu.max_pool2d(*_draw(SHAPE), *windows)[1]

        def backward(windows=windows, switched=switched):
            dy, switches = switched()
            return lambda: cpu.max_pool2d_backward(dy, switches, SHAPE, *windows)

        def unpool(switched=switched):
            y, switches = switched()
            return lambda: cpu.max_unpool2d(y, switches, SHAPE[2:])

        yield Streaming(
            f"max_pool2d {name}", size + 2 * (size // 4), _call(cpu.max_pool2d, one, *windows),
            _torch_call(lambda t: t.nn.functional.max_pool2d_with_indices, one, *torch_windows),
        )  # fmt: skip
        yield Streaming(f"max_pool2d_backward {name}", size + 2 * (size // 4), backward)
        yield Streaming(f"max_unpool2d {name}", size + 2 * (size // 4), unpool)
        yield Streaming(
            f"avg_pool2d {name}", size + size // 4, _call(cpu.avg_pool2d, one, *windows),
            _torch_call(lambda t: t.nn.functional.avg_pool2d, one, *torch_windows),
        )  # fmt: skip
        yield Streaming(
            f"avg_pool2d_backward {name}", size + size // 4,
            _call(cpu.avg_pool2d_backward, (pooled,), SHAPE, *windows),
        )  # fmt: skip
    yield Streaming(
        "global_avg_pool2d", size + planes, _call(cpu.global_avg_pool2d, one),
        _torch_call(lambda t: t.nn.functional.adaptive_avg_pool2d, one, 1),
    )  # fmt: skip
    yield Streaming(
        "global_avg_pool2d_backward", size + planes,
        _call(cpu.global_avg_pool2d_backward, ((*SHAPE[:2], 1, 1),), SHAPE),
    )  # fmt: skip


# -- ways of convolving ----------------------------------------------------------------------------


def _conv_tasks(batch, conv, size):
    """Forward by the way that conv2d chooses, and by those it may have left."""
    x_shape = (batch, conv.in_channels, size, size)
    extent = size + 2 * conv.padding[0] - conv.kernel_size[0] + 1
    y_shape = (batch, conv.out_channels, extent, extent)
    flops = 2 * batch * conv.multiply_adds(y_shape[1:])
    traffic = ITEM * (math.prod(x_shape) + conv.weight.size + math.prod(y_shape))
    what = f"{conv.in_channels}->{conv.out_channels} {conv.kernel_size[0]}x{conv.kernel_size[1]}"
    place = f"{what} on {'x'.join(map(str, x_shape))}"
    chosen = choose(
        "y", y_shape, x_shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation,
        conv.groups, np.dtype(np.float32),
    )  # fmt: skip
    ways = {f"conv2d (chosen: {chosen}) {place}": None}
    ways |= {f"{f.__name__} {place}": f for f in (conv2d_direct, conv2d_tiles)}
    for name, function in ways.items():
        prepare = _conv_preparation(conv, x_shape, y_shape, function)
        yield Task(name, flops, traffic, prepare)


def _conv_preparation(conv, x_shape, y_shape, function):
    def prepare(peer):
        x, dy, weight = _draw(x_shape, y_shape, conv.weight.shape)
        settings = conv.padding, conv.dilation, conv.groups
        runs = {"minidl": conv_run("forward", conv, x, dy, weight)}
        if function is conv2d_tiles:
            settings = conv.stride, *settings
        if function is not None:
            epilogue = plain(len(weight), weight.dtype)
            runs = {"minidl": lambda: function(x, weight, dy, *settings, epilogue)}
        if peer:
            runs["PyTorch"] = torch_conv_run("forward", conv, x, dy, weight)
        return runs

    return prepare
