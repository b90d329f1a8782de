"""Differentiable operations; the common ones are also methods and operators of Tensor."""

from minidl.ops.cast import cast, to
from minidl.ops.elementwise import (
    absolute,
    add,
    clip,
    div,
    exp,
    log,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    sqrt,
    sub,
    tanh,
    where,
)
from minidl.ops.linalg import linear, matmul
from minidl.ops.reduce import logsumexp, max, mean, sum, var
from minidl.ops.shape import (
    broadcast_to,
    concatenate,
    flatten,
    getitem,
    pad,
    reshape,
    stack,
    sum_to,
    transpose,
)
from minidl.tensor import Tensor

# isort: split
# These use Tensor's operators, which stand below on the classes above.
from minidl.ops.conv import bias_relu, conv2d, conv2d_affine, conv2d_relu, conv_transpose2d
from minidl.ops.dropout import dropout
from minidl.ops.loss import cross_entropy, log_softmax, mse_loss, softmax
from minidl.ops.norm import batch_norm, batch_norm_affine, local_response_norm
from minidl.ops.pool import (
    adaptive_avg_pool2d,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
    max_unpool2d,
)

abs = absolute

_METHODS = {
    "__add__": add,
    "__radd__": lambda x, other: add(other, x),
    "__sub__": sub,
    "__rsub__": lambda x, other: sub(other, x),
    "__mul__": mul,
    "__rmul__": lambda x, other: mul(other, x),
    "__truediv__": div,
    "__rtruediv__": lambda x, other: div(other, x),
    "__pow__": pow,
    "__rpow__": lambda x, other: pow(other, x),
    "__neg__": neg,
    "__abs__": absolute,
    "__matmul__": matmul,
    "__rmatmul__": lambda x, other: matmul(other, x),
    "__getitem__": getitem,
    "T": property(transpose),
}
_NAMED = (
    abs, clip, exp, flatten, log, log_softmax, logsumexp, matmul, max, mean, relu, reshape,
    sigmoid, softmax, sqrt, sum, tanh, transpose, var,
)  # fmt: skip

for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)
for _function in _NAMED:
    setattr(Tensor, _function.__name__, _function)
Tensor.abs = absolute

__all__ = [
    "abs", "adaptive_avg_pool2d", "add", "avg_pool2d", "batch_norm", "batch_norm_affine",
    "bias_relu", "broadcast_to", "cast", "clip", "concatenate", "conv2d", "conv2d_affine",
    "conv2d_relu", "conv_transpose2d", "cross_entropy", "div", "dropout", "exp", "flatten",
    "getitem", "global_avg_pool2d", "linear", "local_response_norm", "log", "log_softmax",
    "logsumexp", "matmul", "max", "max_pool2d", "max_unpool2d", "maximum", "mean", "minimum",
    "mse_loss", "mul", "neg", "pad", "pow", "relu", "reshape", "sigmoid", "softmax", "sqrt",
    "stack", "sub", "sum", "sum_to", "tanh", "to", "transpose", "var", "where",
]  # fmt: skip
