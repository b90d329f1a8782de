"""Operations that move elements without changing them; each one's transpose is its gradient."""

import math
from operator import index as as_index

import numpy as np

from minidl.array_module import get_array_module, is_array, to_device
from minidl.function import Function
from minidl.tensor import Tensor, as_tensor

_MANY_TERMS = 1024  # fewer terms are added in float32: their error stays below 1e-4


def normalize_axes(axis, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """`axis` (None for all, an int or several) as sorted non-negative ints; ValueError if bad."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    result = []
    for a in axes:
        if not -ndim <= as_index(a) < ndim:
            raise ValueError(f"{name} must lie in [{-ndim}, {ndim}), got {axis}")
        result.append(as_index(a) % ndim)
    if len(set(result)) != len(result):
        raise ValueError(f"{name} must not repeat an axis, got {axis}")
    return tuple(sorted(result))


def _shape_argument(shape) -> tuple[int, ...]:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = shape[0]
    return tuple(as_index(s) for s in shape)


class Reshape(Function):
    keep_inputs = False

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.source = x.shape
        return x.reshape(self.shape)

    def backward(self, grad):
        return reshape(grad, self.source)


class Transpose(Function):
    keep_inputs = False

    def __init__(self, axes):
        self.axes = axes

    def forward(self, x):
        return x.transpose(self.axes)

    def backward(self, grad):
        inverse = [0] * len(self.axes)
        for position, axis in enumerate(self.axes):
            inverse[axis] = position
        return Transpose(tuple(inverse))(grad)


class BroadcastTo(Function):
    keep_inputs = False

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.source = x.shape
        return get_array_module(x).broadcast_to(x, self.shape)

    def backward(self, grad):
        return sum_to(grad, self.source)


def sum_over(x, axes, keepdims=False):
    """x.sum of an array, in float64 where many float32 would lose digits.

    NumPy adds pairwise along contiguous memory alone; elsewhere term by term.
    """
    count = math.prod(x.shape[a] for a in axes)
    pairwise = x.flags.c_contiguous and axes == tuple(range(x.ndim - len(axes), x.ndim))
    if x.dtype != np.float32 or pairwise or count < _MANY_TERMS:
        return x.sum(axis=axes, keepdims=keepdims)
    return x.sum(axis=axes, keepdims=keepdims, dtype=np.float64).astype(x.dtype)


class SumTo(Function):
    keep_inputs = False

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        self.source = x.shape
        lead = x.ndim - len(self.shape)
        axes = tuple(range(lead)) + tuple(
            lead + i for i, n in enumerate(self.shape) if n == 1 and x.shape[lead + i] != 1
        )
        return sum_over(x, axes, keepdims=True).reshape(self.shape)

    def backward(self, grad):
        return broadcast_to(grad, self.source)


class GetItem(Function):
    keep_inputs = False

    def __init__(self, key):
        self.key = key

    def forward(self, x):
        self.source = x.shape
        return x[self.key]

    def backward(self, grad):
        return PutItem(self.key, self.source)(grad)


class PutItem(Function):
    """Add values at an index of a zero array: the transpose of `GetItem`.

    On a GPU elements that an array of indices names more than once are summed by atomic additions,
    in an order that no run need repeat: last digits may differ.
    """

    keep_inputs = False

    def __init__(self, key, shape):
        self.key = key
        self.shape = shape

    def forward(self, values):
        xp = get_array_module(values)
        x = xp.zeros(self.shape, values.dtype)
        if _selects_each_once(self.key):
            x[self.key] = values
        else:
            _scatter_add(xp, x, self.key, values)
        return x

    def backward(self, grad):
        return GetItem(self.key)(grad)


def _scatter_add(xp, x, key, values):
    if xp is np:
        np.add.at(x, key, values)
    else:
        from cupyx import scatter_add

        scatter_add(x, key, values)


def _selects_each_once(key) -> bool:
    """True for basic indexing and boolean masks, which cannot name an element twice."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        part is None
        or part is Ellipsis
        or isinstance(part, (slice, int, np.integer))
        or getattr(part, "dtype", np.dtype(np.int64)).kind == "b"
        for part in parts
    )


class Concatenate(Function):
    keep_inputs = False

    def __init__(self, axis):
        self.axis = axis

    def forward(self, *arrays):
        self.sizes = [a.shape[self.axis] for a in arrays]
        return get_array_module(arrays[0]).concatenate(arrays, axis=self.axis)

    def backward(self, grad):
        lead = (slice(None),) * self.axis
        pieces, start = [], 0
        for size, needed in zip(self.sizes, self.needs_input_grad, strict=True):
            piece = GetItem((*lead, slice(start, start + size)))(grad) if needed else None
            pieces.append(piece)
            start += size
        return tuple(pieces)


class Pad(Function):
    keep_inputs = False

    def __init__(self, pad_width, value):
        self.pad_width = pad_width
        self.value = value

    def forward(self, x):
        xp = get_array_module(x)
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, self.pad_width, strict=True))
        self.inside = tuple(
            slice(a, a + n) for n, (a, _) in zip(x.shape, self.pad_width, strict=True)
        )
        y = xp.full(shape, self.value, dtype=x.dtype)
        y[self.inside] = x
        return y

    def backward(self, grad):
        return GetItem(self.inside)(grad)


