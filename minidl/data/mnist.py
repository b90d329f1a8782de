"""MNIST: the 5,000 digits in the package, and the full set (or its relatives) from a directory."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from minidl.data.dataset import ArrayDataset, split_one_in_five
from minidl.data.idx import read_idx

_STEMS = {
    "train images": "train-images",
    "train labels": "train-labels",
    "test images": "t10k-images",
    "test labels": "t10k-labels",
}


def bundled_digits() -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test): 4,000 and 1,000 real MNIST digits, 28x28, stratified by class.

    The split is fixed: it depends on no seed of the user's. Origin: LeCun, Cortes and Burges, "The
    MNIST database of handwritten digits".
    """
    folder = files("minidl.data") / "digits"
    with as_file(folder / "mnist-5000-images-idx3-ubyte.gz") as path:
        images = read_idx(path)
    with as_file(folder / "mnist-5000-labels-idx1-ubyte.gz") as path:
        labels = read_idx(path)
    return split_one_in_five(ArrayDataset(images, labels, num_classes=10))


def mnist(directory) -> tuple[ArrayDataset, ArrayDataset]:
    """(train, test) from the four IDX files of MNIST, Fashion-MNIST and the like in `directory`.

    Each may be gzipped or not, and named in either spelling (train-images-idx3-ubyte,
    train-images.idx3-ubyte). Raises FileNotFoundError listing what is missing, ValueError for
    damaged files or counts that do not agree.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    found = {what: _find(directory, stem) for what, stem in _STEMS.items()}
    missing = [f"{_STEMS[what]}-idx*-ubyte" for what, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{directory}: missing {', '.join(missing)} (.gz or not)")
    splits = [_load(found[f"{split} images"], found[f"{split} labels"])
              for split in ("train", "test")]  # fmt: skip
    classes = max(split.num_classes for split in splits)
    return tuple(ArrayDataset(s.images, s.labels, num_classes=classes) for s in splits)


def has_mnist(directory) -> bool:
    """True where `mnist` finds files of its, complete or not."""
    return any(_find(Path(directory), stem) is not None for stem in _STEMS.values())


def _find(directory, stem):
    axes = 3 if stem.endswith("images") else 1
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = directory / f"{stem}{separator}idx{axes}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _load(images_path, labels_path):
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{images_path}: expected uint8 images (N, H, W), got {images.dtype} {images.shape}"
        )
    if labels.ndim != 1 or labels.dtype != np.uint8:
        raise ValueError(
            f"{labels_path}: expected uint8 labels (N,), got {labels.dtype} {labels.shape}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}"
        )
    return ArrayDataset(images, labels)
