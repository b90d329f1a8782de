"""Weights in public files: read state dicts, write them, and translate between names.

Networks here name their layers as the papers do; public weights carry the names of another code.
A mapping of name prefixes, {own: the file's}, leads from one to the other. Of the own prefixes that
fit a name on whole dotted parts the longest counts, and a name that none fits stays as it is: with
{"fc6": "classifier.1"}, "fc6.weight" becomes "classifier.1.weight" and "fc61.weight" stays.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from minidl.array_module import is_array, to_device
from minidl.files import atomic_path
from minidl.nn.module import Module
from minidl.pth import read_archive, widen_bfloat16
from minidl.tensor import Tensor

# By safetensors' own names; what NumPy and networks here have no use for is left out.
_SAFETENSORS_TYPES = {
    "F16", "F32", "F64", "BF16", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL",
}  # fmt: skip
_NUMPY_TYPES = {
    "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
}  # fmt: skip
_MAX_MESSAGE = 400


class WeightsError(ValueError):
    """A file holds no usable weights, or weights do not fit a module."""


# -- files ---------------------------------------------------------------------------------------


def read(path) -> dict[str, np.ndarray]:
    """The state dict in a file: name -> read-only array.

    The content, not the file's name, tells which kind it is: safetensors (of a minidl checkpoint,
    the model's arrays), or an archive of ``torch.save``, for which see
    `minidl.pth.read_archive`. dtypes stay as they are in the file, but bfloat16, which NumPy lacks,
    becomes float32 (exactly).

    Raises WeightsError naming the file where it is damaged or something else, FileNotFoundError
    where there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        # A safetensors file is the length of its header in 8 bytes, then JSON.
        state = _read_safetensors(path) if head[8:] == b"{" else read_archive(path)
    except (ValueError, MemoryError) as error:
        raise WeightsError(f"{path}: {_plain(error)}") from error
    for array in state.values():
        array.flags.writeable = False
    return state


def _read_safetensors(path):
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            kind = (file.metadata() or {}).get("format", "")
            prefix = "model/" if kind.startswith("minidl-checkpoint") else ""
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            types = {name: file.get_slice(name).get_dtype() for name in names}
            for name, dtype in types.items():
                if dtype not in _SAFETENSORS_TYPES:
                    raise WeightsError(f"{name} has the unsupported type {dtype}")
            # safetensors gives NumPy no bfloat16, but the bytes.
            halves = "BF16" in types.values()
            raw = dict(deserialize(path.read_bytes())) if halves else {}
            arrays = {
                name: _bfloat16(raw[name]) if dtype == "BF16" else file.get_tensor(name)
                for name, dtype in types.items()
            }
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"a damaged safetensors file: {error}") from error
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def _bfloat16(entry):
    bits = np.frombuffer(entry["data"], "<u2").astype(np.uint16)
    return widen_bfloat16(bits).reshape(entry["shape"])


def _plain(error):
    """An error's text without the control characters and the length that a file can put in it."""
    text = "".join(c if c.isprintable() else "?" for c in str(error))
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " ..."


def save(path, module_or_state) -> None:
    """Write a Module's state, or a mapping name -> array or Tensor, as safetensors, atomically.

    Arrays become contiguous and little-endian; tied ones are written under each of their names.
    TypeError for a name that is no string or a value that is not an array of numbers or bools,
    ValueError for the name "__metadata__", which the format reserves; OSError where writing fails:
    the old file stays.
    """
    from safetensors.numpy import save_file

    state = _as_state(module_or_state)
    if "__metadata__" in state:
        raise ValueError("safetensors files cannot hold an array named '__metadata__'")
    arrays = {n: np.asarray(a, a.dtype.newbyteorder("="), order="C") for n, a in state.items()}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {"format": "pt"})