def reshape(x: Tensor, *shape) -> Tensor:
    """`x` in another shape of the same size; one entry may be -1. ValueError where it cannot."""
    shape = _shape_argument(shape)
    known = math.prod(s for s in shape if s != -1)
    wild = shape.count(-1)
    fits = known == x.size if not wild else wild == 1 and known and x.size % known == 0
    if not fits or any(s < -1 for s in shape):
        raise ValueError(f"shape must hold {x.size} elements (from {x.shape}), got {shape}")
    return Reshape(shape)(x)


def flatten(x: Tensor, start_dim: int = 0) -> Tensor:
    """Merge the axes from `start_dim` on. ValueError for an axis that x does not have."""
    if not x.ndim:
        return reshape(x, 1)
    (start,) = normalize_axes(start_dim, x.ndim, "start_dim")
    return reshape(x, *x.shape[:start], math.prod(x.shape[start:]))


def transpose(x: Tensor, *axes) -> Tensor:
    """Permute the axes; without arguments, reverse them. ValueError unless a permutation."""
    axes = _shape_argument(axes) if axes else tuple(reversed(range(x.ndim)))
    if normalize_axes(axes, x.ndim, "axes") != tuple(range(x.ndim)):
        raise ValueError(f"axes must be a permutation of {x.ndim} axes, got {axes}")
    return Transpose(tuple(a % x.ndim for a in axes))(x)


def broadcast_to(x: Tensor, shape) -> Tensor:
    """`x` repeated to `shape` by NumPy's rules (a read-only view). ValueError where it cannot."""
    shape = tuple(shape)
    return x if x.shape == shape else BroadcastTo(shape)(x)


def sum_to(x: Tensor, shape) -> Tensor:
    """Sum `x` back to `shape`, from which it could have been broadcast: broadcasting's transpose.

    This is the one place where gradients of broadcast operands are reduced.
    """
    shape = tuple(shape)
    return x if x.shape == shape else SumTo(shape)(x)


def getitem(x: Tensor, key) -> Tensor:
    """x[key] with slices, integers, None, Ellipsis, integer arrays and boolean masks.

    An element that is named several times receives the sum of its gradients (added up on a GPU in
    no fixed order). Index arrays may be on another device than x. IndexError for an index outside
    the tensor.
    """
    if isinstance(key, tuple):
        key = tuple(_plain_index(part) for part in key)
    else:
        key = _plain_index(key)
    if x.device != "cpu":
        _check_index_arrays(x.shape, key)
    return GetItem(_on_device(key, x.device))(x)


def _on_device(key, device):
    """`key` with its index arrays on `device`."""
    if isinstance(key, tuple):
        return tuple(_on_device(part, device) for part in key)
    return to_device(key, device) if is_array(key) else key


def _check_index_arrays(shape, key):
    """IndexError, by NumPy, for an index outside of `shape`: CuPy takes it modulo the axis."""
    if not _selects_each_once(key):
        np.broadcast_to(np.False_, shape)[_on_device(key, "cpu")]


def _plain_index(part):
    if isinstance(part, Tensor):
        part = part._array
    if isinstance(part, (list, range)):
        part = np.asarray(part, dtype=None if len(part) else np.int64)
    if not hasattr(part, "dtype"):
        return part
    if part.dtype.kind not in "iub":
        raise IndexError(f"an index array must hold integers or booleans, got {part.dtype}")
    return part.copy()  # backward reads it again, whatever has become of the caller's array


def concatenate(tensors, axis: int = 0) -> Tensor:
    """Join tensors along an existing axis. ValueError where their other sizes differ."""
    tensors = tuple(as_tensor(t) for t in tensors)
    if not tensors:
        raise ValueError("tensors must hold at least one tensor, got none")
    (axis,) = normalize_axes(axis, tensors[0].ndim)
    return Concatenate(axis)(*tensors)


def stack(tensors, axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis. ValueError where the shapes differ."""
    tensors = tuple(as_tensor(t) for t in tensors)
    if not tensors:
        raise ValueError("tensors must hold at least one tensor, got none")
    shape = tensors[0].shape
    if any(t.shape != shape for t in tensors):
        raise ValueError(f"tensors must have one shape, got {[t.shape for t in tensors]}")
    (axis,) = normalize_axes(axis, len(shape) + 1)
    return concatenate([reshape(t, *shape[:axis], 1, *shape[axis:]) for t in tensors], axis)


def pad(x: Tensor, pad_width, value: float = 0.0) -> Tensor:
    """Surround `x` with `value`: `pad_width` is one (before, after) pair an axis, or an int.

    Raises ValueError for a negative width or a wrong number of pairs.
    """
    same = isinstance(pad_width, (int, np.integer))
    try:
        pairs = ((pad_width, pad_width),) * x.ndim if same else pad_width
        pairs = tuple((as_index(a), as_index(b)) for a, b in pairs)
        fits = len(pairs) == x.ndim and all(n >= 0 for pair in pairs for n in pair)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"pad_width must be {x.ndim} pairs of non-negative integers, got {pad_width}"
        )
    return Pad(pairs, value)(x)
