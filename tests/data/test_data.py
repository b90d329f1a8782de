"""IDX files, the bundled digits, the loader and the transforms."""

import gzip
import hashlib
import struct
import threading

import numpy as np
import pytest

from minidl import data
from minidl.data.transforms import Compose, Normalize, Pad, RandomAffine, sample_affine


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


IMAGES = np.random.default_rng(0).random((5, 2, 7, 7), np.float32)
RNG = np.random.default_rng


def test_pad_and_normalize():
    y = Compose(Pad(1), Normalize([0.5, 0.25], [2, 4]))(IMAGES, RNG(0))
    expected = np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = (expected - np.reshape([0.5, 0.25], (2, 1, 1))) / np.reshape([2, 4], (2, 1, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert y.dtype == np.float32


def test_affine_identity_and_exact_cases():
    np.testing.assert_allclose(RandomAffine()(IMAGES, RNG(0)), IMAGES, atol=1e-5)
    n = len(IMAGES)
    identity = np.repeat(np.eye(2, dtype=np.float32)[:, :, None], n, 2)
    shift = np.repeat(np.array([[2], [-1]], np.float32), n, 1)
    moved = sample_affine(IMAGES, identity, shift)
    expected = np.zeros_like(IMAGES)
    expected[:, :, 2:, :-1] = IMAGES[:, :, :-2, 1:]
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    quarter = np.repeat(np.array([[0, 1], [-1, 0]], np.float32)[:, :, None], n, 2)
    turned = sample_affine(IMAGES, quarter, np.zeros((2, n), np.float32))
    np.testing.assert_allclose(turned, np.rot90(IMAGES, 1, (2, 3)), atol=1e-5)


def test_affine_against_torch():
    torch = pytest.importorskip("torch")
    draw = RNG(1)
    inverse = (np.eye(2)[:, :, None] + draw.uniform(-0.4, 0.4, (2, 2, 5))).astype(np.float32)
    shift = draw.uniform(-1.5, 1.5, (2, 5)).astype(np.float32)
    offset = -np.einsum("rcn,cn->rn", inverse, shift) * 2 / 7
    # Theirs is in (x, y) order and in units of half the image.
    theta = np.concatenate([inverse[::-1, ::-1], offset[::-1, None]], axis=1).transpose(2, 0, 1)
    grid = torch.nn.functional.affine_grid(
        torch.tensor(theta.copy(), dtype=torch.float32), IMAGES.shape, align_corners=False
    )
    theirs = torch.nn.functional.grid_sample(torch.tensor(IMAGES), grid, align_corners=False)
    np.testing.assert_allclose(sample_affine(IMAGES, inverse, shift), theirs.numpy(), atol=2e-3)


def test_affine_is_reproducible_and_checked():
    jitter = RandomAffine(20, 0.1, (0.8, 1.2), 5)
    a, b = (jitter(IMAGES, RNG(3)) for _ in range(2))
    assert (a == b).all() and a.dtype == np.float32 and (a != IMAGES).any()
    for bad in ({"degrees": -1}, {"translate": -0.1}, {"scale": (0, 1)}, {"shear": -2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RandomAffine(**bad)
    with pytest.raises(ValueError, match="std"):
        Normalize(0, 0)
