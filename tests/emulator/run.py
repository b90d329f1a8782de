"""One launch on the CPU: every array between guard pages, every order of threads alike."""

import contextlib
import ctypes
import dataclasses
import mmap
from unittest import mock

import numpy as np

from kernels.cuda import runtime
from tests.emulator import compiler

# (order of blocks and threads, whether arrays end or begin at a page that must not be touched; what
# begins there keeps its place between two packs)
RUNS = ((0, True), (1, False), (2, True))
PACK = 16  # bytes that a thread moves at once, from and to multiples of it
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024


class EmulationError(AssertionError):
    """A kernel, or the launch of one, is wrong."""


class GuardedCopy:
    """A copy of an array, right before or after a page that faults when touched.

    What begins after a page lies as far behind a multiple of 16 bytes as the array does.
    """

    def __init__(self, library, array, at_end):
        self.library, self.array = library, array
        behind = array.ctypes.data % PACK
        self.size = max(1, -(-(array.nbytes + behind) // mmap.PAGESIZE)) * mmap.PAGESIZE
        self.start = library.map(self.size)
        pages = (ctypes.c_uint8 * self.size).from_address(self.start)
        self.pages = np.frombuffer(pages, np.uint8)
        self.pages[:] = 0xA5
        self.offset = self.size - array.nbytes if at_end else behind
        self.address = self.start + self.offset
        self.bytes = self.pages[self.offset : self.offset + array.nbytes]
        self.bytes[:] = array.reshape(-1).view(np.uint8)

    def result(self) -> np.ndarray:
        return self.bytes.view(self.array.dtype).reshape(self.array.shape).copy()

    def slack_is_intact(self) -> bool:
        rest = self.pages[: self.offset], self.pages[self.offset + self.array.nbytes :]
        return all((part == 0xA5).all() for part in rest)

    def holds(self, address) -> bool:
        """Whether an address lies in these pages or the two that guard them."""
        return -mmap.PAGESIZE <= address - self.start < self.size + mmap.PAGESIZE

    def close(self):
        self.bytes = self.pages = None
        self.library.unmap(self.start, self.size)


def launch(source, kernel, dtype, grid, block, args, shared=0, text=None):
    """As `runtime.launch`, of <source>.cu or of another text of it, on NumPy arrays."""
    grid, block = runtime.three(grid), runtime.three(block)
    if 0 in grid:
        return
    library = compiler.library(text or compiler.read_source(source), np.dtype(dtype).char)
    name = f"kernel {kernel} of {source}.cu"
    if kernel not in library.parameters:
        raise EmulationError(f"{name} does not exist")
    parameters = library.parameters[kernel]
    values = [
        arg if isinstance(arg, (np.ndarray, runtime.Table)) else runtime.arguments(dtype, (arg,))[0]
        for arg in args
    ]
    _check_sizes(name, grid, block, shared, "_group_" in kernel)
    _check_arguments(name, parameters, values, np.dtype(dtype))
    held = _held(parameters, values)
    outcomes = [
        _run(library, name, kernel, (*grid, *block), shared, run, values, held) for run in RUNS
    ]
    for (parameter, array), *results in zip(held, *outcomes, strict=True):
        if len({result.tobytes() for result in results}) > 1:
            raise EmulationError(
                f"{name}: what it leaves in `{parameter.name}` depends on the order of its threads"
            )
        array[...] = results[0]


def is_struct(value) -> bool:
    """Whether a value is what a kernel takes by value, though it is an array of NumPy's."""
    return isinstance(value, np.ndarray) and value.dtype.names is not None


def _held(parameters, values):
    """[parameter, array] of all arrays that a kernel gets, those of tables included."""
    held = []
    for parameter, value in zip(parameters, values, strict=True):
        if isinstance(value, runtime.Table):
            written = dataclasses.replace(parameter, is_const=False)
            held += [(written, array) for row in value.rows for array in row if array is not None]
        elif isinstance(value, np.ndarray) and not is_struct(value):
            held.append((parameter, value))
    return held


def _check_sizes(name, grid, block, shared, on_hopper):
    for what, sizes, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if any(not 1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
            raise EmulationError(f"{name}: no GPU runs a {what} of {sizes}")
    if int(np.prod(block)) > MAX_THREADS:
        raise EmulationError(f"{name}: a block of {block} has more than {MAX_THREADS} threads")
    limit = compiler.HOPPER_SHARED_BYTES if on_hopper else compiler.SHARED_BYTES
    if not 0 <= shared <= limit:
        raise EmulationError(f"{name}: {shared} bytes of shared memory are too many")


def _check_arguments(name, parameters, values, real):
    if len(values) != len(parameters):
        raise EmulationError(f"{name} takes {len(parameters)} arguments, got {len(values)}")
    for parameter, value in zip(parameters, values, strict=True):
        is_table = isinstance(value, runtime.Table) or is_struct(value)
        if is_table != (parameter.type == compiler.TABLE):
            raise EmulationError(f"{name}: `{parameter.name}` is no place for {value!r}")
        if not is_table:
            _check_argument(name, parameter, value)
    held = _held(parameters, values)
    for parameter, array in held:
        if parameter.type == compiler.TABLE and array.dtype != real:
            raise EmulationError(f"{name}: `{parameter.name}` must be {real}, got {array.dtype}")
        if not array.flags.c_contiguous:
            raise EmulationError(f"{name}: `{parameter.name}` is not C-contiguous")
    arrays = [array for _, array in held]
    for i, one in enumerate(arrays):
        for other in arrays[:i]:
            if _place(one) != _place(other) and np.may_share_memory(one, other):
                raise EmulationError(f"{name}: two of its arrays overlap")


def _check_argument(name, parameter, value):
    is_array = isinstance(value, np.ndarray)
    expected = parameter.type if is_array or not parameter.is_pointer else np.dtype(np.uint64)
    if is_array != parameter.is_pointer and not _is_null(parameter, value):
        kind = "an array" if parameter.is_pointer else "a number"
        raise EmulationError(f"{name}: `{parameter.name}` must be {kind}, got {value!r}")
    if value.dtype != expected:
        raise EmulationError(f"{name}: `{parameter.name}` must be {expected}, got {value.dtype}")


def _is_null(parameter, value):
    return parameter.is_pointer and isinstance(value, np.generic) and value == 0


def _place(array):
    return array.ctypes.data, array.nbytes


def _run(library, name, kernel, sizes, shared, run, values, held):
    """What the kernel leaves in each array, in one order of its threads."""
    seed, at_end = run
    copies = {}  # by place: an array given twice is one array
    for _, array in held:
        if _place(array) not in copies:
            copies[_place(array)] = GuardedCopy(library, array, at_end)
    mine = [(parameter, copies[_place(array)]) for parameter, array in held]
    numbers = [_number(value, lambda array: copies[_place(array)].address) for value in values]
    buffers = [(ctypes.c_uint8 * n.nbytes).from_buffer_copy(n.tobytes()) for n in numbers]
    try:
        message = library.run(kernel, sizes, shared, seed, buffers)
        if message:
            raise EmulationError(f"{name}: {message}{_fault(library, mine)}")
        for parameter, copy in mine:
            _check_copy(name, parameter, copy, mine)
        return [copy.result() for _, copy in mine]
    finally:
        for copy in copies.values():
            copy.close()


def _number(value, address):
    """What the kernel gets for a value, whose arrays lie where `address` says."""
    if isinstance(value, runtime.Table):
        return value.by_value(address)
    if isinstance(value, np.ndarray) and not is_struct(value):
        return np.uint64(address(value))
    return value


def _check_copy(name, parameter, copy, mine):
    if not copy.slack_is_intact():
        raise EmulationError(f"{name} writes outside of `{parameter.name}`")
    is_const = all(p.is_const for p, c in mine if c is copy)
    if is_const and copy.result().tobytes() != copy.array.tobytes():
        raise EmulationError(f"{name} changes `{parameter.name}`, which it takes as const")


def _fault(library, mine):
    """Which array a faulting access was meant for; empty where there was no fault."""
    address = library.fault_address()
    if address is None:
        return ""
    access = {0: "reads", 1: "writes"}.get(library.fault_writes(), "touches")
    for parameter, copy in mine:
        if copy.holds(address):
            element = (address - copy.address) // copy.array.itemsize
            return f" {access} `{parameter.name}[{element}]`, which has {copy.array.size} elements"
    return f" {access} memory at {address:#x}, which belongs to none of its arrays"


def garbage(shape, dtype):
    """An array whose every byte is 255: NaN, -1, True."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = 0xFF
    return array


@contextlib.contextmanager
def emulated(texts=None):
    """Within, kernels.cuda runs on NumPy arrays.

    texts: for some sources, by name, another text than that of kernels/cuda.
    """
    def launch_text(source, *args, **options):
        launch(source, *args, **options, text=(texts or {}).get(source))

    with mock.patch.multiple(
        runtime, launch=launch_text, array_module=lambda: np, empty=garbage, gemm=np.matmul,
        is_device_array=lambda array: isinstance(array, np.ndarray),
        multiplies_tf32=lambda: True,
        multiplies_by_groups=lambda: True,
    ):  # fmt: skip
        yield
