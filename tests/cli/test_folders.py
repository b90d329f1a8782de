"""The commands on folders of pictures, with what can be wrong about them and their checkpoints."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from architectures import nin, resnet, zfnet
from minidl import checkpoint, cli, data, evaluation, optim, weights
from minidl.data.workers import WorkerPool
from minidl.train import Trainer

CLASSES = ("Käse", "chat", "猫")


def write_folder(root, classes=CLASSES, train=3, test=2):
    """Pictures of noise, each of its own size, in train/ and val/."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (*draw.integers(40, 90, 2), 3)
                pixels = draw.integers(0, 256, size).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with pictures and a checkpoint of a small NIN trained on them."""
    folder = tmp_path_factory.mktemp("folders")
    write_folder(folder / "data")
    arguments = ["train", "--data", folder / "data", "--epochs", 1, "--out", folder / "run"]
    assert cli.run(nin.ARCHITECTURE, [str(a) for a in arguments]) == 0
    return folder


@pytest.fixture
def best(trained):
    return trained / "run" / "best.safetensors"


def run(capsys, network, *arguments):
    status = cli.run(network.ARCHITECTURE, [str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, network, *arguments):
    status, _, err = run(capsys, network, *arguments)
    assert status == 2
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    return err


def test_class_names_of_any_script(trained, best, capsys):
    picture = trained / "data" / "val" / "猫" / "0.jpg"
    status, out, err = run(capsys, nin, "predict", best, picture)
    assert status == 0, err
    assert {line.split()[0] for line in out.splitlines()[1:]} == set(CLASSES)


# -- pictures that cannot be read, workers that die ------------------------------------------------


def test_an_unreadable_picture_is_one_line_wherever_it_lies(trained, best, tmp_path, capsys):
    """It is not the first of its split, which is looked at beforehand."""
    for split in ("train", "val"):
        folder = write_folder(tmp_path / split)
        broken = folder / split / "chat" / "1.jpg"
        broken.write_bytes(broken.read_bytes()[:200])
        out = tmp_path / f"out-{split}"
        for workers in (0, 1):
            base = ("--data", folder, "--workers", workers)
            train = ("train", *base, "--epochs", 1, "--out", out)
            assert str(broken) in fails(capsys, nin, *train)
            assert not list(out.glob("*"))
            if split == "val":
                assert str(broken) in fails(capsys, nin, "evaluate", best, *base)
                see = ("visualize", best, folder / "val" / "chat" / "0.jpg", "--layer", "pool1")
                assert str(broken) in fails(capsys, nin, *see, "--out", out, *base)
                assert not list(out.glob("*"))
        with pytest.warns(UserWarning, match="1 unreadable images are left out"):
            status, _, err = run(capsys, nin, *train, "--skip-unreadable")
        assert status == 0, err


def test_a_killed_worker_is_one_line(trained, best, capsys, monkeypatch):
    start = WorkerPool.map

    def without_one(self, tasks, ahead):
        os.kill(self._workers[0][0].pid, signal.SIGKILL)
        return start(self, tasks, ahead)

    monkeypatch.setattr(WorkerPool, "map", without_one)
    base = ("--data", trained / "data", "--workers", 1)
    assert "SIGKILL" in fails(capsys, nin, "evaluate", best, *base)
    assert "SIGKILL" in fails(capsys, nin, "train", *base, "--out", trained / "killed")


# -- options that contradict a checkpoint ----------------------------------------------------------


def test_a_checkpoint_brings_its_own_options(trained, best, tmp_path, capsys):
    base = ("--data", trained / "data")
    picture = trained / "data" / "val" / "chat" / "0.jpg"
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    resume = ("train", "--resume", trained / "run", *base, "--out", tmp_path / "out")
    cases = [
        (("evaluate", best, "--full", *base), "full=False"),
        (("predict", best, picture, "--full"), "full=False"),
        (("predict", best, picture, "--class-names", names), "--class-names"),
        ((*resume, "--full"), "full=False"),
        ((*resume, "--lr", 0.5), "lr=0.002"),
        ((*resume, "--batch-size", 7), "batch_size=64"),
    ]
    for arguments, words in cases:
        assert words in fails(capsys, nin, *arguments), arguments
    assert not (tmp_path / "out").exists()
    for arguments in (("evaluate", best, "--small", *base), ("predict", best, picture, "--small")):
        assert run(capsys, nin, *arguments)[0] == 0


def test_other_classes_are_refused(trained, best, tmp_path, capsys):
    other = write_folder(tmp_path / "other", ("Käse", "chien", "猫"))
    for arguments in (
        ("evaluate", best), ("train", "--resume", trained / "run", "--out", tmp_path / "out"),
    ):  # fmt: skip
        err = fails(capsys, nin, *arguments, "--data", other)
        assert "'chat'" in err and "'chien'" in err


# -- where a run goes ------------------------------------------------------------------------------


def test_a_resumed_run_stays_where_it_lies(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ("--data", trained / "data")
    assert run(capsys, nin, "train", *base, "--epochs", 1, "--out", "mine")[0] == 0
    for epochs, place in ((2, "mine"), (3, "mine/last.safetensors")):
        status, _, err = run(capsys, nin, "train", *base, "--epochs", epochs, "--resume", place)
        assert status == 0, err
        assert len(json.loads((tmp_path / "mine" / "history.json").read_text())) == epochs
    assert not (tmp_path / "runs").exists()


def test_out_is_looked_at_before_training(trained, tmp_path, capsys, monkeypatch):
    def no_step(*arguments):
        raise AssertionError("trained for nothing")

    monkeypatch.setattr("minidl.train.Trainer.run", no_step)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(out) in fails(capsys, nin, "train", "--data", trained / "data", "--out", out)


# -- checkpoints of which a part is wrong ----------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("options", [1]), ("options", {"depth": 3}), ("class_names", 3), ("class_names", []),
        ("class_names", [1, 2, 3]), ("image_shape", None), ("image_shape", [3]),
        ("image_shape", [3, "x", 5]), ("image_shape", [None, None, None]),
    ],
)  # fmt: skip
def test_damaged_descriptions_are_one_line(trained, best, tmp_path, capsys, entry, value):
    state = checkpoint.load(best)
    state.about[entry] = value
    path, picture = tmp_path / "c.safetensors", trained / "data" / "val" / "chat" / "0.jpg"
    checkpoint.save(path, state)
    base = ("--data", trained / "data")
    for arguments in (
        ("evaluate", path, *base), ("predict", path, picture), ("train", "--resume", path, *base),
        ("visualize", path, picture, "--layer", "pool1", "--out", tmp_path / "v", *base),
        ("export", path, tmp_path / "w.safetensors"),
    ):  # fmt: skip
        err = fails(capsys, nin, *arguments)
        assert str(path) in err and entry in err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("settings", [None, {}, {"epochs": 1, "batch_size": None, "lr": 1e-3}])
def test_no_run_without_settings(trained, best, tmp_path, capsys, settings):
    state = checkpoint.load(best)
    state.about["settings"] = settings
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, state)
    base = ("--data", trained / "data")
    assert "settings" in fails(capsys, nin, "train", "--resume", path, *base)
    assert run(capsys, nin, "evaluate", path, *base)[0] == 0


@pytest.mark.parametrize(("entry", "value"), [("running", 3), ("rows", None), ("random", 3)])
def test_damaged_progress_is_one_line(trained, best, tmp_path, capsys, entry, value):
    state = checkpoint.load(best)
    if value is None:
        del state.progress[entry]
    else:
        state.progress[entry] = value
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, state)
    err = fails(capsys, nin, "train", "--resume", path, "--data", trained / "data")
    assert "does not fit" in err


# -- what a recipe adds to testing and training ----------------------------------------------------


def test_ten_crop_averages_ten_views(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", ("a", "b"), train=1, test=1)
    model = resnet.build(2, 18).eval()
    weights.save(tmp_path / "w.safetensors", model)
    status, out, err = run(
        capsys, resnet, "evaluate", "--weights", tmp_path / "w.safetensors", "--data", folder,
        "--protocol", "ten-crop",
    )  # fmt: skip
    assert status == 0, err
    views = resnet.recipe().protocols["ten-crop"].transform
    losses = []
    for label, name in enumerate("ab"):
        crops = views([data.read_image(folder / "val" / name / "0.jpg")], None)[0]
        assert crops.shape == (10, 3, 224, 224)
        losses.append(-np.log(evaluation.probabilities(model, crops).mean(axis=0)[label]))
    assert abs(float(out.rpartition("loss ")[2]) - np.mean(losses)) < 1e-4


def test_an_unknown_protocol_names_those_there_are(trained, best, capsys):
    base = ("evaluate", best, "--data", trained / "data")
    assert "one of single" in fails(capsys, nin, *base, "--protocol", "dense")


def test_zfnet_trains_within_its_radius(trained, tmp_path, capsys):
    """The full network's recipe keeps every filter within an RMS of 0.1, whatever the steps do."""
    recipe = zfnet.recipe()
    model = zfnet.build(3, full=False)
    assert recipe.after_step is not None
    with model.conv2.weight.mutate() as weight:
        weight *= 10
    loader = data.DataLoader(
        data.open_dataset(trained / "data")[0], 9,
        transform=zfnet.recipe(full=False).eval_transform,
    )  # fmt: skip
    Trainer(
        model, optim.SGD(model.parameters(), 1e-3), loader, loader, recipe.loss, tmp_path, 1,
        after_step=recipe.after_step,
    ).run()  # fmt: skip
    rms = np.sqrt((model.conv2.weight.data ** 2).mean(axis=(1, 2, 3)))
    assert rms.max() <= 0.1 + 1e-6 and rms.max() > 0.09
