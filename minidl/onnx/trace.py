"""Tracing: a model runs once, and every operation is noted down with what it read and made."""

from contextlib import contextmanager
from dataclasses import dataclass

from minidl import evaluation, random
from minidl.function import Function
from minidl.onnx.common import OnnxError
from minidl.tensor import Tensor, listening, no_grad


@dataclass(frozen=True)
class Call:
    """One operation. `versions` are those of its tensors' memory when it ran, inputs first."""

    function: Function
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The operation's name in error messages."""
        return type(self.function).__name__

    def check_unmodified(self) -> None:
        """OnnxError where a tensor of this call was written to later: its value is lost."""
        for t, version in zip((*self.inputs, *self.outputs), self.versions, strict=True):
            if t._storage.version != version:
                raise OnnxError(
                    f"{self.name}: a tensor of shape {t.shape} is modified in place by the model, "
                    "which a graph cannot express"
                )


@dataclass(frozen=True)
class Trace:
    """What a model did with `inputs`, in order, to give `outputs`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: list[Call]


def trace(model, inputs: tuple[Tensor, ...]) -> Trace:
    """Run `model` on `inputs` without recording gradients, and note down its operations.

    Raises OnnxError where it returns anything but a Tensor or several in a tuple or list.
    """
    calls = []

    def listen(function, read, made):
        tensors = (*read, *made)
        versions = tuple(t._storage.version for t in tensors)
        calls.append(Call(function, tuple(read), tuple(made), versions))

    with no_grad(), listening(listen):
        result = model(*inputs)
    outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if not outputs or not all(isinstance(t, Tensor) for t in outputs):
        raise OnnxError(
            f"the model must return a Tensor or a tuple of them, got {type(result).__name__}"
        )
    return Trace(inputs, outputs, calls)


@contextmanager
def evaluating(model):
    """The model in evaluation mode; afterwards its modes and the random state are as they were."""
    state = random.get_state()
    try:
        with evaluation.evaluating(model):
            yield
    finally:
        random.set_state(state)
