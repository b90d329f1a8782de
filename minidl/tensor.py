"""Tensor: an array that remembers how it was computed.

A Tensor wraps a NumPy or CuPy array. Operations (`minidl.ops`) link their result to the Function
that made it; `backward` (in `minidl.graph`) follows those links. The array itself is `_array`
inside the engine and `data` outside it. What guards it against unnoticed writes stands in
`minidl.storage`.
"""

from contextlib import contextmanager
from functools import wraps
from threading import local

import numpy as np

from minidl.array_module import device_of, is_array, scalar_like, to_device
from minidl.storage import Storage


class _GradMode(local):
    enabled = True
    listener = None  # called with (function, inputs, outputs) of every operation that runs
    profiler = None  # the profile that runs what it is to measure, see minidl.profiler


_mode = _GradMode()


def is_grad_enabled() -> bool:
    """True where operations record the graph (the default)."""
    return _mode.enabled


def is_traced() -> bool:
    """Whether something listens to the operations of this thread, see `listening`."""
    return _mode.listener is not None


@contextmanager
def listening(listen):
    """Inside, ``listen(function, inputs, outputs)`` is called after every operation of this thread.

    A listener from outside is not called meanwhile.
    """
    previous, _mode.listener = _mode.listener, listen
    try:
        yield
    finally:
        _mode.listener = previous


class _SetGrad:
    target = True
    _previous = ()  # one for each time that it was entered

    def __call__(self, function):
        @wraps(function)
        def decorated(*args, **kwargs):
            with type(self)():  # each call has its own: other threads may be in the function, too
                return function(*args, **kwargs)

        return decorated

    def __enter__(self):
        self._previous = (*self._previous, _mode.enabled)
        _mode.enabled = self.target
        return self

    def __exit__(self, *exc):
        *self._previous, _mode.enabled = self._previous
        return False


class no_grad(_SetGrad):
    """Context manager or decorator: operations inside record no graph."""

    target = False


class enable_grad(_SetGrad):
    """Context manager or decorator: operations inside record the graph again."""

    target = True


