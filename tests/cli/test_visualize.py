"""The command `visualize`, and the files it writes."""

import click
import numpy as np
import pytest
from PIL import Image

from architectures.lenet import ARCHITECTURE
from minidl import checkpoint, data
from minidl.cli.visualize import visualize_command
from minidl.visualize import pictures
from minidl.visualize.occlusion import Occlusion

KINDS = ("features", "deconvnet", "occlusion", "top")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory with an untrained checkpoint, a digit, and a small data set."""
    folder = tmp_path_factory.mktemp("visualize")
    about = {
        "architecture": "lenet", "options": {"variant": "modern"}, "image_shape": [1, 28, 28],
        "class_names": [str(i) for i in range(10)],
    }  # fmt: skip
    state = checkpoint.Checkpoint(ARCHITECTURE.build().state_dict(), about=about)
    checkpoint.save(folder / "net.safetensors", state)
    _, test = data.bundled_digits()
    Image.fromarray(test.images[0, 0]).save(folder / "digit.png")
    (folder / "data").mkdir()
    arrays = {"images-idx3": test.images[:30, 0], "labels-idx1": test.labels[:30]}
    for stem in ("train", "t10k"):
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            path = folder / "data" / f"{stem}-{kind}-ubyte"
            path.write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def run(files, *arguments):
    """The result of one run; ClickException for a mistake."""
    words = [files / "net.safetensors", files / "digit.png", "--data", files / "data", *arguments]
    command = visualize_command(ARCHITECTURE)
    return command.main([str(word) for word in words], standalone_mode=False)


@pytest.mark.parametrize(
    "layer, options",
    [("relu3", ["--top", 2]), ("f6", ["--channel", 5, "--channel", 80, "--label", 7])],
)
def test_writes_all_pictures(files, capsys, tmp_path, layer, options):
    run(files, "--layer", layer, "--out", tmp_path, *options)
    expected = [tmp_path / "filters.png", *(tmp_path / f"{kind}-{layer}.png" for kind in KINDS)]
    assert capsys.readouterr().out.split() == [str(path) for path in expected]
    assert sorted(tmp_path.iterdir()) == sorted(expected)  # no temporary file is left
    for path in expected:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_mistakes(files, tmp_path):
    known = "c1, relu1, s2, c3, relu3, s4, c5, relu5, flatten, f6, relu6, output"
    cases = [
        (["--layer", "conv9"], f"{known}, got conv9"),
        ([], f"{known}, got None"),
        (["--layer", "c3", "--channel", 16], r"[0, 16)"),
        (["--layer", "c3", "--label", "ten"], "--label must be one of 0, 1"),
        (["--layer", "c3", "--top", 0], "--top"),
    ]
    for options, words in cases:
        with pytest.raises(click.ClickException) as error:
            run(files, "--out", tmp_path / "out", *options)
        assert error.value.exit_code == 2
        assert words in error.value.format_message() and "\n" not in error.value.format_message()
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(click.ClickException) as error:
        run(files, "--layer", "c3", "--out", tmp_path / "file")
    assert error.value.exit_code == 2


def test_names_of_classes_are_taken_as_they_stand(tmp_path, recwarn):
    names = ["_hidden", r"$\frac$", "$x_1$", "Käse", "a" * 300]
    probability = np.full((2, 3), 0.5)
    for label in range(len(names)):
        result = Occlusion(label, 2, 2, probability, np.full((2, 3), label), probability, 0)
        image = np.random.default_rng(0).random((3, 4, 6))
        pictures.save_occlusion(tmp_path / f"{label}.png", image, result, names, "conv1")
    assert len(list(tmp_path.iterdir())) == len(names)
    assert not [str(warning.message) for warning in recwarn]


def test_a_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "filters.png"
    pictures.save_filters(path, np.random.default_rng(0).random((2, 3, 5, 5)), "conv1")
    old = path.read_bytes()

    def fail(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.save_filters(path, np.ones((2, 3, 5, 5)), "conv1")
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
