"""The layers of the networks, read from the live networks by hooks."""

from dataclasses import dataclass, field

import numpy as np

from minidl import Tensor, nn, no_grad

# Of these, every distinct call is measured; of the others, the largest of each network. Adaptive
# pooling is left out: at their papers' sizes the networks that have it pass their maps through.
EVERY = (nn.Conv2d, nn.LocalResponseNorm, nn.MaxPool2d, nn.AvgPool2d, nn.GlobalAvgPool2d)
LARGEST = (nn.BatchNorm2d, nn.ReLU, nn.Dropout)


@dataclass(frozen=True)
class Call:
    """One call of one layer on one image; shapes are without the batch."""

    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def multiply_adds(self) -> int:
        count = getattr(self.module, "multiply_adds", None)
        return count(self.output_shape) if count else 0


@dataclass(frozen=True)
class Layer:
    """A layer on an input; equal where kind, settings and input are. Conv's bias is left out.

    `module` is the layer of one of the live networks.
    """

    kind: str
    settings: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    module: nn.Module = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{_describe(self.module)} on {_times(self.input_shape)}"


def _times(numbers):
    return "x".join(map(str, numbers))


def _describe(module):
    """Kind and settings in a few words; padding, where there is any, as top x bottom x left x right
    unless all are equal.
    """
    words = [type(module).__name__]
    if isinstance(module, nn.Conv2d):
        words.append(f"{module.in_channels}->{module.out_channels}")
    if hasattr(module, "kernel_size"):
        words.append(_times(module.kernel_size))
        for name, plain in (("stride", 1), ("padding", 0), ("dilation", 1)):
            values = getattr(module, name, (plain,))
            if set(values) != {plain}:
                words.append(f"{name} {_times(values if len(set(values)) > 1 else values[:1])}")
    for name, plain in (("groups", 1), ("ceil_mode", False), ("size", None), ("p", None)):
        value = getattr(module, name, plain)
        if value != plain:
            words.append(f"{name} {value}")
    return " ".join(words)


def calls(model, input_shape, training: bool = True) -> list[Call]:
    """Every call of a module without children, in order, on one zero image.

    In training the auxiliary classifiers are called as well. Running statistics change.
    """
    seen, handles = [], []

    def record(module, inputs, output):
        seen.append(Call(module, inputs[0].shape[1:], output.shape[1:]))

    model.train(training)
    for module in model.modules():
        if not module._modules:
            handles.append(module.register_forward_hook(record))
    try:
        with no_grad():
            model(Tensor(np.zeros((1, *input_shape), np.float32)).to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def collect(subjects) -> dict[Layer, list[str]]:
    """The distinct layers of the subjects, each with the names of the networks it occurs in.

    ReLUs that a network applies as a function, without a module, are not seen.
    """
    found: dict[Layer, list[str]] = {}
    for subject in subjects:
        seen = calls(subject.build(), subject.input_shape)
        for call in (*_of(seen, EVERY), *_largest(seen)):
            networks = found.setdefault(_layer(call, subject.batch), [])
            if subject.name not in networks:
                networks.append(subject.name)
    return found


def _of(seen, kinds):
    return [call for call in seen if isinstance(call.module, kinds)]


def _largest(seen):
    for kind in LARGEST:
        these = _of(seen, kind)
        if these:
            yield max(these, key=lambda call: np.prod(call.input_shape))


def _layer(call, batch):
    module = call.module
    settings = module.extra_repr().removesuffix(", bias=False")
    shapes = (batch, *call.input_shape), (batch, *call.output_shape)
    return Layer(type(module).__name__, settings, *shapes, module)
