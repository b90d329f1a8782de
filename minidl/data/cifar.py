"""CIFAR-10 and CIFAR-100 in their two published forms: Python pickles and binary records."""

from pathlib import Path

import numpy as np

from minidl.data.dataset import ArrayDataset
from minidl.unpickle import RestrictedUnpickler

_PIXELS = 3 * 32 * 32
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


class _Form:
    """Where one published form of a set keeps what."""

    def __init__(self, folder, train, test, names, read):
        self.folder = folder
        self.train = train
        self.test = test
        self.names = names  # file of class names, by kind of label
        self.read = read


def cifar10(directory) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of CIFAR-10, uint8 (N, 3, 32, 32) in memory, from either published form.

    `directory` holds ``data_batch_1`` ... ``test_batch`` and ``batches.meta``, or the ``.bin``
    files and ``batches.meta.txt``; or it holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``,
    which do. Raises FileNotFoundError listing what is missing, ValueError naming a damaged file.
    (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.)
    """
    return _load(directory, "CIFAR-10", _CIFAR10, "fine", 10)


def cifar100(directory, labels: str = "fine") -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) of CIFAR-100 by its 100 "fine" or 20 "coarse" classes; else like `cifar10`.

    `directory` holds ``train``, ``test`` and ``meta``, or ``train.bin``, ``test.bin`` and the
    ``*_label_names.txt``; or it holds ``cifar-100-python`` or ``cifar-100-binary``, which do.
    """
    if labels not in ("fine", "coarse"):
        raise ValueError(f"labels must be 'fine' or 'coarse', got {labels!r}")
    return _load(directory, "CIFAR-100", _CIFAR100, labels, 100 if labels == "fine" else 20)


def has_cifar10(directory) -> bool:
    """True where `cifar10` finds images, complete or not."""
    return _locate(Path(directory), _CIFAR10) is not None


def has_cifar100(directory) -> bool:
    """True where `cifar100` finds images, complete or not."""
    return _locate(Path(directory), _CIFAR100) is not None


def _locate(directory, forms):
    """(folder, form) of the first form of which there is a file of images, or None."""
    for form in forms:
        for folder in (directory, directory / form.folder):
            if any((folder / name).is_file() for name in (*form.train, *form.test)):
                return folder, form
    return None


def _load(directory, title, forms, kind, classes):
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    located = _locate(directory, forms)
    if located is None:
        wanted = " or ".join(f"{form.train[0]} ({form.folder})" for form in forms)
        raise FileNotFoundError(f"{directory}: no {title} here, looked for {wanted}")
    folder, form = located
    needed = (*form.train, *form.test, form.names[kind])
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: missing {', '.join(missing)}")
    names = _read_names(folder / form.names[kind], kind, classes)
    return tuple(
        _concatenate([form.read(folder / name, kind, classes) for name in files], names)
        for files in (form.train, form.test)
    )


def _concatenate(parts, names):
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    return ArrayDataset(images, labels, num_classes=len(names), class_names=names)


def _checked(path, pixels, labels, classes):
    if len(labels) != len(pixels):
        raise ValueError(f"{path}: {len(labels)} labels for {len(pixels)} images")
    if not len(labels):
        raise ValueError(f"{path}: holds no images")
    if not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"{path}: labels must lie in [0, {classes}), got {labels.min()} to {labels.max()}"
        )
    return pixels, labels


def _read_names(path, kind, classes):
    if path.suffix == ".txt":
        names = path.read_text(encoding="utf-8", errors="replace").split()
    else:
        stored = _unpickle(path)
        names = stored.get("label_names", stored.get(f"{kind}_label_names"))
    if not isinstance(names, list) or len(names) != classes:
        count = len(names) if isinstance(names, list) else "none"
        raise ValueError(f"{path}: expected {classes} class names, got {count}")
    return [_text(name) for name in names]


# -- binary records --------------------------------------------------------------------------------


def _read_binary10(path, kind, classes):
    return _read_records(path, 1, 0, classes)


def _read_binary100(path, kind, classes):
    return _read_records(path, 2, 1 if kind == "fine" else 0, classes)


def _read_records(path, label_bytes, which, classes):
    raw = np.fromfile(path, np.uint8)
    width = label_bytes + _PIXELS
    if raw.size % width:
        raise ValueError(
            f"{path}: truncated or not CIFAR, {raw.size} bytes are no multiple of {width}"
        )
    records = raw.reshape(-1, width)
    labels = records[:, which].astype(np.int64)
    return _checked(path, records[:, label_bytes:], labels, classes)


# -- pickles ---------------------------------------------------------------------------------------


class _PickledDtype:
    """Stands in for numpy.dtype: bytes are the only elements there should be."""

    def __init__(self, code, *options):
        if _text(code) != "u1":
            raise ValueError(f"arrays of {code!r} where uint8 was expected")

    def __setstate__(self, state):
        pass  # byte order and the like, which single bytes do not have


class _PickledArray:
    """Stands in for numpy.ndarray, whose own way to restore a state trusts it.

    The state is (version, shape, dtype, whether in Fortran order, the bytes), and the bytes are a
    latin-1 string where Python 2 wrote them.
    """

    def __init__(self, *prototype):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _PickledDtype):
            raise ValueError("an array without a dtype")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        order = "F" if fortran else "C"
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _encode(text, encoding):
    """What Python 3 calls in pickles of protocol 2 to write bytes: _codecs.encode."""
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


def _text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _unpickle(path) -> dict:
    """The dictionary pickled in a file, its keys as str."""
    with open(path, "rb") as file:
        try:
            stored = RestrictedUnpickler(file, _ALLOWED, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise ValueError(f"{path}: not a readable CIFAR pickle: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: expected a pickled dictionary, got {type(stored).__name__}")
    return {_text(key): value for key, value in stored.items()}


def _read_pickle10(path, kind, classes):
    return _read_pickle(path, "labels", classes)


def _read_pickle100(path, kind, classes):
    return _read_pickle(path, f"{kind}_labels", classes)


def _read_pickle(path, key, classes):
    stored = _unpickle(path)
    missing = [name for name in ("data", key) if name not in stored]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}, has {', '.join(stored)}")
    pixels = stored["data"].value if isinstance(stored["data"], _PickledArray) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        found = type(stored["data"]).__name__ if pixels is None else pixels.shape
        raise ValueError(f"{path}: data must be uint8 (N, {_PIXELS}), got {found}")
    labels = stored[key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{path}: {key} must be a list of integers")
    if labels and not -(2**63) <= min(labels) <= max(labels) < 2**63:
        raise ValueError(f"{path}: {key} must lie in [0, {classes})")
    return _checked(path, pixels, np.asarray(labels, np.int64), classes)


_CIFAR10 = (
    _Form("cifar-10-batches-py", _BATCHES, ["test_batch"],
          {"fine": "batches.meta"}, _read_pickle10),
    _Form("cifar-10-batches-bin", [f"{name}.bin" for name in _BATCHES], ["test_batch.bin"],
          {"fine": "batches.meta.txt"}, _read_binary10),
)  # fmt: skip
_CIFAR100 = (
    _Form("cifar-100-python", ["train"], ["test"],
          {"fine": "meta", "coarse": "meta"}, _read_pickle100),
    _Form("cifar-100-binary", ["train.bin"], ["test.bin"],
          {"fine": "fine_label_names.txt", "coarse": "coarse_label_names.txt"}, _read_binary100),
)  # fmt: skip
