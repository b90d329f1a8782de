"""Image folders: a sub-folder of pictures for every class, decoded when they are asked for."""

import copy
import os
import warnings
from pathlib import Path

import numpy as np

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_NAMED = 3  # how many of the unreadable files the warning names


class UnreadableImage(ValueError):
    """A file cannot be decoded as an image."""


def read_image(path) -> np.ndarray:
    """The picture in a file as float32 (3, H, W) in [0, 1], of its own size and upright.

    The orientation that EXIF states is applied; grey and palette pictures become RGB, transparency
    is dropped. Raises UnreadableImage, a ValueError naming the file, for what Pillow cannot decode
    whole, OSError where the file cannot be read.
    """
    from PIL import Image, ImageOps

    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits of grey
                    grey = np.asarray(image, np.float32) / np.float32(65535)
                    return np.repeat(np.clip(grey, 0, 1)[None], 3, axis=0)
                if "transparency" in image.info:
                    image = image.convert("RGBA")  # else Pillow warns of some palettes
                pixels = np.asarray(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise UnreadableImage(f"{path}: not a readable image: {error}") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) * np.float32(1 / 255)


class ImageFolder:
    """The pictures in the sub-folders of `directory`, each sub-folder a class, sorted by name.

    Pictures may lie deeper inside a class's folder; hidden files and what has no name of an image
    (.png, .jpg, .jpeg, .bmp, .gif, .ppm, .pgm, .tif, .tiff, .webp) are left aside. An item is
    (float32 (3, H, W) in [0, 1], int), of the picture's own size: `image_shape` is
    (3, None, None), and a transform has to make the sizes equal.

    A file that cannot be decoded raises UnreadableImage, or with ``on_error="skip"`` is left out
    of its batch and listed in `skipped` (asked for alone, by index, it always raises). Raises
    FileNotFoundError where there is no such directory, ValueError where it has no classes or a
    class has no pictures.
    """

    image_shape = (3, None, None)

    def __init__(self, directory, on_error: str = "raise"):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory")
        self.on_error = on_error
        self.class_names = class_folders(self.directory)
        if not self.class_names:
            raise ValueError(f"{directory}: no sub-folders, expected one of pictures a class")
        self._files, labels = [], []  # paths as text: a million Path objects weigh too much
        for label, name in enumerate(self.class_names):
            folder = str(self.directory / name)
            found = [path[len(folder) - len(name) :] for path in _pictures(folder)]
            if not found:
                raise ValueError(f"{folder}: the folder of a class has no pictures")
            self._files += found
            labels += [label] * len(found)
        self.labels = np.asarray(labels, np.int64)
        self.skipped = []
        self._warned = 0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """The file of an item."""
        return self.directory / self._files[index]

    def __getitem__(self, index: int):
        return read_image(self.path(index)), int(self.labels[index])

    def batch(self, indices) -> tuple[list[np.ndarray], np.ndarray]:
        """(float32 images (3, H, W) of differing sizes in a list, int64 labels) of several items.

        With ``on_error="skip"`` there may be fewer than asked for, or none.
        """
        images, kept = [], []
        for index in indices:
            try:
                images.append(read_image(self.path(index)))
            except UnreadableImage:
                if self.on_error == "raise":
                    raise
                self.note_skipped([self.path(index)])
            else:
                kept.append(index)
        return images, self.labels[np.asarray(kept, np.intp)]

    def subset(self, indices) -> "ImageFolder":
        """The items at `indices` as a dataset of the same classes."""
        part = copy.copy(self)
        indices = np.asarray(indices, np.intp)
        part._files = [self._files[i] for i in indices]
        part.labels = self.labels[indices]
        part.skipped = []
        part._warned = 0
        return part

    def note_skipped(self, paths) -> None:
        """List files as unreadable that are not listed yet."""
        self.skipped += [path for path in paths if path not in self.skipped]

    def warn_skipped(self) -> None:
        """Warn, once, of the files skipped up to here; the loader calls it after every epoch."""
        if len(self.skipped) > self._warned:
            self._warned = len(self.skipped)
            names = ", ".join(map(str, self.skipped[:_NAMED]))
            more = ", ..." if len(self.skipped) > _NAMED else ""
            warnings.warn(
                f"{len(self.skipped)} unreadable images are left out: {names}{more}", stacklevel=2
            )


def class_folders(directory) -> list[str]:
    """The names of the sub-folders that are not hidden, sorted."""
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def has_pictures(directory) -> bool:
    """True where there is a picture in `directory` or deeper."""
    return next(_pictures(directory), None) is not None


def _pictures(directory):
    """The paths of the pictures below `directory`, in an order that depends on names alone."""
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield os.path.join(folder, name)
