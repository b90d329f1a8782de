"""IDX files, the bundled digits and the loader."""

import gzip
import hashlib
import struct
import threading

import numpy as np
import pytest

from minidl import data


def idx_bytes(array, code=0x08):
    big = array.astype(array.dtype.newbyteorder(">"))
    header = struct.pack(">BBBB", 0, 0, code, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("code, dtype", [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"),
                                         (13, "f4"), (14, "f8")])  # fmt: skip
def test_idx_round_trip(tmp_path, zipped, code, dtype):
    array = np.arange(-6, 18).reshape(2, 3, 4).astype(dtype)
    raw = idx_bytes(array, code)
    path = tmp_path / "file"  # the content decides, not the name
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    read = data.read_idx(path)
    assert read.dtype == np.dtype(dtype) and (read == array).all()


GOOD = idx_bytes(np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "magic"),
        (b"\1" + GOOD[1:], "magic"),
        (GOOD[:2] + b"\x07" + GOOD[3:], "magic"),
        (GOOD[:7], "header"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"x", "other data"),
        (gzip.compress(GOOD)[:-6], "gzip"),
        (gzip.compress(GOOD)[:12] + b"\xff" * 9, "gzip"),
    ],
)
def test_damaged_idx(tmp_path, raw, words):
    path = tmp_path / "broken-idx"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"broken-idx.*{words}"):
        data.read_idx(path)


def test_bundled_digits():
    train, test = data.bundled_digits()
    assert (len(train), len(test)) == (4000, 1000)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)
    digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
    again = data.bundled_digits()[1]
    assert digest == hashlib.sha256(again.images.tobytes() + again.labels.tobytes()).hexdigest()
    image, label = train[0]
    assert image.shape == (1, 28, 28) and image.dtype == np.float32 and isinstance(label, int)
    assert 0 <= image.min() and image.max() == pytest.approx(1, abs=0.02)


def write_mnist(directory, train=6, test=3, suffix="", labels_less=0):
    draw = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count - labels_less) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = idx_bytes(array)
            raw = gzip.compress(raw) if suffix else raw
            (directory / f"{stem}-{kind}-ubyte{suffix}").write_bytes(raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_directory(tmp_path, suffix):
    write_mnist(tmp_path, suffix=suffix)
    train, test = data.mnist(tmp_path)
    assert len(train) == 6 and len(test) == 3 and train.num_classes == test.num_classes == 3


def test_mnist_problems(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        data.mnist(tmp_path)
    write_mnist(tmp_path, labels_less=1)
    with pytest.raises(ValueError, match="5 labels for the 6 images"):
        data.mnist(tmp_path)


def test_array_dataset_checks():
    images = np.zeros((2, 4, 4), np.uint8)
    for bad, words in (
        ((images[0, 0], [0]), "images"),
        ((images, [0]), "labels"),
        ((images, [0, 5], 3), r"labels must lie in \[0, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            data.ArrayDataset(*bad)
    with pytest.raises(TypeError, match="images"):
        data.ArrayDataset(images.astype(int), [0, 1])


class Jitter:
    def __call__(self, images, rng):
        return images + rng.random(images.shape, np.float32)


@pytest.fixture
def small():
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((2, 2), np.uint8)
    return data.ArrayDataset(images, np.arange(10), 10)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_order_is_a_function_of_seed_and_epoch(small, prefetch):
    def labels(seed, epoch):
        loader = data.DataLoader(small, 4, shuffle=True, seed=seed, prefetch=prefetch)
        loader.set_epoch(epoch)
        return [label for _, batch in loader for label in batch]

    assert labels(1, 1) == labels(1, 1) and sorted(labels(1, 1)) == list(range(10))
    assert labels(1, 1) != labels(1, 2) and labels(1, 1) != labels(2, 1)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resume_gives_the_same_batches(small, prefetch):
    loader = data.DataLoader(small, 3, shuffle=True, prefetch=prefetch, transform=Jitter())
    whole = list(loader)
    for start in range(len(loader) + 1):
        for (a, i), (b, j) in zip(loader.iter_from(start), whole[start:], strict=True):
            assert (a == b).all() and (i == j).all()
            assert a.dtype == np.float32 and i.dtype == np.int64


def test_lengths(small):
    assert len(data.DataLoader(small, 3)) == 4
    assert len(data.DataLoader(small, 3, drop_last=True)) == 3
    assert [len(b) for _, b in data.DataLoader(small, 3, drop_last=True)] == [3, 3, 3]
    assert list(data.DataLoader(small.subset([]), 3)) == []


def test_plain_datasets_work(small):
    class Plain:
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return small[i]

    ours, theirs = (list(data.DataLoader(d, 4)) for d in (Plain(), small))
    for (a, i), (b, j) in zip(ours, theirs, strict=True):
        assert (a == b).all() and (i == j).all()


def loader_threads():
    return [t for t in threading.enumerate() if t.name == "minidl-loader"]


def test_stopping_early_ends_the_thread(small):
    batches = iter(data.DataLoader(small, 1, prefetch=2))
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_errors_reach_the_consumer(small):
    def broken(images, rng):
        raise RuntimeError("broken transform")

    with pytest.raises(RuntimeError, match="broken transform"):
        list(data.DataLoader(small, 4, transform=broken))
    assert not loader_threads()


def test_loader_checks(small):
    with pytest.raises(ValueError, match="batch_size"):
        data.DataLoader(small, 0)
    with pytest.raises(ValueError, match="prefetch"):
        data.DataLoader(small, 1, prefetch=-1)
    with pytest.raises(ValueError, match="batch_index"):
        data.DataLoader(small, 1).iter_from(11)
