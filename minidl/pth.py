"""The archives that ``torch.save`` writes (.pth, .pt), read without PyTorch and without trust.

Such an archive is a zip whose records are stored uncompressed: ``<name>/data.pkl`` is a pickle that
describes tensors (storage, offset, size, stride), ``<name>/data/<key>`` holds a storage's elements
and ``<name>/byteorder`` their byte order. The pickle may name the few globals in `_GLOBALS`; what
it builds with them are descriptions alone, which become arrays after they have been checked.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from minidl.unpickle import ForbiddenGlobal, RestrictedUnpickler

# Room for some 7000 tensors. What a pickle builds takes up to 220 times its size (empty sets).
_MAX_PICKLE_BYTES = 1 << 20
_MAX_DIMENSIONS = 64  # NumPy's and PyTorch's
# A legacy file begins with the pickle of this integer.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_SAVE_AGAIN = "with PyTorch, save the state dict alone: torch.save(model.state_dict(), path)"
# What a damaged or hostile pickle can make an unpickler raise.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError,
    TypeError, ValueError,
)  # fmt: skip
# What zipfile raises for a damaged file; OSError is a seek to nowhere.
_ZIP_ERRORS = (
    zipfile.BadZipFile, struct.error, EOFError, NotImplementedError, OSError, OverflowError,
    RuntimeError, UnicodeDecodeError,
)  # fmt: skip


class ArchiveError(ValueError):
    """A file is no archive of a state dict, is damaged, or asks for what no state dict needs."""


def read_archive(path) -> dict[str, np.ndarray]:
    """The state dict in the archive at `path`: name -> array, in the file's order.

    Arrays are read-only, have the strides they were saved with, and share memory where the
    tensors shared a storage. bfloat16, which NumPy lacks, is widened to float32; float16, float32,
    float64, bool and the integers stay what they are. A state dict may lie in a checkpoint's
    "state_dict" or "model" entry; DataParallel's "module." is taken off its names.

    Memory stays within a few times the file's size, plus 230 MB for the worst pickle taken.
    Raises ArchiveError for whatever is not a whole, honest archive of tensors.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if _LEGACY_MAGIC in head:
        raise ArchiveError(
            "a file in the format of PyTorch before 1.6; convert it once, with PyTorch: "
            "torch.save(torch.load(path, map_location='cpu'), path)"
        )
    if not head.startswith(b"PK\3\4"):
        raise ArchiveError("neither a safetensors file nor an archive of torch.save")
    try:
        with zipfile.ZipFile(path) as archive:
            records = _Records(archive, os.path.getsize(path))
            state = _find_state(_unpickle(records.read("data.pkl", _MAX_PICKLE_BYTES)))
            storages = _Storages(records)
            return {name: _materialise(name, tensor, storages) for name, tensor in state.items()}
    except _ZIP_ERRORS as error:
        raise ArchiveError(f"a damaged or truncated archive: {error}") from error


class _Records:
    """The records of an archive by their names without the archive's own, checked as a whole."""

    def __init__(self, archive, file_size):
        self._archive = archive
        entries = archive.infolist()
        roots = [e.filename[: -len("data.pkl")] for e in entries if _is_description(e.filename)]
        if len(roots) != 1:
            raise ArchiveError(f"a zip archive, but not one of torch.save; {_SAVE_AGAIN}")
        root = roots[0]
        self._entries = {e.filename.removeprefix(root): e for e in entries}
        if "constants.pkl" in self._entries:
            raise ArchiveError(f"a TorchScript archive (torch.jit.save); {_SAVE_AGAIN}")
        if len(self._entries) != len(entries):
            raise ArchiveError("a damaged archive: two records of one name")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ArchiveError(f"record {entry.filename} is compressed: not by torch.save")
        if sum(entry.file_size for entry in entries) > file_size:
            raise ArchiveError("a damaged archive: its records claim more bytes than it has")

    def __contains__(self, name):
        return name in self._entries

    def size(self, name) -> int:
        if name not in self._entries:
            raise ArchiveError(f"a damaged archive: no record {name}")
        return self._entries[name].file_size

    def read(self, name, limit) -> bytes:
        """The content of a record of at most `limit` bytes; zipfile checks its CRC."""
        if self.size(name) > limit:
            size = self.size(name)
            raise ArchiveError(f"record {name} has {size} bytes, at most {limit} expected")
        return self._archive.read(self._entries[name])


