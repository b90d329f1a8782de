"""The table of operators, and what their implementations share."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from minidl.array_module import to_device
from minidl.onnx.node import Node
from minidl.tensor import Tensor

# The element types that minidl's tensors can have, by ONNX's names.
_DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "FLOAT": np.float32, "DOUBLE": np.float64, "BOOL": np.bool_,
        "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
        "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    }.items()
}  # fmt: skip


def element_type(data_type: int) -> np.dtype:
    """The dtype that ONNX numbers so; ValueError for those that minidl has no kernels for."""
    known = TensorProto.DataType.values()
    name = TensorProto.DataType.Name(data_type) if data_type in known else str(data_type)
    if name not in _DTYPES:
        hint = ": convert the file to float32" if name.endswith("FLOAT16") else ""
        raise ValueError(f"the element type {name} is not supported{hint}")
    return _DTYPES[name]


class Operator(NamedTuple):
    """`build(node)` reads a node's attributes and returns what computes it.

    That is a function, or a Module where the mode matters, of the inputs' Tensors (None or missing
    where left out). `untrained`: the positions of inputs whose values are settings, not weights.
    """

    build: Callable[[Node], Callable]
    untrained: tuple[int, ...] = ()


OPERATORS: dict[str, Operator] = {}


def operator(*op_types: str, untrained: tuple[int, ...] = ()):
    """Register the decorated function as the `build` of these operators."""

    def register(build):
        for op_type in op_types:
            OPERATORS[op_type] = Operator(build, untrained)
        return build

    return register


def integers(name: str, t: Tensor) -> tuple[int, ...]:
    """The values of an integer tensor of at most one axis; ValueError naming the input if not."""
    if t.dtype.kind not in "iu" or t.ndim > 1:
        raise ValueError(f"{name} must be a list of integers, got {t.dtype} of shape {t.shape}")
    return tuple(int(i) for i in to_device(t._array, "cpu").ravel())


def scalar(name: str, t: Tensor):
    """The value of a one-element tensor as a Python number; ValueError naming the input if not."""
    if t.size != 1:
        raise ValueError(f"{name} must be a scalar, got shape {t.shape}")
    return t._array.item()


def check_one_dtype(*tensors: Tensor) -> None:
    """TypeError where the tensors' dtypes differ: ONNX, other than NumPy, promotes nothing."""
    dtypes = [str(t.dtype) for t in tensors]
    if len(set(dtypes)) > 1:
        raise TypeError(f"the inputs must have one dtype, got {', '.join(dtypes)}")


def check_images(x: Tensor) -> None:
    """ValueError unless `x` has two spatial axes."""
    if x.ndim != 4:
        raise ValueError(
            f"only inputs of 4 axes (N, C, H, W) are supported, got rank {x.ndim}: {x.shape}"
        )
