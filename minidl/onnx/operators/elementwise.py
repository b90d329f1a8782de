"""Elementwise operators and matrix products."""

from functools import reduce

import numpy as np

from minidl import nn, ops
from minidl.onnx.common import OnnxError
from minidl.onnx.operators.registry import check_one_dtype, element_type, operator, scalar
from minidl.tensor import Tensor

_UNARY = {
    "Relu": ops.relu, "Tanh": ops.tanh, "Sigmoid": ops.sigmoid, "Exp": ops.exp, "Log": ops.log,
    "Sqrt": ops.sqrt, "Neg": ops.neg, "Abs": ops.abs, "Identity": lambda x: x,
}  # fmt: skip


@operator(*_UNARY)
def unary(node):
    """y = f(x)."""
    return _UNARY[node.op_type]


def _divide(a, b):
    if a.dtype.kind != "f":
        raise TypeError(f"division is supported of floating-point tensors, not of {a.dtype}")
    return ops.div(a, b)


_FOLDED = {
    "Add": ops.add, "Sub": ops.sub, "Mul": ops.mul, "Div": _divide, "Sum": ops.add,
    "Max": ops.maximum, "Min": ops.minimum, "MatMul": ops.matmul,
}  # fmt: skip


@operator(*_FOLDED)
def folded(node):
    """Two operands, or (Sum, Max, Min) any number of them, joined from the left."""
    function = _FOLDED[node.op_type]

    def run(*operands):
        check_one_dtype(*operands)
        return reduce(function, operands)

    return run


@operator("Pow", untrained=(1,))
def power(node):
    """x ** e, in the dtype of x."""

    def run(x, exponent):
        if x.dtype.kind != "f":
            raise TypeError(f"powers are supported of floating-point tensors, not of {x.dtype}")
        if exponent.size == 1 and exponent.ndim <= x.ndim and not exponent.requires_grad:
            return ops.pow(x, exponent._array.item())
        return ops.pow(x, exponent.astype(x.dtype))

    return run


@operator("Clip", untrained=(1, 2))
def clip(node):
    """min(max(x, low), high): bounds were attributes before opset 11, then inputs."""
    fixed = [None, None]
    if node.opset < 11:
        largest = float(np.finfo(np.float32).max)
        fixed = [node.float("min", -largest), node.float("max", largest)]

    def run(x, low=None, high=None):
        low = fixed[0] if low is None else scalar("min", low)
        high = fixed[1] if high is None else scalar("max", high)
        # One after the other: where low exceeds high, the result is high.
        if low is not None:
            x = ops.clip(x, min=low)
        return x if high is None else ops.clip(x, max=high)

    return run


@operator("Cast")
def cast(node):
    """x in another dtype."""
    try:
        dtype = element_type(node.int("to"))
    except ValueError as error:
        raise node.error(f"attribute 'to': {error}") from error
    node.int("saturate")  # these two only concern float8 targets
    node.string("round_mode", "up")
    return lambda x: ops.cast(x, dtype)


@operator("Softmax", "LogSoftmax")
def softmax(node):
    """Softmax along an axis; before opset 13 along all axes from `axis` on, as one."""
    function = ops.softmax if node.op_type == "Softmax" else ops.log_softmax
    if node.opset >= 13:
        axis = node.int("axis", -1)
        return lambda x: function(x, axis)
    axis = node.int("axis", 1)

    def run(x):
        return function(ops.reshape(x, *matrix_shape(x.shape, axis)), 1).reshape(x.shape)

    return run


def matrix_shape(shape, axis):
    """(product of the sizes before `axis`, product of the rest), as Flatten has them."""
    if not -len(shape) <= axis <= len(shape):
        raise ValueError(f"axis must lie in [-{len(shape)}, {len(shape)}], got {axis}")
    axis = axis + len(shape) if axis < 0 else axis
    return int(np.prod(shape[:axis], dtype=int)), int(np.prod(shape[axis:], dtype=int))


@operator("Gemm")
def gemm(node):
    """alpha A B + beta C, A and B transposed if asked for, C broadcast to the product's shape."""
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    transpose_a, transpose_b = node.flag("transA"), node.flag("transB")

    def run(a, b, c=None):
        check_one_dtype(*(t for t in (a, b, c) if t is not None))
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"A and B must be matrices, got shapes {a.shape} and {b.shape}")
        y = ops.matmul(a.T if transpose_a else a, b.T if transpose_b else b)
        if alpha != 1:
            y = y * alpha
        if c is None:
            return y
        total = y + (c if beta == 1 else c * beta)
        if total.shape != y.shape:
            raise ValueError(f"C of shape {c.shape} does not broadcast to {y.shape}")
        return total

    return run


class _Dropout(nn.Module):
    """Dropout with the ratio and the mask of ONNX; without effect in evaluation."""

    def __init__(self, ratio: float, wants_mask: bool, boolean_mask: bool):
        super().__init__()
        self.ratio = ratio
        self.wants_mask = wants_mask
        self.boolean_mask = boolean_mask

    def forward(self, x, ratio=None, training_mode=None):
        if training_mode is not None and scalar("training_mode", training_mode):
            raise OnnxError("training_mode is not supported: call train() on the module")
        p = self.ratio if ratio is None else scalar("ratio", ratio)
        y = ops.dropout(x, p, self.training)
        if not self.wants_mask:
            return y
        if self.training:
            raise OnnxError("its mask is read by the graph, which is supported in evaluation only")
        mask = np.ones(x.shape, bool if self.boolean_mask else x.dtype)
        return y, Tensor(mask).to(x.device)


@operator("Dropout", untrained=(1,))
def dropout(node):
    """Dropout: the ratio was an attribute before opset 12; the mask is all true in evaluation."""
    ratio = node.float("ratio", 0.5) if node.opset < 12 else 0.5
    node.int("seed")  # of the file's own random numbers
    if not 0 <= ratio < 1:
        raise node.error(f"ratio must be in [0, 1), got {ratio}")
    return _Dropout(ratio, node.uses_output(1), boolean_mask=node.opset >= 10)