class Tensor:
    """A multi-dimensional array with a gradient.

    `data`: a NumPy or CuPy array (wrapped without a copy), a Tensor, or a scalar or nested list
    (floats become float32, integers int64). Only floating-point tensors can require a gradient.

    Raises TypeError for data that is no numeric array, ValueError for `requires_grad` on integers.
    """

    __slots__ = (
        "_array", "_storage", "_requires_grad", "grad", "_node", "_index", "_retains", "_view",
        "__weakref__",
    )  # fmt: skip
    # NumPy must hand `array * tensor` to Tensor.__rmul__ instead of looping over elements.
    __array_ufunc__ = None

    def __init__(self, data, requires_grad: bool = False):
        if isinstance(data, Tensor):
            self._array, self._storage = data._array, data._storage
        elif is_array(data):
            if data.dtype.kind not in "fiub":
                raise TypeError(f"data must be numeric, got an array of dtype {data.dtype}")
            self._storage = Storage.of(data)
            self._array = self._storage.view(data)
        else:
            self._array, self._storage = _array_from_python(data), Storage()
        self.grad = None
        self._node = None
        self._index = 0
        self._retains = False
        self._view = None
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def _wrap(array, storage=None) -> "Tensor":
        """A tensor on an array that the engine owns: no checks, no view."""
        tensor = Tensor.__new__(Tensor)
        # NumPy turns 0-d results into scalars.
        tensor._array = np.asarray(array) if isinstance(array, np.generic) else array
        tensor._storage = Storage() if storage is None else storage
        tensor._requires_grad = False
        tensor.grad = tensor._node = tensor._view = None
        tensor._index = 0
        tensor._retains = False
        return tensor

    # -- what it holds ---------------------------------------------------------------------------

    @property
    def data(self):
        """The array. Read-only while a graph needs it; assign to replace it (same shape)."""
        if self._view is None:
            self._view = self._array.view()
            self._storage.expose(self._view)
        return self._view

    @data.setter
    def data(self, value):
        if value is self._view:  # `t.data += 1` writes in place, then assigns the same object
            self._storage.version += 1
            return
        value = value._array if isinstance(value, Tensor) else value
        if not is_array(value):
            raise TypeError(f"data must be an array or a Tensor, got {type(value).__name__}")
        if value.shape != self.shape:
            raise ValueError(f"data must keep the shape {self.shape}, got {value.shape}")
        if self._requires_grad and value.dtype.kind != "f":
            raise TypeError(f"data must stay floating point to carry a gradient, got {value.dtype}")
        self._storage = Storage.of(value)  # a graph that kept this tensor notices the exchange
        self._array = self._storage.view(value)
        self._view = None

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the same memory on the CPU, a copy from the GPU.

        Raises RuntimeError on a tensor that requires grad: call `detach()` first.
        """
        if self._requires_grad:
            raise RuntimeError("numpy() on a tensor that requires grad: use detach().numpy()")
        return self.data if self.device == "cpu" else self._array.get()

    def item(self) -> float | int | bool:
        """The value of a one-element tensor as a Python number; ValueError for other sizes."""
        if self.size != 1:
            raise ValueError(f"item() needs a tensor of one element, got shape {self.shape}")
        return self._array.item()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return device_of(self._array)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __repr__(self) -> str:
        values = np.array2string(to_device(self._array, "cpu"), separator=", ", prefix="tensor(")
        extra = f", dtype={self.dtype}"
        if self._node is not None:
            extra += f", from={type(self._node).__name__}"
        elif self._requires_grad:
            extra += ", requires_grad=True"
        return f"tensor({values}{extra})"

    # -- the graph -------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` computes a gradient for, or through, this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool):
        if value and self.dtype.kind != "f":
            raise ValueError(f"requires_grad needs a floating-point tensor, got {self.dtype}")
        if not value and self._node is not None:
            raise RuntimeError("requires_grad of a computed tensor cannot be unset: use detach()")
        self._requires_grad = bool(value)

    def requires_grad_(self, value: bool = True) -> "Tensor":
        """Set `requires_grad` and return the tensor itself."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """True where no recorded operation made this tensor: gradients end, and stay, here."""
        return self._node is None

    def backward(self, grad=None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf), times `grad`, to the `grad` of every leaf that requires grad.

        `grad`: tensor or array of this tensor's shape; may be left out for a one-element tensor.
        `retain_graph` keeps the buffers for another backward; `create_graph` also records the
        gradients' own graph, so that they can be differentiated in turn.

        Raises RuntimeError without a graph, after its buffers were freed, or where an array that
        is needed was modified in place; ValueError for a `grad` of the wrong shape.
        """
        from minidl.graph import backward

        backward(self, grad, retain_graph=retain_graph, create_graph=create_graph)

    def detach(self) -> "Tensor":
        """A tensor on the same memory, outside the graph."""
        return Tensor._wrap(self._array, self._storage)

    def retain_grad(self) -> "Tensor":
        """Keep the `grad` of this computed tensor too; returns the tensor."""
        if not self._requires_grad:
            raise RuntimeError("retain_grad() on a tensor that does not require grad")
        if self._node is not None and not self._retains:
            self._node.retain(self)
            self._retains = True
        return self

    def zero_grad(self) -> None:
        """Forget the accumulated gradient."""
        self.grad = None

    def astype(self, dtype) -> "Tensor":
        """This tensor as `dtype`; differentiable between floating-point types."""
        from minidl.ops.cast import cast

        return cast(self, dtype)

    def to(self, target) -> "Tensor":
        """This tensor on a device (``"cpu"``, ``"cuda"``) or in another dtype; differentiable."""
        from minidl.ops.cast import cast, to

        return to(self, target) if target in ("cpu", "cuda") else cast(self, target)

    def cpu(self) -> "Tensor":
        """This tensor in the memory of the CPU, itself if it is there; differentiable."""
        return self.to("cpu")

    # -- changing the values ---------------------------------------------------------------------

    @contextmanager
    def mutate(self):
        """Context manager for a tracked in-place write: yields the writable array.

        A graph that still needs the old values notices: its backward raises RuntimeError.
        """
        self._storage.version += 1
        yield self._array

    def _take_memory(self) -> bool:
        """True where an operation may write its result over these values; then they count as gone.

        Not over a leaf, nor where a graph, the holder of an array or a listener needs them.
        """
        storage, leaf = self._storage, self._requires_grad and self._node is None
        if leaf or storage.locks or storage.exposed or _mode.listener is not None:
            return False
        storage.version += 1
        return True

    def copy_(self, source) -> "Tensor":
        """Overwrite the values with `source` (tensor, array or scalar; broadcast) in place.

        The source may be on another device.
        """
        array = source._array if isinstance(source, Tensor) else source
        if self._requires_grad and self._node is not None:
            raise RuntimeError("copy_() on a computed tensor would break its graph: detach() first")
        shape = getattr(array, "shape", ())
        if shape != self.shape and np.broadcast_shapes(shape, self.shape) != self.shape:
            raise ValueError(f"source must broadcast to {self.shape}, got shape {shape}")
        if is_array(array):
            array = to_device(array, self.device)
        with self.mutate() as target:
            target[...] = array
        return self

    # -- pickling and copying: values only, the graph stays behind --------------------------------

    def __deepcopy__(self, memo):
        if self._node is not None:
            raise RuntimeError("deepcopy of a computed tensor: detach() it first")
        copy = type(self).__new__(type(self))
        Tensor.__init__(copy, self._array.copy(), requires_grad=self._requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce__(self):
        return type(self), (to_device(self._array, "cpu"), self._requires_grad)


def _array_from_python(data) -> np.ndarray:
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"data must be numbers, got {type(data).__name__} of dtype {array.dtype}")
    if array.dtype.kind == "f" and not isinstance(data, np.generic):
        return np.array(array, dtype=np.float32)
    return np.array(array)


def tensor(data, dtype=None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of `data`; Python floats become float32 unless `dtype` is given."""
    if isinstance(data, Tensor):
        data = data._array
    if is_array(data):
        array = data.astype(dtype or data.dtype)
    elif dtype is not None:
        array = np.array(data, dtype=dtype)
    else:
        array = _array_from_python(data)
    return Tensor(array, requires_grad)


def as_tensor(value, like: Tensor | None = None) -> Tensor:
    """`value` as a Tensor, itself if it is one.

    A number beside a tensor `like`, Python's or a NumPy scalar, takes its dtype (as PyTorch's weak
    scalars do), so that ``x * 0.5`` keeps float32; a float beside integers becomes float32.
    """
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise TypeError("an operand must be a tensor, an array or a number, got None")
    if isinstance(value, np.generic) and value.dtype.kind in "fiub":
        value = value if like is None else value.item()
    if like is not None and isinstance(value, (bool, int, float)):
        dtype = like.dtype
        if isinstance(value, float) and dtype.kind != "f":
            dtype = np.dtype(np.float32)
        return Tensor._wrap(scalar_like(value, dtype, like._array))
    return Tensor(value)
