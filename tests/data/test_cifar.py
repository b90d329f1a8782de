"""CIFAR-10 and CIFAR-100 in both published forms, whole, damaged and hostile."""

import os
import pickle
import struct

import numpy as np
import pytest

from minidl import data

DRAW = np.random.default_rng(0)
NAMES10 = [f"kind{i}" for i in range(10)]
NAMES100 = [f"fine_{i}" for i in range(100)]
NAMES20 = [f"coarse_{i}" for i in range(20)]


def python2_pickle(value) -> bytes:
    """What Python 2 wrote for dicts, lists, ints, byte strings and uint8 arrays (protocol 2)."""

    def text(raw):
        return b"T" + struct.pack("<i", len(raw)) + raw

    def write(value):
        if isinstance(value, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(write, value)) + b"t"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, bytes):
            return text(value)
        dtype = b"cnumpy\ndtype\n" + write((b"u1", 0, 1)) + b"R("
        dtype += write(3) + text(b"|") + b"NNN" + write(-1) + write(-1) + write(0) + b"tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + write((0,))
        array += text(b"b") + b"tR(" + write(1) + write(value.shape) + dtype
        return array + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def python3_pickle(value):
    return pickle.dumps(value, 2)


def pixels(count):
    return DRAW.integers(0, 256, (count, 3072)).astype(np.uint8)


def write_cifar10(folder, form, dump=python2_pickle, count=4):
    """Write a small set; returns (images, labels) of train and test as they must be read."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images, labels = pixels(count), DRAW.integers(0, 10, count)
        parts.append((images, labels))
        if form == "python":
            content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"one"}
            (folder / name).write_bytes(dump(content))
        else:
            records = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
            records.tofile(folder / f"{name}.bin")
    if form == "python":
        meta = {b"label_names": [name.encode() for name in NAMES10], b"num_vis": 3072}
        (folder / "batches.meta").write_bytes(dump(meta))
    else:
        (folder / "batches.meta.txt").write_text("\n".join(NAMES10) + "\n\n")
    train = tuple(np.concatenate(kind) for kind in zip(*parts[:5], strict=True))
    return train, parts[5]


def write_cifar100(folder, form, dump=python2_pickle):
    """Like write_cifar10, with (images, fine labels, coarse labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, count in (("train", 10), ("test", 4)):
        images = pixels(count)
        fine, coarse = DRAW.integers(0, 100, count), DRAW.integers(0, 20, count)
        parts.append((images, fine, coarse))
        if form == "python":
            content = {b"data": images, b"fine_labels": fine.tolist(),
                       b"coarse_labels": coarse.tolist()}  # fmt: skip
            (folder / name).write_bytes(dump(content))
        else:
            labels = np.stack([coarse, fine], axis=1).astype(np.uint8)
            np.concatenate([labels, images], axis=1).tofile(folder / f"{name}.bin")
    if form == "python":
        meta = {b"fine_label_names": [name.encode() for name in NAMES100],
                b"coarse_label_names": [name.encode() for name in NAMES20]}  # fmt: skip
        (folder / "meta").write_bytes(dump(meta))
    else:
        (folder / "fine_label_names.txt").write_text("\n".join(NAMES100) + "\n")
        (folder / "coarse_label_names.txt").write_text("\n".join(NAMES20) + "\n")
    return parts


def assert_holds(dataset, images, labels, names):
    assert (dataset.images == images.reshape(-1, 3, 32, 32)).all()
    assert (dataset.labels == labels).all()
    assert dataset.class_names == names and dataset.num_classes == len(names)


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("form, folder", [
    ("python", ""), ("python", "cifar-10-batches-py"),
    ("binary", ""), ("binary", "cifar-10-batches-bin"),
])  # fmt: skip
def test_cifar10(tmp_path, form, folder, dump):
    parts = write_cifar10(tmp_path / folder, form, dump)
    for opened in (data.cifar10(tmp_path), data.open_dataset(tmp_path)):
        for dataset, (images, labels) in zip(opened, parts, strict=True):
            assert_holds(dataset, images, labels, NAMES10)


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("form, folder", [
    ("python", ""), ("python", "cifar-100-python"),
    ("binary", ""), ("binary", "cifar-100-binary"),
])  # fmt: skip
def test_cifar100(tmp_path, form, folder, dump):
    parts = write_cifar100(tmp_path / folder, form, dump)
    opened = zip(data.cifar100(tmp_path), data.cifar100(tmp_path, "coarse"),
                 data.open_dataset(tmp_path), parts, strict=True)  # fmt: skip
    for by_fine, by_coarse, found, (images, fine, coarse) in opened:
        assert_holds(by_fine, images, fine, NAMES100)
        assert_holds(by_coarse, images, coarse, NAMES20)
        assert_holds(found, images, fine, NAMES100)
    with pytest.raises(ValueError, match="labels must be"):
        data.cifar100(tmp_path, "medium")


def test_python2_strings_and_arrays_in_fortran_order(tmp_path):
    write_cifar10(tmp_path, "python")
    images = np.asfortranarray(pixels(3))
    content = {"data": images, "labels": [1, 2, 3]}  # keys as str: what latin1 makes of Python 2's
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, 2))
    assert (data.cifar10(tmp_path)[1].images.reshape(3, -1) == images).all()


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no CIFAR-100 here.*train.bin"):
        data.cifar100(tmp_path)
    write_cifar10(tmp_path, "binary")
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "batches.meta.txt").unlink()
    with pytest.raises(FileNotFoundError, match="missing data_batch_3.bin, batches.meta.txt"):
        data.cifar10(tmp_path)


