"""Image folders, and the recognition of a data set by its files."""

import gzip
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from minidl import data
from minidl.data.transforms import CenterCrop, Resize

DRAW = np.random.default_rng(0)


def picture(path, size=(6, 5), mode="RGB", **options):
    """Save a random picture of `size` (width, height) losslessly; returns its pixels (H, W, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = DRAW.integers(0, 256, (size[1], size[0], channels)).astype(np.uint8)
    Image.fromarray(pixels.squeeze(), mode=mode).save(path, **options)
    return pixels


def folder_of(root, counts, suffix=".png"):
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i:03}{suffix}", (4 + i % 3, 5 + i % 2))
    return root


def test_items_classes_and_order(tmp_path):
    first = picture(tmp_path / "cat" / "b.png")
    second = picture(tmp_path / "cat" / "deep" / "a.PNG", (3, 9))
    third = picture(tmp_path / "ant" / "z.bmp", (8, 2))
    for ignored in ("cat/.hidden.png", ".git/a.png", "cat/.thumbs/a.png", "loose.png"):
        picture(tmp_path / ignored)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    folder = data.ImageFolder(tmp_path)
    assert folder.class_names == ["ant", "cat"] and folder.num_classes == 2
    assert folder.labels.tolist() == [0, 1, 1] and len(folder) == 3
    assert folder.image_shape == (3, None, None)
    images, labels = folder.batch(np.arange(3))
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 1]
    for image, pixels in zip(images, (third, first, second), strict=True):
        assert image.dtype == np.float32 and image.shape == (3, *pixels.shape[:2])
        np.testing.assert_allclose(image, pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    image, label = folder[2]
    assert (image == images[2]).all() and label == 1 and folder.path(2).name == "a.PNG"
    part = folder.subset([2, 0])
    assert part.labels.tolist() == [1, 0] and part.path(0) == folder.path(2)
    assert part.class_names == folder.class_names


def test_kinds_of_pictures(tmp_path):
    grey = picture(tmp_path / "grey.png", mode="L")
    assert (data.read_image(tmp_path / "grey.png") == (grey * np.float32(1 / 255)).squeeze()).all()
    clear = picture(tmp_path / "clear.png", mode="RGBA")
    expected = clear[:, :, :3].transpose(2, 0, 1) * np.float32(1 / 255)
    assert (data.read_image(tmp_path / "clear.png") == expected).all()
    deep = np.array([[0, 256, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(data.read_image(tmp_path / "deep.png")[1], deep / 65535, rtol=1e-6)
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "indexed.png", transparency=bytes([10, 200]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colours = data.read_image(tmp_path / "indexed.png")
    assert colours[:, 0].T.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    pixels = picture(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(pixels, -1).transpose(2, 0, 1) * np.float32(1 / 255)
    assert (data.read_image(tmp_path / "turned.png") == expected).all()


def corrupt(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff\xe0 nothing that decodes")


def truncate(path):
    picture(path, (40, 40))
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("damage", [corrupt, truncate])
def test_unreadable_pictures_raise(tmp_path, damage):
    folder_of(tmp_path, {"a": 2})
    damage(tmp_path / "a" / "broken.png")
    folder = data.ImageFolder(tmp_path)
    with pytest.raises(data.UnreadableImage, match="broken.png: not a readable image"):
        folder.batch([0, 2])
    (tmp_path / "a" / "000.png").unlink()
    with pytest.raises(FileNotFoundError, match="000.png"):
        data.ImageFolder.batch(folder, [0])


def test_skipping_and_the_one_warning(tmp_path):
    folder_of(tmp_path, {"a": 3, "b": 1})
    for i in range(5):
        corrupt(tmp_path / "a" / f"broken{i}.png")
    folder = data.ImageFolder(tmp_path, on_error="skip")
    # Batches of two: the third and the fourth are all broken, the fifth has one image of two.
    loader = data.DataLoader(folder, 2, transform=Resize((4, 4)))
    assert len(loader) == 5
    with pytest.warns(UserWarning, match=r"5 unreadable images .*broken0.*broken2.png, \.\.\.$"):
        batches = list(loader)
    assert [labels.tolist() for _, labels in batches] == [[0, 0], [0], [1]]
    assert [len(images) for images, _ in batches] == [2, 1, 1]
    assert len(list(loader.iter_from(2))) == len(list(loader.iter_from(4))) == 1
    assert [path.name for path in folder.skipped] == [f"broken{i}.png" for i in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 3  # reported once
    assert folder.subset([0]).skipped == []


def test_folder_problems(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no sub-folders"):
        data.ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="on_error"):
        data.ImageFolder(tmp_path, on_error="ignore")
    folder_of(tmp_path, {"a": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: the folder of a class has no pictures"):
        data.ImageFolder(tmp_path)


def test_loader_makes_batches_of_differing_sizes(tmp_path):
    folder_of(tmp_path, {"a": 3, "b": 4})
    (images, labels), *_ = data.DataLoader(data.ImageFolder(tmp_path), 4)
    assert isinstance(images, list) and len({image.shape for image in images}) > 1
    for images, labels in data.DataLoader(data.ImageFolder(tmp_path), 4, transform=CenterCrop(4)):
        assert images.shape == (len(labels), 3, 4, 4) and images.dtype == np.float32


# -- open_dataset ----------------------------------------------------------------------------------


@pytest.mark.parametrize("names, test", [(("train", "val"), "val"), (("train", "test"), "test"),
                                         (("train", "val", "test"), "val")])  # fmt: skip
def test_train_and_test_folders(tmp_path, names, test):
    for name in names:
        folder_of(tmp_path / name, {"a": 2, "b": 1})
    train, held_out = data.open_dataset(tmp_path, on_error="skip")
    assert train.directory == tmp_path / "train" and held_out.directory == tmp_path / test
    assert train.on_error == held_out.on_error == "skip"


def test_class_folders_are_split(tmp_path):
    folder_of(tmp_path, {"a": 10, "b": 6, "c": 2})
    train, test = data.open_dataset(tmp_path)
    assert np.bincount(test.labels, minlength=3).tolist() == [2, 1, 0]
    assert np.bincount(train.labels).tolist() == [8, 5, 2]
    files = [[s.path(i) for i in range(len(s))] for s in (train, test)]
    assert len(set(files[0]) | set(files[1])) == 18
    again = data.open_dataset(tmp_path)[1]
    assert [again.path(i) for i in range(len(again))] == files[1]


def test_idx_files_are_recognised(tmp_path):
    for stem in ("train", "t10k"):
        for kind, shape in (("images-idx3", (4, 2, 2)), ("labels-idx1", (4,))):
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            raw = gzip.compress(header + bytes(int(np.prod(shape))))
            (tmp_path / f"{stem}-{kind}-ubyte.gz").write_bytes(raw)
    train, test = data.open_dataset(tmp_path)
    assert len(train) == len(test) == 4 and train.image_shape == (1, 2, 2)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="missing train-labels"):
        data.open_dataset(tmp_path)


def test_unknown_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.open_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="MNIST.*CIFAR.*train/.*Found: nothing"):
        data.open_dataset(tmp_path)
    folder_of(tmp_path / "train", {"a": 5, "b": 5})  # but nothing to test on
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="Found: notes.txt, train/$"):
        data.open_dataset(tmp_path)
    folder_of(tmp_path / "val", {"a": 1})
    with pytest.raises(ValueError, match="different classes: b"):
        data.open_dataset(tmp_path)


def test_sets_that_are_ambiguous_or_too_small(tmp_path):
    folder_of(tmp_path / "small", {"a": 4, "b": 3})
    with pytest.raises(ValueError, match="small: no class has the five pictures"):
        data.open_dataset(tmp_path / "small")
    for name in ("cifar-10-batches-bin/test_batch.bin", "cifar-100-binary/test.bin"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="CIFAR-10 and CIFAR-100"):
        data.open_dataset(tmp_path)
