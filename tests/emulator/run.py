"""One launch on the CPU: every array between guard pages, every order of threads alike."""

import contextlib
import ctypes
import mmap
import types
from unittest import mock

import numpy as np

from kernels.cuda import runtime
from tests.emulator import compiler

# (order of blocks and threads, whether arrays end or begin at a page that must not be touched)
RUNS = ((0, True), (1, False), (2, True))
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024


class EmulationError(AssertionError):
    """A kernel, or the launch of one, is wrong."""


class GuardedCopy:
    """A copy of an array, right before or after a page that faults when touched."""

    def __init__(self, library, array, at_end):
        self.library, self.array = library, array
        self.size = max(1, -(-array.nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        self.start = library.map(self.size)
        pages = (ctypes.c_uint8 * self.size).from_address(self.start)
        self.pages = np.frombuffer(pages, np.uint8)
        self.pages[:] = 0xA5
        self.offset = self.size - array.nbytes if at_end else 0
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
    values = runtime.arguments(dtype, args)
    _check_sizes(name, grid, block, shared)
    _check_arguments(name, parameters, values)
    outcomes = [
        _run(library, name, kernel, (*grid, *block), shared, run, parameters, values)
        for run in RUNS
    ]
    for position, array in enumerate(outcomes[0]):
        for outcome in outcomes[1:]:
            if array is not None and array.tobytes() != outcome[position].tobytes():
                raise EmulationError(
                    f"{name}: what it leaves in `{parameters[position].name}` depends on the "
                    "order of its threads"
                )
    for value, array in zip(values, outcomes[0], strict=True):
        if array is not None:
            value[...] = array


def _check_sizes(name, grid, block, shared):
    for what, sizes, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if any(not 1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
            raise EmulationError(f"{name}: no GPU runs a {what} of {sizes}")
    if int(np.prod(block)) > MAX_THREADS:
        raise EmulationError(f"{name}: a block of {block} has more than {MAX_THREADS} threads")
    if not 0 <= shared <= compiler.SHARED_BYTES:
        raise EmulationError(f"{name}: {shared} bytes of shared memory are too many")


def _check_arguments(name, parameters, values):
    if len(values) != len(parameters):
        raise EmulationError(f"{name} takes {len(parameters)} arguments, got {len(values)}")
    for parameter, value in zip(parameters, values, strict=True):
        is_array = isinstance(value, np.ndarray)
        expected = parameter.type if is_array or not parameter.is_pointer else np.dtype(np.uint64)
        if is_array != parameter.is_pointer and not _is_null(parameter, value):
            kind = "an array" if parameter.is_pointer else "a number"
            raise EmulationError(f"{name}: `{parameter.name}` must be {kind}, got {value!r}")
        if value.dtype != expected:
            raise EmulationError(
                f"{name}: `{parameter.name}` must be {expected}, got {value.dtype}"
            )
        if is_array and not value.flags.c_contiguous:
            raise EmulationError(f"{name}: `{parameter.name}` is not C-contiguous")
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    for i, one in enumerate(arrays):
        for other in arrays[:i]:
            if _place(one) != _place(other) and np.may_share_memory(one, other):
                raise EmulationError(f"{name}: two of its arrays overlap")


def _is_null(parameter, value):
    return parameter.is_pointer and isinstance(value, np.generic) and value == 0


def _place(array):
    return array.ctypes.data, array.nbytes


def _run(library, name, kernel, sizes, shared, run, parameters, values):
    """What the kernel leaves in each array (None for numbers), in one order of its threads."""
    seed, at_end = run
    copies = {}  # by place: an array given twice is one array
    for value in values:
        if isinstance(value, np.ndarray) and _place(value) not in copies:
            copies[_place(value)] = GuardedCopy(library, value, at_end)
    mine = [copies[_place(v)] if isinstance(v, np.ndarray) else None for v in values]
    numbers = [
        np.uint64(copy.address) if copy else value
        for copy, value in zip(mine, values, strict=True)
    ]
    buffers = [(ctypes.c_uint8 * n.nbytes).from_buffer_copy(n.tobytes()) for n in numbers]
    try:
        message = library.run(kernel, sizes, shared, seed, buffers)
        if message:
            raise EmulationError(f"{name}: {message}{_fault(library, parameters, mine)}")
        for parameter, copy in zip(parameters, mine, strict=True):
            if copy is not None:
                _check_copy(name, parameter, copy, parameters, mine)
        return [None if copy is None else copy.result() for copy in mine]
    finally:
        for copy in copies.values():
            copy.close()


def _check_copy(name, parameter, copy, parameters, copies):
    if not copy.slack_is_intact():
        raise EmulationError(f"{name} writes outside of `{parameter.name}`")
    shared = [p for p, c in zip(parameters, copies, strict=True) if c is copy]
    is_const = all(p.is_const for p in shared)
    if is_const and copy.result().tobytes() != copy.array.tobytes():
        raise EmulationError(f"{name} changes `{parameter.name}`, which it takes as const")


def _fault(library, parameters, copies):
    """Which array a faulting access was meant for; empty where there was no fault."""
    address = library.fault_address()
    if address is None:
        return ""
    access = {0: "reads", 1: "writes"}.get(library.fault_writes(), "touches")
    for parameter, copy in zip(parameters, copies, strict=True):
        if copy is not None and copy.holds(address):
            element = (address - copy.address) // copy.array.itemsize
            return f" {access} `{parameter.name}[{element}]`, which has {copy.array.size} elements"
    return f" {access} memory at {address:#x}, which belongs to none of its arrays"


def _garbage(shape, dtype):
    """An array whose every byte is 255: NaN, -1, True."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = 0xFF
    return array


def _array_module():
    module = types.SimpleNamespace(**vars(np))
    module.empty = _garbage
    return module


@contextlib.contextmanager
def emulated(texts=None):
    """Within, kernels.cuda runs on NumPy arrays.

    texts: for some sources, by name, another text than that of kernels/cuda.
    """
    module = _array_module()

    def launch_text(source, *args, **options):
        launch(source, *args, **options, text=(texts or {}).get(source))

    with mock.patch.multiple(
        runtime, launch=launch_text, array_module=lambda: module,
        is_device_array=lambda array: isinstance(array, np.ndarray),
        multiplies_tf32=lambda: True,
    ):  # fmt: skip
        yield
