"""The module that a loaded graph becomes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minidl.nn.module import Module, Parameter
from minidl.onnx.common import OnnxError
from minidl.tensor import Tensor


@dataclass(frozen=True)
class Step:
    """One node: `run` takes its inputs (None for one left out) and returns its outputs.

    `frees` are the values that no later node reads.
    """

    label: str
    run: Callable
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True)
class GraphInput:
    """What the file declares of an input; a size is None where it may vary."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


class OnnxModule(Module):
    """The graph of an ONNX file; made by `minidl.onnx.load`.

    ``forward(*inputs)`` takes Tensors in the graph's order and returns a Tensor, or a tuple where
    the graph has several outputs. Raises ValueError for another number of inputs, rank or fixed
    size, TypeError for another dtype; an error inside a node names it.

    A fresh one is in evaluation mode. In training mode Dropout nodes drop; BatchNormalization
    normalises with its stored statistics in both modes.
    """

    def __init__(self, inputs: list[GraphInput], output_names, parameters, buffers, steps):
        super().__init__()
        self.input_names = tuple(spec.name for spec in inputs)
        self.output_names = tuple(output_names)
        self._inputs = tuple(inputs)
        self._steps = tuple(steps)
        # From the graph's names to those in the state_dict.
        self._state_names = {}
        # A tensor for each floating dtype: `to(dtype)` changes what the inputs have to be.
        self._witnesses = {}
        for table, kind, arrays in (
            (self._parameters, Parameter, parameters),
            (self._buffers, Tensor, buffers),
        ):
            for name, array in arrays.items():
                self._state_names[name] = safe = self._safe_name(name)
                table[safe] = kind(array)
        for step in self._steps:
            if isinstance(step.run, Module):
                self._modules[self._safe_name(step.writes[0])] = step.run
        for safe, t in self._state().items():
            if t.dtype.kind == "f":
                self._witnesses[t.dtype] = safe
        self.eval()

    def _safe_name(self, name: str) -> str:
        """`name` made fit for a state_dict: no odd characters, no attribute or name hidden."""
        safe = "".join(c if c.isalnum() or c in "._" else "_" for c in name).strip(".") or "_"
        while hasattr(self, safe):
            safe += "_"
        return safe

    def forward(self, *inputs):
        self._check(inputs)
        values = dict(zip(self.input_names, inputs, strict=True))
        state = self._state()
        values.update((name, state[safe]) for name, safe in self._state_names.items())
        values[""] = None  # an input left out
        for step in self._steps:
            results = _run(step, [values[name] for name in step.reads])
            values.update(zip(step.writes, results, strict=False))
            values[""] = None
            for name in step.frees:
                del values[name]
        outputs = tuple(values[name] for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, inputs):
        if len(inputs) != len(self._inputs):
            raise ValueError(
                f"the graph takes {len(self._inputs)} inputs {self.input_names}, got {len(inputs)}"
            )
        for t, spec in zip(inputs, self._inputs, strict=True):
            if not isinstance(t, Tensor):
                raise TypeError(f"input {spec.name!r} must be a Tensor, got {type(t).__name__}")
            dtype = self._expected_dtype(spec.dtype)
            if t.dtype != dtype:
                raise TypeError(f"input {spec.name!r} must be {dtype}, got {t.dtype}")
            if spec.shape is None:
                continue
            sizes = zip(t.shape, spec.shape, strict=False)
            if t.ndim != len(spec.shape) or any(n not in (None, m) for m, n in sizes):
                expected = tuple("?" if n is None else n for n in spec.shape)
                raise ValueError(
                    f"input {spec.name!r} must have {len(spec.shape)} axes of sizes {expected}, "
                    f"got {t.shape}"
                )

    def _expected_dtype(self, declared):
        safe = self._witnesses.get(declared)
        return declared if safe is None else self._state()[safe].dtype

    def extra_repr(self):
        return f"inputs={self.input_names}, outputs={self.output_names}, nodes={len(self._steps)}"


def _run(step, inputs):
    try:
        results = step.run(*inputs)
    except (ValueError, TypeError, IndexError) as error:
        kind = OnnxError if isinstance(error, OnnxError) else type(error)
        raise kind(f"{step.label}: {error}") from error
    return results if isinstance(results, tuple) else (results,)