def _as_state(module_or_state) -> dict[str, np.ndarray]:
    """The arrays of a Module or mapping, on the CPU; TypeError for other names and values."""
    if isinstance(module_or_state, Module):
        module_or_state = module_or_state.state_dict()
    if not isinstance(module_or_state, Mapping):
        kind = type(module_or_state).__name__
        raise TypeError(f"weights must be a Module or a mapping of arrays, got {kind}")
    state = {}
    for name, value in module_or_state.items():
        if not isinstance(name, str):
            raise TypeError(f"names of weights must be strings, got {name!r}")
        value = value._array if isinstance(value, Tensor) else value
        value = np.asarray(value) if isinstance(value, np.generic) else value
        if not is_array(value) or value.dtype.name not in _NUMPY_TYPES:
            what = getattr(value, "dtype", type(value).__name__)
            raise TypeError(f"{name} must be an array of numbers or a Tensor, got {what}")
        state[name] = to_device(value, "cpu")
    return state


# -- modules -------------------------------------------------------------------------------------


def load_into(module: Module, path_or_state, names=None, ignore: Iterable[str] = ()) -> None:
    """Fill `module` from a file that `read` reads, or from a mapping name -> array or Tensor.

    `names` maps prefixes of the module's names to the file's (see this module's docstring); None
    means the same names. `ignore` lists prefixes of the file, on whole dotted parts, that the
    module has no place for ("aux1" or "aux1."). Values are cast to the module's dtypes. Files from
    before batch-norm counted its batches lack "num_batches_tracked", which then stays as it is.

    Raises WeightsError that lists, in the file's names, every missing, extra and misfitting entry;
    then nothing has been changed.
    """
    if isinstance(ignore, str):
        raise TypeError(f"ignore must be a sequence of prefixes, got the string {ignore!r}")
    own = public_state(module, names)
    if isinstance(path_or_state, str | os.PathLike):
        source, state = f"{path_or_state}: ", read(path_or_state)
    else:
        source, state = "", _as_state(path_or_state)
    dropped = [prefix.removesuffix(".") for prefix in ignore]
    state = {n: a for n, a in state.items() if not any(_covers(p, n) for p in dropped)}
    problems = _differences(own, state)
    if problems:
        raise WeightsError(
            f"{source}weights do not fit {type(module).__name__}:\n  " + "\n  ".join(problems)
        )
    pairs = zip(module.state_dict(), own, strict=True)
    module.load_state_dict({n: state[p] for n, p in pairs if p in state}, strict=False)


def public_state(module: Module, names=None) -> dict[str, np.ndarray]:
    """The state of `module` under public names: `load_into` with the same `names` takes it back.

    The arrays are those of ``module.state_dict()``, in its order. TypeError if `names` maps no
    strings to strings, ValueError if it gives two entries one name.
    """
    names = {} if names is None else names
    parts = [*names, *names.values()] if isinstance(names, Mapping) else [None]
    if not all(isinstance(part, str) for part in parts):
        raise TypeError(f"names must map prefixes to prefixes, got {names!r}")
    own = module.state_dict()
    public = {}
    taken = {}
    for name, array in own.items():
        new = _translate(name, names)
        if new in public:
            raise ValueError(f"names gives {taken[new]} and {name} the one name {new}")
        public[new] = array
        taken[new] = name
    return public


def _differences(own, state):
    """What keeps `state` from filling `own`, a line each."""
    lines = []
    for name, array in own.items():
        if name not in state and not name.endswith("num_batches_tracked"):
            lines.append(f"missing  {name} {array.shape}")
    for name, array in state.items():
        if name not in own:
            lines.append(f"extra    {_plain(name)} {array.shape}")
        elif array.shape != own[name].shape:
            lines.append(f"shape    {name} is {array.shape}, expected {own[name].shape}")
        elif (array.dtype.kind == "f") != (own[name].dtype.kind == "f"):
            lines.append(f"dtype    {name} is {array.dtype}, expected {own[name].dtype}")
    return lines


def _translate(name, names: Mapping[str, str]):
    prefix = max((p for p in names if _covers(p, name)), key=len, default=None)
    if prefix is None:
        return name
    rest = name[len(prefix) :].removeprefix(".")
    return ".".join(part for part in (names[prefix], rest) if part)


def _covers(prefix, name):
    """Whether `prefix` is `name`'s beginning up to a dot, or all of it, or empty."""
    return prefix in ("", name) or name.startswith(prefix + ".")
