"""A model's table: output shapes, parameters, multiply-adds and memory, layer by layer."""

import math
from dataclasses import dataclass

import numpy as np

from minidl import random
from minidl.table import format_bytes, format_table
from minidl.tensor import Tensor, no_grad


@dataclass(frozen=True)
class Row:
    """One call of one layer; counts are per image, bytes those of its output and parameters."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows, and their totals. A layer that is called twice has its parameters counted once."""

    rows: list[Row]
    parameters: int
    trainable_parameters: int
    multiply_adds: int
    activation_bytes: int
    parameter_bytes: int

    def __str__(self) -> str:
        header = ("layer", "type", "output", "parameters", "multiply-adds", "memory")
        rows = [
            (
                row.name, row.kind, "x".join(map(str, row.output_shape)), f"{row.parameters:,}",
                f"{row.multiply_adds:,}", format_bytes(row.activation_bytes),
            )
            for row in self.rows
        ]  # fmt: skip
        table = format_table(header, rows, left=3)
        totals = [
            f"parameters     {self.parameters:,} ({self.trainable_parameters:,} trainable), "
            f"{format_bytes(self.parameter_bytes)}",
            f"multiply-adds  {self.multiply_adds:,} per image",
            f"activations    {format_bytes(self.activation_bytes)} per image",
        ]
        return "\n".join([*table, table[1], *totals])


def summary(module, input_shape) -> Summary:
    """Run one zero image of `input_shape` (C, H, W) through `module` and tabulate its layers.

    A row stands for every call of a module that has no children or owns parameters itself. A layer
    with a method ``multiply_adds(output_shape)`` is asked for its count. Modes, statistics and
    random state are left as they were.
    """
    rows, counted, handles = [], set(), []
    modes = [(m, m.training) for m in module.modules()]
    state = random.get_state()

    def record(name):
        def hook(layer, inputs, outputs):
            own = [p for p in layer._parameters.values() if p is not None and p not in counted]
            counted.update(own)
            count = getattr(layer, "multiply_adds", None)
            rows.append(
                Row(
                    name or type(layer).__name__,
                    type(layer).__name__,
                    outputs.shape[1:],
                    sum(p.size for p in own),
                    count(outputs.shape[1:]) if count else 0,
                    math.prod(outputs.shape) * outputs.dtype.itemsize,
                )
            )

        return hook

    for name, layer in module.named_modules():
        if not layer._modules or layer._parameters:
            handles.append(layer.register_forward_hook(record(name)))
    parameters = list(module.parameters())
    dtype = parameters[0].dtype if parameters else np.float32
    try:
        module.eval()
        with no_grad():
            module(Tensor(np.zeros((1, *input_shape), dtype)).to(module.device))
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes:
            layer.training = mode
        random.set_state(state)
    return Summary(
        rows=rows,
        parameters=sum(p.size for p in parameters),
        trainable_parameters=sum(p.size for p in parameters if p.requires_grad),
        multiply_adds=sum(row.multiply_adds for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
        parameter_bytes=sum(p.size * p.dtype.itemsize for p in parameters),
    )