def records(labels):
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels(len(labels))], axis=1)


@pytest.mark.parametrize(
    "raw, words",
    [
        (records([1, 2]).tobytes()[:-1], "truncated"),
        (b"", "no images"),
        (records([1, 10]).tobytes(), r"labels must lie in \[0, 10\), got 1 to 10"),
    ],
)
def test_damaged_records(tmp_path, raw, words):
    write_cifar10(tmp_path, "binary")
    (tmp_path / "data_batch_2.bin").write_bytes(raw)
    with pytest.raises(ValueError, match=f"data_batch_2.bin: .*{words}"):
        data.cifar10(tmp_path)


WHOLE = python2_pickle({b"data": pixels(2), b"labels": [1, 2]})


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "pickle"),
        (b"\x89PNG", "pickle"),
        (WHOLE[:-9], "pickle"),
        (WHOLE[:3000], "pickle"),
        (python2_pickle([1]), "dictionary"),
        (python2_pickle({b"labels": [1]}), "lacks data"),
        (python2_pickle({b"data": pixels(2)}), "lacks labels"),
        (python2_pickle({b"data": [1], b"labels": [1]}), "data must be"),
        (python2_pickle({b"data": pixels(2)[:, :-1], b"labels": [1, 2]}), "data must be"),
        (python2_pickle({b"data": pixels(2), b"labels": [1]}), "1 labels for 2 images"),
        (python2_pickle({b"data": pixels(2), b"labels": [1, b"x"]}), "list of integers"),
        (python2_pickle({b"data": pixels(2), b"labels": [1, -1]}), r"\[0, 10\)"),
        (python3_pickle({b"data": pixels(2), b"labels": [1, 2**70]}), r"\[0, 10\)"),
        (python3_pickle({b"data": pixels(2).astype(float), b"labels": [1, 2]}), "uint8"),
    ],
)
def test_damaged_pickles(tmp_path, raw, words):
    write_cifar10(tmp_path, "python")
    (tmp_path / "data_batch_2").write_bytes(raw)
    with pytest.raises(ValueError, match=f"data_batch_2: .*{words}"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("raw", [python2_pickle({b"label_names": [b"a"]}), python2_pickle({})])
def test_wrong_class_names(tmp_path, raw):
    write_cifar10(tmp_path, "python")
    (tmp_path / "batches.meta").write_bytes(raw)
    with pytest.raises(ValueError, match="batches.meta: expected 10 class names"):
        data.cifar10(tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_hostile_pickle_is_refused(tmp_path):
    write_cifar10(tmp_path, "python")
    target = tmp_path / "made"
    content = {b"data": Hostile(str(target)), b"labels": [1]}
    (tmp_path / "data_batch_1").write_bytes(python3_pickle(content))
    with pytest.raises(ValueError, match="data_batch_1: .*mkdir"):
        data.cifar10(tmp_path)
    assert not target.exists()
