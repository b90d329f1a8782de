"""Gradient checkpointing: a second forward instead of keeping what the first one made.

A checkpointed segment keeps its inputs alone. Its backward runs it again, from the same random
state, and differentiates that. So a network of n equal layers in segments of sqrt(n) keeps the
order of sqrt(n) layers instead of n, for one more forward.

Source: Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost" (2016),
section 4.1.
"""

from minidl import random
from minidl.function import Function
from minidl.graph import grad
from minidl.nn.container import Sequential
from minidl.nn.module import Module
from minidl.tensor import Tensor, enable_grad, is_grad_enabled, no_grad


class Checkpoint(Function):
    """inputs: those of the segment, then its parameters, whose gradients flow through this node."""

    def __init__(self, segment, count):
        self.segment = segment
        self.count = count

    def forward(self, *arrays):
        self.state = random.get_state()
        inputs = [Tensor._wrap(array) for array in arrays[: self.count]]
        for t in inputs:
            t._storage.lock()  # no operation may take their memory
        with no_grad():
            y = self.segment(*inputs)
        _check_output(y)
        return y._array

    def backward(self, gradient):
        inputs, parameters = self.inputs[: self.count], self.inputs[self.count :]
        create_graph = is_grad_enabled()
        if not create_graph:
            wanted = zip(inputs, self.needs_input_grad, strict=False)
            inputs = [t.detach().requires_grad_(needed) for t, needed in wanted]
        y = self._again(inputs)
        leaves = [t for t in (*inputs, *parameters) if t.requires_grad]
        found = iter(
            grad(y, leaves, gradient, create_graph=create_graph, allow_unused=True)
            if y.requires_grad else [None] * len(leaves)
        )  # fmt: skip
        return tuple(
            next(found) if t.requires_grad else None for t in (*inputs, *parameters)
        )

    def _again(self, inputs):
        """The segment's output, its random numbers and running statistics as the first time."""
        now, buffers = random.get_state(), list(self.segment.buffers())
        kept = [(buffer._storage.version, buffer._array.copy()) for buffer in buffers]
        random.set_state(self.state)
        try:
            with enable_grad():
                return self.segment(*inputs)
        finally:
            random.set_state(now)
            for buffer, (version, values) in zip(buffers, kept, strict=True):
                if buffer._storage.version != version:
                    buffer.copy_(values)


def checkpoint(segment: Module, *inputs: Tensor) -> Tensor:
    """segment(*inputs), keeping only the inputs: backward runs the segment a second time.

    `segment`: a Module that returns one Tensor. Its gradients, those of its parameters included,
    are what they would be without; dropout draws the same mask again, and running statistics are
    updated once. Where no graph is recorded, it is an ordinary call. Raises TypeError for another
    segment, input or output.
    """
    if not isinstance(segment, Module):
        raise TypeError(f"segment must be a Module, got {type(segment).__name__}")
    for i, t in enumerate(inputs):
        if not isinstance(t, Tensor):
            raise TypeError(f"inputs[{i}] must be a Tensor, got {type(t).__name__}")
    if not is_grad_enabled():
        y = segment(*inputs)
        _check_output(y)
        return y
    return Checkpoint(segment, len(inputs))(*inputs, *segment.parameters())


def checkpoint_sequential(layers: Sequential, segments: int, x: Tensor) -> Tensor:
    """layers(x) with its layers in so many checkpointed segments of about equal length.

    The last segment is not checkpointed: its backward comes at once. Raises TypeError for other
    layers than a Sequential, ValueError unless 1 <= segments <= the number of layers.
    """
    if not isinstance(layers, Sequential):
        raise TypeError(f"layers must be a Sequential, got {type(layers).__name__}")
    if not 1 <= segments <= len(layers):
        raise ValueError(f"segments must be from 1 to {len(layers)}, got {segments}")
    bounds = [len(layers) * i // segments for i in range(segments + 1)]
    for start, stop in zip(bounds[:-2], bounds[1:-1], strict=True):
        x = checkpoint(layers[start:stop], x)
    return layers[bounds[-2] :](x)


def _check_output(y):
    if not isinstance(y, Tensor):
        raise TypeError(f"segment must return one Tensor, got {type(y).__name__}")
