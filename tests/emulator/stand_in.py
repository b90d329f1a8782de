"""A stand-in for CuPy, stricter than CuPy, so that code for the GPU runs where there is none.

    with stand_in():
        y = model.to("cuda")(x.to("cuda"))

Its arrays hold NumPy's, but mix with none: only `asarray` takes a NumPy array in, only `get` gives
one out, and no function of NumPy takes one of them. Modules `cupy` and `cupyx` have the names that
are listed here and no others, which take the keywords listed here; test_stand_in.py holds the lists
to the real CuPy. Kernels run under the emulator, their threads in one order only; `RawModule` takes
what CuPy's takes.

While a stream captures, nothing is changed: what would be is kept as a list of calls, which is the
graph. New arrays get their shape, and no values before the graph is launched.
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
    "all", "any", "astype", "clip", "copy", "max", "mean", "min", "ravel", "reshape", "sum",
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
RELAXED = 2  # cudaStreamCaptureModeRelaxed
NUMBERS = (bool, int, float, np.generic)

_captured = None  # the calls of the graph that is being captured, and the arrays that they made


class _Calls:
    def __init__(self):
        self.calls, self.made = [], []


def _act(call):
    """Make a call that writes to arrays, or keep it for the graph that is being captured."""
    if _captured is None:
        call()
    else:
        _captured.calls.append(call)


def _made(compute, sources):
    """What `compute()` gives of the sources, as arrays of the device."""
    if _captured is None:
        return _wrapped(compute(), sources)
    with np.errstate(all="ignore"):  # of arrays without values
        result = _wrapped(compute(), sources)
    results = result if isinstance(result, (tuple, list)) else [result]
    _captured.made += [array for array in results if array.base is None]

    def again():
        values = compute()
        values = values if isinstance(values, (tuple, list)) else [values]
        for array, value in zip(results, values, strict=True):
            if array.base is None:
                array._array[...] = value

    _captured.calls.append(again)
    return result


def _not_captured():
    if _captured is not None:
        raise RuntimeError("the current stream is capturing: no values go from or to the CPU")


class DeviceArray:
    """What cupy.ndarray is to the code under test. `base` is the array that a view looks into."""

    __slots__ = ("_array", "base", "__weakref__")
    __hash__ = None

    def __init__(self, shape, dtype):
        self._array = run.garbage(shape, dtype)
        self.base = None
        if _captured is not None:
            _captured.made.append(self)

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
        _not_captured()
        return self._array.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def fill(self, value):
        array, value = self._array, _bare(value)
        _act(lambda: array.fill(value))

    def __array__(self, *args, **kwargs):
        raise TypeError("an array of the device must not become NumPy's but by get()")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} must not be called on an array of the device")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # What is left of `scalar * array`, a NumPy scalar's operator.
        if method != "__call__" or kwargs or not any(isinstance(i, np.generic) for i in inputs):
            raise TypeError(f"numpy.{ufunc.__name__} must not be called on an array of the device")
        bare = [_bare(each) for each in inputs]
        return _made(lambda: ufunc(*bare), inputs)

    def __getitem__(self, key):
        array, key = self._array, _bare(key)
        parts = key if isinstance(key, tuple) else (key,)
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in parts):
            _not_captured()  # how many elements a mask selects, the CPU has to know
        if isinstance(array[key], np.generic):  # CuPy gives a view here, too
            key = (*parts, ...)
        return _made(lambda: array[key], (self,))

    def __setitem__(self, key, value):
        array, key, value = self._array, _bare(key), _bare(value)
        _act(lambda: array.__setitem__(key, value))

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

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
        function, bare = getattr(self._array, name), [_bare(arg) for arg in args]
        return _made(lambda: function(*bare, **kwargs), (self,))

    return method


def _operator(function):
    def method(self, *others):
        if not all(isinstance(other, (DeviceArray, *NUMBERS)) for other in others):
            return _bare(others) and NotImplemented
        bare = [_bare(each) for each in (self, *others)]
        return _made(lambda: function(*bare), ())

    return method


def _reflected(function):
    return _operator(lambda a, b: function(b, a))


def _in_place(function):
    def method(self, other):
        array, other = self._array, _bare(other)
        _act(lambda: function(array, other))
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
        bare = [_bare(arg) for arg in args]
        options = {key: _bare(value) for key, value in kwargs.items()}
        if "out" in kwargs:
            _act(lambda: function(*bare, **options))
            return kwargs["out"]
        return _made(lambda: function(*bare, **options), args)

    return call


def _asarray(array, dtype=None):
    if isinstance(array, DeviceArray):
        return array if dtype in (None, array.dtype) else array.astype(dtype)
    _not_captured()
    return _device_array(np.array(array, dtype))


def _scatter_add(array, key, values):
    array, key, values = array._array, _bare(key), _bare(values)
    _act(lambda: np.add.at(array, key, values))


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
        what = _source_of(self._code), self._name, self._dtype
        _act(lambda: run.launch(*what, grid, block, bare, shared_mem, self._code))


@functools.cache
def _source_of(code):
    """The name of a source in kernels/cuda, for messages."""
    paths = runtime.SOURCES.glob("*.cu")
    return next((p.stem for p in paths if p.read_text(encoding="utf-8") == code), "unknown")


class Stream:
    """As CuPy's. There is one stream of work, whichever is current."""

    ptr = STREAM

    def __init__(self, *, non_blocking: bool = False):
        self._may_capture = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def begin_capture(self, mode):
        global _captured
        assert self._may_capture and _captured is None and mode == RELAXED
        _captured = _Calls()

    def end_capture(self):
        global _captured
        captured, _captured = _captured, None
        for array in captured.made:
            array._array[...] = run.garbage(array.shape, array.dtype)
        return Graph(captured)

    def synchronize(self):
        _not_captured()


class Graph:
    """As CuPy's. Its arrays keep their places: cuBLAS is given addresses."""

    def __init__(self, captured):
        self._captured = captured

    def launch(self):
        for call in self._captured.calls:
            call()


class MemoryPool:
    """As CuPy's, but it holds nothing: the arrays have NumPy's memory."""

    def malloc(self, size):
        raise NotImplementedError

    def free_all_blocks(self):
        _not_captured()

    def used_bytes(self):
        return 0

    def total_bytes(self):
        return 0


def _cuda():
    stream, pool = Stream(), MemoryPool()
    return pool, types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(compute_capability="90"), MemoryPool=MemoryPool,
        Stream=Stream, get_current_stream=lambda: stream,
        device=types.SimpleNamespace(get_cublas_handle=lambda: HANDLE),
        runtime=types.SimpleNamespace(streamCaptureModeRelaxed=RELAXED),
        nvrtc=types.SimpleNamespace(getVersion=lambda: (12, 9)),
        using_allocator=lambda allocator: contextlib.nullcontext(),
    )  # fmt: skip


def _modules():
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.ndarray = DeviceArray
    cupy.is_available = lambda: True
    pool, cupy.cuda = _cuda()
    cupy.get_default_memory_pool = lambda: pool
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
    runtime.multiplies_by_groups.cache_clear()


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
            mock.patch.object(cublas, "_library", mock.Mock(return_value=Cublas(_act))),
        ):
            yield
    finally:
        _forget_kernels()
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