def _is_description(filename):
    root, _, name = filename.partition("/")
    return bool(root) and name == "data.pkl"


# -- the pickle ----------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A torch storage class: what its elements are in the file."""

    name: str
    dtype: str


class _Storage(NamedTuple):
    kind: _Kind
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A strided window on a storage; `offset` and `stride` count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _StateDict(dict):
    """An OrderedDict of the file. Its attributes (`_metadata`, module versions) are dropped."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


def _ordered_dict():
    return _StateDict()


def _is_counts(value):
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None):
    counts = _is_counts((offset,)) and _is_counts(size) and _is_counts(stride)
    fits = counts and len(size) == len(stride) <= _MAX_DIMENSIONS
    if not isinstance(storage, _Storage) or not fits:
        raise ArchiveError("a tensor without a proper storage, offset, size and stride")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data, requires_grad, hooks):
    if not isinstance(data, _Tensor):
        raise ArchiveError("a Parameter that holds no tensor")
    return data


def _device(kind, index=None):
    return kind


_KINDS = {
    "HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8", "BFloat16Storage": "bfloat16",
    "CharStorage": "i1", "ShortStorage": "i2", "IntStorage": "i4", "LongStorage": "i8",
    "ByteStorage": "u1", "BoolStorage": "bool",
}  # fmt: skip
_DTYPES = (
    "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool",
)  # fmt: skip
# Devices and dtypes only stand among a checkpoint's settings: their names are enough.
_GLOBALS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): tuple,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _Kind(name, dtype) for name, dtype in _KINDS.items()},
    **{("torch", name): f"torch.{name}" for name in _DTYPES},
}


class _ArchiveUnpickler(RestrictedUnpickler):
    def persistent_load(self, reference):
        match reference:
            case ("storage", _Kind() as kind, str(key), str(), int(numel)) if numel >= 0:
                return _Storage(kind, key, numel)
        raise ArchiveError("a reference to something else than a storage of a known type")


def _unpickle(data):
    try:
        _check_program(data)
        return _ArchiveUnpickler(io.BytesIO(data), _GLOBALS).load()
    except ForbiddenGlobal as error:
        raise ArchiveError(f"{error}; {_SAVE_AGAIN}") from error
    except ArchiveError:
        raise
    except _UNPICKLING_ERRORS as error:
        raise ArchiveError(f"a damaged pickle: {error}") from error


_ATOMS = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_NAMES = {"GLOBAL", "STACK_GLOBAL"}
_OPCODES = {
    *_ATOMS, *_NAMES, "PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "ADDITEMS", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID",
}  # fmt: skip


def _check_program(data: bytes) -> None:
    """Follow a pickle's opcodes without running them; ValueError or LookupError for a hostile one.

    A list of allowed globals does not stop a pickle that needs none: a memo index of 2^31 takes
    gigabytes, hashing a tuple nested a million deep ends the process and one of ``t = (t, t)``
    never ends, and BUILD on a global rewrites that global. So here indices stay within the pickle's
    length, keys and set members are numbers, strings, bytes or None, and BUILD is for objects.
    """
    stack, marks, memo = [], [], {}  # the stack holds what made each value: atom, name or other
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else argument
            if index > len(data):
                raise ArchiveError(f"the pickle puts a value at {index}, beyond its own length")
            memo[index] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in _OPCODES:
            raise ArchiveError(f"the pickle uses {name}, for which torch.save has no use")
        elif name == "MARK":
            marks.append(len(stack))
        else:
            operands, items = _take(opcode, stack, marks)
            hashed = {
                "SETITEM": operands[1:2], "SETITEMS": items[::2], "ADDITEMS": items,
                "FROZENSET": items,
            }.get(name, ())  # fmt: skip
            if any(made != "atom" for made in hashed):
                raise ArchiveError("the pickle uses a key that is neither a string nor a number")
            if name == "BUILD" and operands[0] == "name":
                raise ArchiveError("the pickle changes a function or class")
            made = "atom" if name in _ATOMS else "name" if name in _NAMES else "other"
            stack.extend([made] * len(opcode.stack_after))


def _take(opcode, stack, marks):
    """Pop what an opcode takes: (operands below the mark or without one, items above it)."""
    before = opcode.stack_before
    items = []
    if pickletools.markobject in before:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        before = before[: before.index(pickletools.markobject)]
    start = len(stack) - len(before)
    if start < 0:
        raise ArchiveError("the pickle takes more values than it has made")
    operands = stack[start:]
    del stack[start:]
    return operands, items


# -- from descriptions to arrays -----------------------------------------------------------------


def _find_state(root):
    """The mapping of names to tensors in what the pickle held."""
    for _ in range(2):
        for key in ("state_dict", "model"):
            if isinstance(root, dict) and isinstance(root.get(key), dict):
                root = root[key]
                break
    if not isinstance(root, dict):
        raise ArchiveError(f"it holds a {_noun(root)}, not a state dict; {_SAVE_AGAIN}")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            noun = _noun(value)
            raise ArchiveError(f"entry {name!r} holds a {noun}, not a tensor; {_SAVE_AGAIN}")
    if all(name.startswith("module.") for name in root):
        return {name.removeprefix("module."): tensor for name, tensor in root.items()}
    return root


def _noun(value):
    return {_Tensor: "tensor", _StateDict: "dict"}.get(type(value), type(value).__name__)


class _Storages:
    """The storages of an archive as flat arrays, each read once."""

    def __init__(self, records):
        self._records = records
        self._arrays = {}
        order = records.read("byteorder", 16) if "byteorder" in records else b"little"
        if order not in (b"little", b"big"):
            raise ArchiveError(f"byteorder must be little or big, got {order!r}")
        self._order = "<" if order == b"little" else ">"

    def __getitem__(self, storage: _Storage) -> np.ndarray:
        known, array = self._arrays.get(storage.key, (storage, None))
        if known != storage:
            raise ArchiveError(f"storage {storage.key} is described in two ways")
        if array is None:
            array = self._read(storage)
            self._arrays[storage.key] = storage, array
        return array

    def _read(self, storage):
        kind = storage.kind.dtype
        dtype = np.dtype({"bfloat16": "u2", "bool": "u1"}.get(kind, kind)).newbyteorder(self._order)
        record = f"data/{storage.key}"
        nbytes = storage.numel * dtype.itemsize
        if self._records.size(record) != nbytes:
            raise ArchiveError(
                f"storage {storage.key} should have {nbytes} bytes ({storage.numel} elements), "
                f"its record has {self._records.size(record)}"
            )
        raw = np.frombuffer(self._records.read(record, nbytes), dtype)
        raw = raw.astype(dtype.newbyteorder("="), copy=False)
        if kind == "bfloat16":
            return widen_bfloat16(raw)
        return raw != 0 if kind == "bool" else raw


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 `bits` (uint16): a bfloat16 is a float32's upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _materialise(name, tensor: _Tensor, storages: _Storages) -> np.ndarray:
    flat = storages[tensor.storage]
    numel = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True))
    # An expanded tensor has more elements than its storage: a small file could ask for any memory.
    if numel > flat.size or (numel and last >= flat.size):
        raise ArchiveError(
            f"{name}: size {tensor.size}, stride {tensor.stride} and offset {tensor.offset} ask "
            f"for more than its storage of {flat.size} elements"
        )
    try:
        if numel == 0:
            array = np.zeros(tensor.size, flat.dtype)
        else:
            # A dimension of one element never steps; its stride in the file can be anything.
            steps = zip(tensor.size, tensor.stride, strict=True)
            strides = [0 if n == 1 else s * flat.itemsize for n, s in steps]
            array = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides)
    except (ValueError, OverflowError) as error:
        raise ArchiveError(f"{name}: no array has the size {tensor.size}: {error}") from error
    array.flags.writeable = False
    return array
