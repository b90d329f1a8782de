"""A stand-in for CuPy, stricter than CuPy, so that code for the GPU runs where there is none.

    with stand_in():
        y = model.to("cuda")(x.to("cuda"))

Its arrays hold NumPy's, but mix with none: only `asarray` takes a NumPy array in, only `get` gives
one out, and no function of NumPy takes one of them. Modules `cupy` and `cupyx` have the names that
are listed here and no others, which take the keywords listed here; test_stand_in.py holds the lists
to the real CuPy. Kernels run under the emulator, their threads in one order only; `RawModule` takes
what CuPy's takes.
"""

import contextlib
import functools
import operator
import sys
import types
from unittest import mock

import numpy as np

from kernels.cuda import cublas, runtime
from tests.emulator import run
from tests.emulator.cublas import HANDLE, STREAM, Cublas

METHODS = (
    "all", "any", "astype", "clip", "copy", "fill", "max", "mean", "min", "ravel", "reshape", "sum",
    "swapaxes", "transpose", "view",
)  # fmt: skip
FUNCTIONS = (
    "abs", "arange", "array_equal", "ascontiguousarray", "broadcast_to", "concatenate", "divide",
    "divmod", "exp", "full", "isfinite", "log", "matmul", "maximum", "minimum", "ones", "ones_like",
    "sign", "split", "sqrt", "square", "stack", "tanh", "where", "zeros", "zeros_like",
)  # fmt: skip
# What they may be given by name: less than NumPy's, which know `where` and `initial`.
KEYWORDS = {
    **dict.fromkeys(("all", "any", "max", "min"), {"axis", "keepdims"}),
    **dict.fromkeys(("mean", "sum"), {"axis", "dtype", "keepdims"}),
    **dict.fromkeys(("concatenate", "split", "stack"), {"axis"}),
    **dict.fromkeys(("divide", "matmul"), {"out"}),
    "astype": {"copy", "order"}, "full": {"dtype"}, "square": {"dtype"},
}  # fmt: skip
OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
)  # fmt: skip
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
NUMBERS = (bool, int, float, np.generic)


class DeviceArray:
    """What cupy.ndarray is to the code under test. `base` is the array that a view looks into."""

    __slots__ = ("_array", "base", "__weakref__")
    __hash__ = None

    def __init__(self, shape, dtype):
        self._array = run.garbage(shape, dtype)
        self.base = None

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    strides = property(lambda self: self._array.strides)
    data = property(lambda self: types.SimpleNamespace(ptr=self._array.ctypes.data))
    T = property(lambda self: self.transpose())

    @property
    def flags(self):
        flags = self._array.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous
        )

    def get(self) -> np.ndarray:
        """A copy for the CPU."""
        return self._array.copy()

    def item(self):
        return self._array.item()

    def tolist(self):
        return self._array.tolist()

    def __array__(self, *args, **kwargs):
        raise TypeError("an array of the device must not become NumPy's but by get()")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} must not be called on an array of the device")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # What is left of `scalar * array`, a NumPy scalar's operator.
        if method != "__call__" or kwargs or not any(isinstance(i, np.generic) for i in inputs):
            raise TypeError(f"numpy.{ufunc.__name__} must not be called on an array of the device")
        return _wrapped(ufunc(*map(_bare, inputs)), inputs)

    def __getitem__(self, key):
        key = _bare(key)
        result = self._array[key]
        if isinstance(result, np.generic):  # CuPy gives a view here, too
            result = self._array[(*(key if isinstance(key, tuple) else (key,)), ...)]
        return _wrapped(result, (self,))

    def __setitem__(self, key, value):
        self._array[_bare(key)] = _bare(value)

    def __bool__(self):
        return bool(self._array)

    def __float__(self):
        return float(self._array)

    def __int__(self):
        return int(self._array)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def _device_array(array, base=None):
    """An array of the device on the memory of one of NumPy's."""
    result = DeviceArray.__new__(DeviceArray)
    result._array, result.base = array, base
    return result


def _bare(value):
    """The NumPy form of an argument; TypeError for an array that is NumPy's already."""
    if isinstance(value, DeviceArray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("an array of NumPy's meets one of the device: move it there first")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_bare, value))
    return value


def _wrapped(result, sources):
    """A result as an array of the device, a view if it looks into one of the sources."""
    if isinstance(result, (tuple, list)):
        return type(result)(_wrapped(part, sources) for part in result)
    array = np.asarray(result)
    for source in sources:
        if isinstance(source, DeviceArray) and np.may_share_memory(array, source._array):
            return _device_array(array, source if source.base is None else source.base)
    return _device_array(array)


def _check_keywords(name, given):
    if unknown := given - KEYWORDS.get(name, set()):
        raise TypeError(f"{name} of the stand-in for CuPy takes no {', '.join(sorted(unknown))}")


