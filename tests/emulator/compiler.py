"""Sources of CUDA kernels, read and compiled for the CPU."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from kernels.cuda import runtime

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
HAS_COMPILER = COMPILER is not None and sys.platform == "linux"
NO_COMPILER = "needs Linux and g++, which compiles the CUDA kernels for the CPU"
# The type of a runtime.Table, whose size its kernel alone knows.
TABLE = np.dtype("V")
# What a block may have of dynamic shared memory on every GPU from sm_70 on, and on Hopper, which
# alone runs kernels named *_group_*.
SHARED_BYTES, HOPPER_SHARED_BYTES = 96 << 10, 227 << 10
FLAGS = (
    # Fortified longjmp takes a jump to another stack for an accident.
    "-U_FORTIFY_SOURCE",
    "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-gnu-unique", "-fno-strict-aliasing",
    "-fstack-clash-protection",
    "-fsanitize=bounds,signed-integer-overflow,integer-divide-by-zero,alignment",
    "-fsanitize-undefined-trap-on-error",
)  # fmt: skip
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
)
PARAMETER = re.compile(r"(const\s+)?([\w\s]+?)\s*(\*)?\s*(?:__restrict__\s+)?(\w+)")
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w\s]+?)\s+(\w+)\s*\[\s*\]")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: `type` is of what is pointed to, where it is a pointer."""

    name: str
    type: np.dtype
    is_pointer: bool
    is_const: bool


def read_source(source: str) -> str:
    """The text of kernels/cuda/<source>.cu."""
    return (runtime.SOURCES / f"{source}.cu").read_text(encoding="utf-8")


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def kernel_parameters(text: str, dtype) -> dict[str, tuple[Parameter, ...]]:
    """The kernels that a source defines, by name, with their parameters for `real` = dtype."""
    types = {
        "real": dtype, "float": np.float32, "double": np.float64, "wide": np.float64,
        "int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32,
        "long long": np.int64, "unsigned long long": np.uint64, "bool": np.bool_,
        "unsigned char": np.uint8, "SgdTable": TABLE, "AdamTable": TABLE,
    }  # fmt: skip
    kernels = {}
    text = strip_comments(text).replace("__grid_constant__ ", "")
    for name, parameters in KERNEL.findall(text):
        found = []
        for parameter in " ".join(parameters.split()).split(", "):
            match = PARAMETER.fullmatch(parameter)
            assert match, f"{name}: cannot read the parameter {parameter!r}"
            const, type_, star, label = match.groups()
            assert type_ in types, f"{name}: the emulator does not know the type {type_!r}"
            found.append(Parameter(label, np.dtype(types[type_]), bool(star), bool(const)))
        kernels[name] = tuple(found)
    return kernels


class Library:
    """A compiled source: `parameters` of its kernels, and functions as cuda.h describes them."""

    def __init__(self, text: str, dtype):
        self.parameters = kernel_parameters(text, np.dtype(dtype))
        self._library = ctypes.CDLL(_compile(text, np.dtype(dtype), tuple(self.parameters)))
        self.map = self._declare("emulator_map", ctypes.c_void_p, ctypes.c_size_t)
        self.unmap = self._declare("emulator_unmap", None, ctypes.c_void_p, ctypes.c_size_t)
        self.fault_address = self._declare("emulator_fault_address", ctypes.c_void_p)
        self.fault_writes = self._declare("emulator_fault_writes", ctypes.c_int)

    def _declare(self, name, result, *arguments):
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments
        return function

    def run(self, kernel: str, sizes, shared: int, seed: int, values) -> str:
        """Run a kernel on scalars and pointers (ctypes objects); its error, empty if none."""
        function = self._declare(
            f"emulate_{kernel}", ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint),
            ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p),
        )  # fmt: skip
        addresses = [ctypes.addressof(value) for value in values]
        message = function(
            (ctypes.c_uint * 6)(*sizes), shared, seed, (ctypes.c_void_p * len(values))(*addresses)
        )
        return message.decode()


@cache
def library(text: str, dtype_char: str) -> Library:
    """The compiled form of a source's text, from this process's or the disk's cache."""
    return Library(text, dtype_char)


def _compile(text, dtype, kernels) -> Path:
    """The shared library of a source; kept in the temporary directory under a hash of all."""
    unit = "\n".join([
        f'#include "{HERE / "cuda.h"}"', '#line 1 "kernel.cu"', text, _shared(text),
        *(f"EMULATE({name})" for name in kernels), "",
    ])  # fmt: skip
    command = (*FLAGS, *runtime.compiler_options(dtype))
    headers = [(HERE / name).read_text() for name in ("cuda.h", "tensor.h")]
    key = hashlib.sha256("\n".join([unit, *headers, *command]).encode())
    folder = Path(tempfile.gettempdir()) / f"minidl-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to someone else"
    path = folder / f"{key.hexdigest()[:32]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, built = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.so")
        source.write_text(unit)
        done = subprocess.run(
            [COMPILER, *command, "-o", built, source], capture_output=True, text=True
        )
        assert not done.returncode, f"g++ refuses the source:\n{done.stderr}"
        built.replace(path)
    return path


def _shared(text):
    found = DYNAMIC_SHARED.findall(strip_comments(text))
    assert len(found) <= 1, "one dynamic shared array a source: more would overlap"
    if not found:
        return "EMULATE_NO_DYNAMIC_SHARED"
    type_, name = found[0]
    size = HOPPER_SHARED_BYTES if "_group_" in text else SHARED_BYTES
    return f"EMULATE_DYNAMIC_SHARED({type_}, {name}, {size})"
