"""Elementwise operations. Operands broadcast by NumPy's rules; gradients are summed back."""

import numpy as np

from kernels.dispatch import kernels_for
from minidl.array_module import get_array_module
from minidl.function import Function
from minidl.ops.shape import sum_to
from minidl.tensor import Tensor, as_tensor, is_grad_enabled

_KERNEL_DTYPES = np.dtype(np.float32), np.dtype(np.float64)


def _sum_pair(function, da, db):
    """The gradients of two broadcast operands, the last inputs, each summed to its shape."""
    (shape_a, _), (shape_b, _) = function.input_meta[-2:]
    return (
        None if da is None else sum_to(da, shape_a),
        None if db is None else sum_to(db, shape_b),
    )


class Add(Function):
    keep_inputs = False

    def __init__(self, inplace=False):
        self.inplace = inplace

    def forward(self, a, b):
        if a.shape == b.shape and a.dtype == b.dtype and a.dtype in _KERNEL_DTYPES:
            return kernels_for(a).add(a, b, a if self.inplace else None)
        return a + b

    def backward(self, grad):
        return _sum_pair(self, grad, grad)


class Sub(Function):
    keep_inputs = False

    def forward(self, a, b):
        return a - b

    def backward(self, grad):
        return _sum_pair(self, grad, -grad if self.needs_input_grad[1] else None)


class Mul(Function):
    def forward(self, a, b):
        return a * b

    def backward(self, grad):
        a, b = self.inputs
        needs_a, needs_b = self.needs_input_grad
        return _sum_pair(self, grad * b if needs_a else None, grad * a if needs_b else None)


class Div(Function):
    def forward(self, a, b):
        return a / b

    def backward(self, grad):
        a, b = self.inputs
        da = grad / b
        return _sum_pair(self, da, -da * (a / b) if self.needs_input_grad[1] else None)


class Neg(Function):
    keep_inputs = False

    def forward(self, x):
        return -x

    def backward(self, grad):
        return -grad


class PowScalar(Function):
    """x ** n for a constant n: d/dx = n x ** (n - 1)."""

    def __init__(self, exponent):
        self.exponent = exponent

    def forward(self, x):
        return x**self.exponent

    def backward(self, grad):
        (x,) = self.inputs
        n = self.exponent
        if n == 0:
            return grad * 0.0
        if n == 1:
            return grad
        return grad * (x * 2.0 if n == 2 else n * x ** (n - 1))


class Pow(Function):
    """a ** b: d/da = b a ** (b - 1), d/db = a ** b log a, taken as 0 where a is 0."""

    def forward(self, a, b):
        return a**b

    def backward(self, grad):
        a, b = self.inputs
        da = db = None
        if self.needs_input_grad[0]:
            # b a ** (b - 1) at b = 0 is 0 even where a ** -1 overflows.
            zero = b._array == 0
            slope = b * a ** where(zero, 1.0, b - 1.0)
            da = grad * where(zero, 0.0, slope)
        if self.needs_input_grad[1]:
            base_is_zero = a._array == 0
            db = grad * a**b * log(where(base_is_zero, 1.0, a))
        return _sum_pair(self, da, db)


class Exp(Function):
    keep_inputs = False
    keep_outputs = True

    def forward(self, x):
        return get_array_module(x).exp(x)

    def backward(self, grad):
        return grad * self.outputs[0]


class Log(Function):
    def forward(self, x):
        return get_array_module(x).log(x)

    def backward(self, grad):
        return grad / self.inputs[0]


class Sqrt(Function):
    keep_inputs = False
    keep_outputs = True

    def forward(self, x):
        return get_array_module(x).sqrt(x)

    def backward(self, grad):
        return grad * 0.5 / self.outputs[0]


class Tanh(Function):
    keep_inputs = False
    keep_outputs = True

    def forward(self, x):
        return get_array_module(x).tanh(x)

    def backward(self, grad):
        (y,) = self.outputs
        return grad * (1.0 - y * y)


class Sigmoid(Function):
    keep_inputs = False
    keep_outputs = True

    def forward(self, x):
        # exp of -|x| cannot overflow: for x >= 0, 1 / (1 + e); for x < 0, e / (1 + e).
        xp = get_array_module(x)
        e = xp.exp(-xp.abs(x))
        return xp.where(x >= 0, 1, e) / (1 + e)

    def backward(self, grad):
        (y,) = self.outputs
        return grad * y * (1.0 - y)


class ReLU(Function):
    keep_inputs = False
    keep_outputs = True
    takes_grad = True

    def __init__(self, inplace=False):
        self.inplace = inplace

    def forward(self, x):
        return kernels_for(x).relu(x, x if self.inplace else None)

    def backward(self, grad):
        return behind_rectifier(grad, self.outputs[0], self.grad_is_free)


class Abs(Function):
    """|x|, with derivative 0 at 0."""

    def forward(self, x):
        return abs(x)

    def backward(self, grad):
        (x,) = self.inputs
        return grad * _constant(get_array_module(x._array).sign(x._array), grad)


class Clip(Function):
    """min(max(x, low), high); the gradient passes inside and on the bounds."""

    def __init__(self, low, high):
        self.low = low
        self.high = high

    def forward(self, x):
        return x.clip(self.low, self.high)

    def backward(self, grad):
        x = self.inputs[0]._array
        passes = True
        if self.low is not None:
            passes = passes & (x >= self.low)
        if self.high is not None:
            passes = passes & (x <= self.high)
        return grad * _constant(passes, grad)


