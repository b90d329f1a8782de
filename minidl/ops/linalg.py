"""Matrix products."""

from kernels.dispatch import kernels_for
from minidl.function import Function
from minidl.ops.rounding import product_operands, product_result
from minidl.ops.shape import reshape, sum_to, transpose
from minidl.tensor import Tensor, as_tensor


class MatMul(Function):
    """Batched product of (..., M, K) and (..., K, N); leading axes broadcast."""

    def forward(self, a, b):
        return _product(a, b)

    def backward(self, grad):
        a, b = self.inputs
        needs_a, needs_b = self.needs_input_grad
        return (
            sum_to(matmul(grad, _swap(b)), a.shape) if needs_a else None,
            sum_to(matmul(_swap(a), grad), b.shape) if needs_b else None,
        )


class Linear(Function):
    """y = x W^T + b on rows."""

    keep_inputs = (0, 1)

    def forward(self, x, weight, bias=None):
        y = _product(x, weight.T)
        if bias is not None:
            y += bias
        return y

    def backward(self, grad):
        x, weight = self.inputs[:2]
        needs = self.needs_input_grad
        dx = matmul(grad, weight) if needs[0] else None
        dw = matmul(_swap(grad), x) if needs[1] else None
        if len(needs) == 2:
            return dx, dw
        return dx, dw, grad.sum(axis=0) if needs[2] else None


def _product(a, b):
    """a @ b, of floating point numbers by the kernel, which shares the work out to the cores."""
    if a.dtype == b.dtype and a.dtype.char in "fd":
        return kernels_for(a).matmul(a, b)
    return a @ b


def _swap(x: Tensor) -> Tensor:
    return transpose(x, *range(x.ndim - 2), x.ndim - 1, x.ndim - 2)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b by NumPy's rules: 1-D operands are rows (left) or columns (right), the rest batches.

    Raises ValueError where the inner sizes differ or an operand is a scalar.
    """
    a, b = as_tensor(a), as_tensor(b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
    rows = reshape(a, 1, -1) if a.ndim == 1 else a
    columns = reshape(b, -1, 1) if b.ndim == 1 else b
    y = product_result(MatMul()(*product_operands(rows, columns)))
    shape = y.shape
    if a.ndim == 1:
        shape = shape[:-2] + shape[-1:]
    if b.ndim == 1:
        shape = shape[:-1]
    return reshape(y, *shape) if shape != y.shape else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., in), weight (out, in), bias (out,) or None; returns (..., out).

    Raises ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {x.shape} does not fit weight {weight.shape}: (..., in), (out, in)")
    operands = (x, weight) if bias is None else (x, weight, bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {weight.shape[:1]}, got {bias.shape}")
    if len({t.dtype for t in operands}) > 1:
        dtypes = ", ".join(str(t.dtype) for t in operands)
        raise TypeError(f"x, weight and bias must have one dtype, got {dtypes}")
    operands = (*product_operands(x, weight), *operands[2:])
    if x.ndim == 2:
        return product_result(Linear()(*operands))
    rows = product_result(Linear()(reshape(operands[0], -1, x.shape[-1]), *operands[1:]))
    return reshape(rows, *x.shape[:-1], weight.shape[0])