def _method(name):
    def method(self, *args, **kwargs):
        _check_keywords(name, kwargs.keys())
        result = getattr(self._array, name)(*map(_bare, args), **kwargs)
        return _wrapped(result, (self,))

    return method


def _operator(function):
    def method(self, *others):
        if not all(isinstance(other, (DeviceArray, *NUMBERS)) for other in others):
            return _bare(others) and NotImplemented
        return _wrapped(function(self._array, *map(_bare, others)), ())

    return method


def _reflected(function):
    return _operator(lambda a, b: function(b, a))


def _in_place(function):
    def method(self, other):
        function(self._array, _bare(other))
        return self

    return method


for _name in METHODS:
    setattr(DeviceArray, _name, _method(_name))
for _name in OPERATORS:
    _function = getattr(operator, f"__{_name}__")
    setattr(DeviceArray, f"__{_name}__", _operator(_function))
    setattr(DeviceArray, f"__r{_name}__", _reflected(_function))
    setattr(DeviceArray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _name in (*COMPARISONS, "neg", "abs", "invert"):
    setattr(DeviceArray, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))


def _function_of(name):
    function = getattr(np, name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        _check_keywords(name, kwargs.keys())
        kwargs = {key: _bare(value) for key, value in kwargs.items()}
        return _wrapped(function(*map(_bare, args), **kwargs), args)

    return call


def _asarray(array, dtype=None):
    if isinstance(array, DeviceArray):
        return array if dtype in (None, array.dtype) else array.astype(dtype)
    return _device_array(np.array(array, dtype))


def _scatter_add(array, key, values):
    np.add.at(array._array, _bare(key), _bare(values))


class RawModule:
    """As CuPy's: a source that is compiled with options, of which one names the type `real`."""

    def __init__(self, *, code: str, options: tuple):
        if type(options) is not tuple or not all(type(option) is str for option in options):
            raise TypeError(f"options must be a tuple of strings, got {options!r}")
        chars = {f"-DREAL={name}": char for char, name in runtime.C_TYPES.items()}
        (self._dtype,) = [chars[option] for option in options if option in chars]
        self._code = code

    def get_function(self, name: str):
        return RawKernel(self._code, name, self._dtype)


class RawKernel:
    """As CuPy's. What CuPy would pass on, for the kernel to take as something else, is an error."""

    def __init__(self, code, name, dtype):
        self._code, self._name, self._dtype = code, name, dtype
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0):
        where = f"the launch of {self._name}"
        for sizes in (grid, block):
            if type(sizes) is not tuple or not all(size >= 1 for size in sizes):
                # CuPy would make 1 of 0, and run a block that has nothing to do.
                raise run.EmulationError(f"{where}: a grid or block of {sizes!r}")
        for arg in args:
            if not isinstance(arg, (DeviceArray, np.generic)) and not run.is_struct(arg):
                # CuPy would choose a width for the numbers of Python.
                raise run.EmulationError(f"{where}: an argument of {type(arg).__name__}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise run.EmulationError(f"{where}: {shared_mem} bytes of shared memory, unasked for")
        bare = [arg if run.is_struct(arg) else _bare(arg) for arg in args]
        run.launch(
            _source_of(self._code), self._name, self._dtype, grid, block, bare, shared_mem,
            self._code,
        )  # fmt: skip


@functools.cache
def _source_of(code):
    """The name of a source in kernels/cuda, for messages."""
    paths = runtime.SOURCES.glob("*.cu")
    return next((p.stem for p in paths if p.read_text(encoding="utf-8") == code), "unknown")


def _modules():
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.ndarray = DeviceArray
    cupy.is_available = lambda: True
    stream = types.SimpleNamespace(synchronize=lambda: None, ptr=STREAM)
    device = types.SimpleNamespace(compute_capability="90")
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda: stream, Device=lambda: device,
        device=types.SimpleNamespace(get_cublas_handle=lambda: HANDLE),
    )  # fmt: skip
    cupy.RawModule = RawModule
    cupy.asarray = _asarray
    cupy.empty = DeviceArray
    cupyx.scatter_add = _scatter_add
    for name in FUNCTIONS:
        setattr(cupy, name, _function_of(name))
    return {"cupy": cupy, "cupyx": cupyx}


def _forget_kernels():
    """Those that runtime has compiled belong to the CuPy that compiled them."""
    runtime._allowed_shared_bytes.clear()
    runtime._function.cache_clear()
    runtime._module.cache_clear()
    runtime.multiplies_tf32.cache_clear()


@contextlib.contextmanager
def stand_in():
    """Within, there is a GPU as far as the code can tell."""
    mine = _modules()
    before = {name: sys.modules.pop(name, None) for name in mine}
    sys.modules.update(mine)
    _forget_kernels()
    try:
        with (
            mock.patch.object(run, "RUNS", run.RUNS[:1]),
            mock.patch.object(cublas, "_library", mock.Mock(return_value=Cublas())),
        ):
            yield
    finally:
        _forget_kernels()
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