class Maximum(Function):
    """The larger operand; equal operands share the gradient, half each."""

    name = "maximum"

    def forward(self, a, b):
        return getattr(get_array_module(a), self.name)(a, b)

    def backward(self, grad):
        a, b = (t._array for t in self.inputs)
        wins = a > b if self.name == "maximum" else a < b
        share = _constant(wins, grad) + _constant(a == b, grad) * 0.5
        return _sum_pair(self, grad * share, grad * (1.0 - share))


class Minimum(Maximum):
    """The smaller operand; equal operands share the gradient, half each."""

    name = "minimum"


class Where(Function):
    keep_inputs = (0,)

    def forward(self, condition, a, b):
        return get_array_module(a).where(condition, a, b)

    def backward(self, grad):
        mask = _constant(self.inputs[0]._array, grad)
        return (None, *_sum_pair(self, grad * mask, grad * (1.0 - mask)))


def behind_rectifier(grad, y, inplace=False):
    """The gradient by what was rectified to y: `grad` where y is positive."""
    if is_grad_enabled():
        return grad * _constant(y._array > 0, grad)
    array, (out, storage) = grad._array, taken(grad, inplace)
    return Tensor._wrap(kernels_for(array).relu_backward(array, y._array, out), storage)


def taken(grad, inplace):
    """(array to write over, its storage) of a gradient, or (None, None) unless `inplace`."""
    return (grad._array, grad._storage) if inplace else (None, None)


def _constant(array, like: Tensor) -> Tensor:
    """An array (a mask, a sign) as a tensor outside the graph, in the dtype of `like`."""
    return Tensor._wrap(array.astype(like.dtype))


def add(a, b) -> Tensor:
    """a + b."""
    return Add()(a, b)


def sub(a, b) -> Tensor:
    """a - b."""
    return Sub()(a, b)


def mul(a, b) -> Tensor:
    """a * b."""
    return Mul()(a, b)


def div(a, b) -> Tensor:
    """a / b; integers are divided as float32."""
    a, b = _pair(a, b)
    return Div()(_floating(a), _floating(b))


def neg(x) -> Tensor:
    """-x."""
    return Neg()(x)


def pow(x, exponent) -> Tensor:
    """x ** exponent, either of them a tensor; d/d(exponent) is taken as 0 where x is 0."""
    exponent = _number(exponent)
    if isinstance(exponent, (int, float)):
        if isinstance(exponent, float) or exponent < 0:
            x = _floating(x)
        return PowScalar(exponent)(x)
    x, exponent = _pair(x, exponent)
    return Pow()(_floating(x), _floating(exponent))


def exp(x) -> Tensor:
    """e ** x."""
    return Exp()(_floating(x))


def log(x) -> Tensor:
    """Natural logarithm."""
    return Log()(_floating(x))


def sqrt(x) -> Tensor:
    """Square root."""
    return Sqrt()(_floating(x))


def tanh(x) -> Tensor:
    """Hyperbolic tangent."""
    return Tanh()(_floating(x))


def sigmoid(x) -> Tensor:
    """1 / (1 + e ** -x), without overflow."""
    return Sigmoid()(_floating(x))


def relu(x, inplace: bool = False) -> Tensor:
    """max(x, 0); the derivative at 0 is 0, NaN stays NaN.

    `inplace` allows the result to take the memory of x, which the caller must not read afterwards.
    That is done where nobody else needs it: no graph, no array handed out to the user.
    """
    inplace = inplace and isinstance(x, Tensor) and x._take_memory()
    return ReLU(inplace)(x)


def absolute(x) -> Tensor:
    """|x|; the derivative at 0 is 0."""
    return Abs()(x)


def clip(x, min=None, max=None) -> Tensor:
    """x limited to [min, max], either of which may be None. ValueError if both are, or min > max.

    The gradient passes where min <= x <= max. TypeError for bounds that are no numbers.
    """
    min, max = _number(min), _number(max)
    for bound in (min, max):
        if not (bound is None or isinstance(bound, (int, float))):
            raise TypeError(f"min and max must be numbers or None, got {type(bound).__name__}")
    if min is None and max is None:
        raise ValueError("clip needs min or max, got None for both")
    if min is not None and max is not None and min > max:
        raise ValueError(f"min must not exceed max, got {min} > {max}")
    return Clip(min, max)(x)


def maximum(a, b) -> Tensor:
    """Elementwise larger of a and b; the gradient of a tie is split in halves."""
    return Maximum()(a, b)


def minimum(a, b) -> Tensor:
    """Elementwise smaller of a and b; the gradient of a tie is split in halves."""
    return Minimum()(a, b)


def where(condition, a, b) -> Tensor:
    """a where `condition` (boolean tensor or array), else b. TypeError for other conditions."""
    mask = as_tensor(condition)
    if mask.dtype != bool:
        raise TypeError(f"condition must be boolean, got {mask.dtype}")
    return Where()(mask, *_pair(a, b))


def _pair(a, b) -> tuple[Tensor, Tensor]:
    """Both operands as tensors; a Python number takes the other's dtype."""
    if isinstance(a, Tensor):
        return a, as_tensor(b, like=a)
    b = as_tensor(b)
    return as_tensor(a, like=b), b


def _number(value):
    """A NumPy scalar as a Python number, which leaves the dtype of a tensor alone."""
    return value.item() if isinstance(value, np.generic) else value


def _floating(x) -> Tensor:
    x = as_tensor(x)
    return x if x.dtype.kind == "f" else x.astype(np.float32)
