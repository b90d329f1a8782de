"""The IDX file format of MNIST: a magic number, the sizes, then the values in big-endian order."""

import gzip
import math
from pathlib import Path

import numpy as np

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path) -> np.ndarray:
    """The array in an IDX file, gzipped or not, in native byte order.

    The header is two zero bytes, a type code, the number of axes, and a 32-bit size an axis (LeCun,
    Cortes and Burges, "The MNIST database"). Raises ValueError naming the file where its magic
    number, sizes or length are wrong, OSError where it cannot be read.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: the gzip data is damaged or truncated: {error}") from error
        except Exception as error:  # zlib.error derives from Exception itself
            raise ValueError(f"{path}: the gzip data is damaged: {error}") from error
    return _parse(raw, path)


def _parse(raw, path):
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or not raw[3]:
        raise ValueError(f"{path}: not an IDX file, its magic number is 0x{raw[:4].hex()}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path}: truncated in the header, {len(raw)} of {start} bytes")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    dtype = np.dtype(_TYPES[raw[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        problem = "truncated" if len(raw) < expected else "followed by other data"
        raise ValueError(
            f"{path}: {problem}, {len(raw)} bytes where shape {shape} needs {expected}"
        )
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
