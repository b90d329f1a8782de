"""``--weights FILE``: training from it, testing with it, one line for every file that is wrong."""

import re

import numpy as np
import pytest

from architectures import alexnet, googlenet, lenet, resnet, zfnet
from minidl import checkpoint, cli, data, evaluation, manual_seed, nn, weights

SMALL = ("--small", "--towers", 1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A directory with 24 of the bundled digits, for training and for testing."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("digits")
    _, test = data.bundled_digits()
    for split in ("train", "val"):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
            for i in np.flatnonzero(test.labels == label)[:2]:
                Image.fromarray(test.images[i, 0]).save(folder / split / str(label) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    """A small AlexNet of one tower whose answers differ from image to image."""
    manual_seed(1)
    return alexnet.build(10, towers=1, full=False).eval()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The model's weights under its own names, and under public ones."""
    folder = tmp_path_factory.mktemp("weights")
    weights.save(folder / "own.safetensors", model)
    public = weights.public_state(model, alexnet.public_names(towers=1))
    weights.save(folder / "public.safetensors", public)
    return {kind: folder / f"{kind}.safetensors" for kind in ("own", "public")}


def run(capsys, network, *arguments):
    status = cli.run(network.ARCHITECTURE, [str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, network, *arguments):
    status, _, err = run(capsys, network, *arguments)
    assert status == 2
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    return err


def expected_chances(model, path):
    """The class probabilities of a picture, by hand."""
    transform = alexnet.recipe(towers=1, full=False).eval_transform
    image = transform(data.read_image(path)[None], np.random.default_rng(0))
    return evaluation.probabilities(model, image)[0]


# -- right files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "public"])
def test_evaluate(model, files, digits, capsys, kind):
    paths = sorted(digits.glob("val/*/*.png"))
    right = sum(expected_chances(model, p).argmax() == int(p.parent.name) for p in paths)
    status, out, err = run(
        capsys, alexnet, "evaluate", "--weights", files[kind], *SMALL, "--data", digits
    )
    assert status == 0, err
    assert f"{len(paths)} images: accuracy {right / len(paths):.2%}" in out


@pytest.mark.parametrize("kind", ["own", "public"])
@pytest.mark.parametrize("named", [True, False])
def test_predict(model, files, digits, tmp_path, capsys, kind, named):
    pictures = sorted(digits.glob("val/*/*.png"))[3:5]
    names = [str(i) for i in range(10)]
    arguments = ["predict", "--weights", files[kind], *SMALL, *pictures]
    if named:
        names = [f"the digit {i}" for i in range(10)]
        (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
        arguments += ["--class-names", tmp_path / "names.txt"]
    status, out, err = run(capsys, alexnet, *arguments)
    assert status == 0, err
    lines = out.splitlines()
    assert len(lines) == 12
    for picture, start in zip(pictures, (0, 6), strict=True):
        chances = expected_chances(model, picture)
        best = np.argsort(-chances, kind="stable")[:5]
        assert lines[start] == f"{picture}:"
        for line, index in zip(lines[start + 1 : start + 6], best, strict=True):
            name, chance = re.fullmatch(r"  (.*?) +([\d.]+)%", line).groups()
            assert name == names[index] and abs(float(chance) / 100 - chances[index]) < 2e-6


@pytest.mark.parametrize("kind", ["own", "public"])
def test_train_starts_from_the_file(model, files, digits, tmp_path, capsys, kind):
    status, _, err = run(
        capsys, alexnet, "train", "--weights", files[kind], *SMALL, "--data", digits, "--seed", 9,
        "--epochs", 1, "--lr", 1e-9, "--out", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    trained = checkpoint.load(tmp_path / "last.safetensors").model
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(trained[name], array, rtol=0, atol=1e-7)
        # Another seed alone would have drawn other weights.
        if name.endswith("weight"):
            assert array.std() > 1e-3


def test_a_checkpoint_serves_as_weights(model, digits, tmp_path, capsys):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(model.state_dict()))
    status, _, err = run(
        capsys, alexnet, "evaluate", "--weights", path, *SMALL, "--data", digits
    )
    assert status == 0, err


def test_own_names_of_forms_without_public_weights(digits, tmp_path, capsys):
    cases = [
        (alexnet, alexnet.build(10, towers=2, full=False), ("--towers", 2)),
        (googlenet, googlenet.build(10, full=False), ()),
        (resnet, resnet.build(10, 20), ("--depth", 20)),
        (resnet, resnet.build(10, 50, "2", full=False), ("--depth", 50, "--version", 2)),
    ]
    for network, built, options in cases:
        path = tmp_path / "own.safetensors"
        weights.save(path, built)
        status, _, err = run(
            capsys, network, "evaluate", "--weights", path, "--small", *options, "--data", digits
        )
        assert status == 0, err


def test_auxiliary_classifiers_are_left_out(digits, tmp_path, capsys):
    for form in (("--batch-norm",), ()):
        path = tmp_path / "w.safetensors"
        weights.save(path, googlenet.build(10, batch_norm=bool(form), full=False))
        base = ("evaluate", "--weights", path, "--small", *form, "--data", digits)
        with_heads = run(capsys, googlenet, *base)
        without = run(capsys, googlenet, *base, "--no-auxiliary")
        assert with_heads[0] == without[0] == 0, without[2]
        assert with_heads[1] == without[1]
        # The other way round the heads are missing.
        weights.save(path, googlenet.build(10, batch_norm=True, auxiliary=False, full=False))
        err = fails(capsys, googlenet, "evaluate", "--weights", path, "--small", "--batch-norm",
                    "--data", digits)  # fmt: skip
        assert "missing aux1.conv.conv.weight" in err and "missing aux2.fc2.bias" in err


# -- wrong files -----------------------------------------------------------------------------------


def commands(digits, tmp_path, picture):
    """The arguments of the three commands but for those of the network."""
    return [
        ("evaluate", "--data", digits), ("predict", picture),
        ("train", "--data", digits, "--out", tmp_path / "out"),
    ]  # fmt: skip


def test_every_difference_in_one_line(files, digits, tmp_path, capsys):
    picture = next(digits.glob("val/*/*.png"))
    for kind, bias, weight in (
        ("own", "fc8.bias", "fc7.weight"), ("public", "classifier.6.bias", "classifier.4.weight"),
    ):  # fmt: skip
        state = dict(weights.read(files[kind]))
        del state[bias]
        state[weight] = np.ones((3, 5), np.float32)
        state["head.weight"] = np.ones((4, 2), np.float32)
        path = tmp_path / "wrong.safetensors"
        weights.save(path, state)
        for command in commands(digits, tmp_path, picture):
            err = fails(capsys, alexnet, *command, "--weights", path, *SMALL)
            assert err.startswith(f"Error: {path}: weights do not fit AlexNet: ")
            assert f" missing {bias} (10,)" in err
            assert f" shape {weight} is (3, 5), expected (1024, 1024)" in err
            assert " extra head.weight (4, 2)" in err
            assert [err.count(word) for word in ("missing", "shape", "extra")] == [1, 1, 1]
        assert not (tmp_path / "out").exists()


def test_another_network(files, digits, tmp_path, capsys):
    path = tmp_path / "resnet.safetensors"
    weights.save(path, resnet.build(10, full=False))
    err = fails(capsys, alexnet, "evaluate", "--weights", path, *SMALL, "--data", digits)
    assert "weights do not fit AlexNet" in err
    assert "missing features.0.weight" in err and "extra layer1.0.conv1.weight" in err
    err = fails(capsys, resnet, "evaluate", "--weights", files["public"], "--small", "--data",
                digits)  # fmt: skip
    assert "missing fc.weight" in err and "extra features.0.weight" in err


def test_forms_that_public_weights_do_not_have(files, digits, tmp_path, capsys):
    picture = next(digits.glob("val/*/*.png"))
    public_resnet, public_googlenet = tmp_path / "r.safetensors", tmp_path / "g.safetensors"
    weights.save(public_resnet, resnet.build(10, 50, "1.5", full=False))
    weights.save(public_googlenet, googlenet.build(10, batch_norm=True, full=False))
    cases = [
        (alexnet, files["public"], ("--towers", 2), "--towers 1"),
        (resnet, public_resnet, ("--depth", 50), "--version 1.5"),
        (resnet, public_resnet, ("--depth", 50, "--version", 2), "--version 1.5"),
        (googlenet, public_googlenet, (), "--batch-norm"),
        (googlenet, public_googlenet, ("--batch-norm", "--naive"), "naive"),
    ]
    for network, path, options, words in cases:
        for command in commands(digits, tmp_path, picture):
            err = fails(capsys, network, *command, "--weights", path, "--small", *options)
            assert words in err and "missing" not in err, (options, err)
    status, _, err = run(
        capsys, resnet, "evaluate", "--weights", public_resnet, "--small", "--depth", 50,
        "--version", "1.5", "--data", digits,
    )  # fmt: skip
    assert status == 0, err


def test_mistakes(model, files, digits, tmp_path, capsys):
    picture = next(digits.glob("val/*/*.png"))
    text, broken = tmp_path / "text.pth", tmp_path / "broken.safetensors"
    text.write_text("no weights")
    broken.write_bytes(files["own"].read_bytes()[:-10])
    names, few = tmp_path / "names.txt", tmp_path / "few.txt"
    names.write_bytes(b"\xff\xfe")
    few.write_text("cat\ndog\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    right = ("--weights", files["own"], *SMALL)
    cases = [
        (("evaluate", "--weights", tmp_path / "nowhere", *SMALL, "--data", digits), "nowhere"),
        (("evaluate", "--weights", text, *SMALL, "--data", digits), "text.pth"),
        (("evaluate", "--weights", broken, *SMALL, "--data", digits), "broken.safetensors"),
        (("evaluate", "--data", digits), "checkpoint, or weights"),
        (("evaluate", files["own"], *right, "--data", digits), "checkpoint, or weights"),
        (("predict", *right), "IMAGES"),
        (("predict", *right, picture, "--class-names", tmp_path / "none.txt"), "none.txt"),
        (("predict", *right, picture, "--class-names", names), "decode"),
        (("predict", *right, picture, "--class-names", few), "expected (2, 1024)"),
        (("predict", *right, picture, "--class-names", empty), "out_features"),
        (("predict", *right, text), "text.pth"),
        (("train", *right, "--resume", files["own"], "--data", digits), "exclude each other"),
    ]
    for arguments, words in cases:
        assert words in fails(capsys, alexnet, *arguments), arguments


def test_pictures_for_a_network_of_grey_images(tmp_path, capsys):
    from PIL import Image

    path, picture = tmp_path / "w.safetensors", tmp_path / "p.png"
    weights.save(path, lenet.ARCHITECTURE.build(num_classes=10))
    Image.new("RGB", (28, 28), (9, 200, 30)).save(picture)
    status, out, err = run(capsys, lenet, "predict", "--weights", path, picture)
    assert status == 0 and len(out.splitlines()) == 6, err
    Image.new("RGB", (60, 80)).save(picture)
    err = fails(capsys, lenet, "predict", "--weights", path, picture)
    assert "lenet takes images of shape (1, 32, 32)" in err and str(picture) in err


def test_networks_without_public_weights_take_their_own(digits, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    weights.save(path, zfnet.build(10, full=False))
    status, _, err = run(
        capsys, zfnet, "evaluate", "--weights", path, "--small", "--data", digits
    )
    assert status == 0, err
    weights.save(path, nn.Linear(2, 3))
    err = fails(capsys, zfnet, "evaluate", "--weights", path, "--small", "--data", digits)
    assert "missing conv1.weight" in err and "extra bias (3,)" in err
