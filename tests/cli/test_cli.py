"""The command line: what it prints, and one line with status 2 for every mistake."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from architectures.lenet import ARCHITECTURE
from minidl import cli, data

ROOT = Path(__file__).resolve().parent.parent.parent


def run(capsys, *arguments):
    status = cli.run(ARCHITECTURE, [str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, *arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    return err


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_set(directory, classes=10, size=28, count=40):
    directory.mkdir(exist_ok=True)
    train, _ = data.bundled_digits()
    chosen = np.flatnonzero(train.labels < classes)[:: max(1, 4000 // count // 2)][:count]
    chosen = np.concatenate([chosen, [np.flatnonzero(train.labels == classes - 1)[0]]])
    images = np.zeros((len(chosen), size, size), np.uint8)
    images[:, :28, :28] = train.images[chosen, 0][:, :size, :size]
    for stem in ("train", "t10k"):
        write_idx(directory / f"{stem}-images-idx3-ubyte", images)
        write_idx(directory / f"{stem}-labels-idx1-ubyte", train.labels[chosen])
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a small data set and a checkpoint trained on it for two epochs."""
    folder = tmp_path_factory.mktemp("cli")
    write_set(folder / "data")
    arguments = ["train", "--data", folder / "data", "--epochs", 2, "--out", folder / "run"]
    assert cli.run(ARCHITECTURE, [str(a) for a in arguments]) == 0
    return folder


def test_train_writes_everything(trained):
    assert {p.name for p in (trained / "run").iterdir()} == {
        "last.safetensors", "best.safetensors", "history.csv", "history.json", "curves.png",
    }  # fmt: skip
    assert (trained / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((trained / "run" / "history.json").read_text())) == 2


def test_same_seed_same_figures(trained, capsys, tmp_path):
    for name in ("a", "b"):
        status, out, _ = run(
            capsys, "train", "--data", trained / "data", "--epochs", 2, "--out", tmp_path / name
        )
        assert status == 0 and re.search(r"test accuracy [\d.]+%", out)
    rows = [json.loads((folder / "history.json").read_text()) for folder in
            (tmp_path / "a", tmp_path / "b", trained / "run")]  # fmt: skip
    for other in rows[1:]:
        assert [r["test_loss"] for r in other] == [r["test_loss"] for r in rows[0]]


def test_resume_goes_on(trained, capsys, tmp_path):
    straight = tmp_path / "straight"
    base = ("train", "--data", trained / "data", "--epochs", 4)
    run(capsys, *base, "--out", straight)
    # A run of four epochs, cut off after its first epoch, is continued.
    cut = tmp_path / "cut"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_RUN, *map(str, base), "--out", str(cut)], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "--resume" in done.stderr and "Traceback" not in done.stderr
    status, _, err = run(capsys, *base, "--resume", cut, "--out", cut)
    assert status == 0, err
    rows = [json.loads((p / "history.json").read_text()) for p in (straight, cut)]
    assert [r["test_loss"] for r in rows[0]] == [r["test_loss"] for r in rows[1]]


INTERRUPTED_RUN = """
import os, signal, sys
from architectures.lenet import ARCHITECTURE
from minidl import cli, train
finish = train.Trainer._finish_epoch
def once(self, *arguments):
    finish(self, *arguments)
    os.kill(os.getpid(), signal.SIGINT)
train.Trainer._finish_epoch = once
sys.exit(cli.run(ARCHITECTURE, sys.argv[1:]))
"""


def test_real_interrupt(trained, tmp_path):
    command = [sys.executable, "-m", "architectures.lenet", "train", "--epochs", "500", "--data",
               str(trained / "data"), "--out", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and "--resume" in err


def test_evaluate(trained, capsys):
    status, out, _ = run(
        capsys, "evaluate", trained / "run" / "best.safetensors", "--data", trained / "data"
    )
    rows = json.loads((trained / "run" / "history.json").read_text())
    assert status == 0 and f"{max(r['test_accuracy'] for r in rows):.2%}" in out


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_predict(trained, capsys, tmp_path, suffix):
    from PIL import Image

    _, test = data.bundled_digits()
    path = tmp_path / f"digit.{suffix}"
    Image.fromarray(255 - test.images[3, 0]).resize((84, 84)).save(path)
    checkpoint = trained / "run" / "best.safetensors"
    status, out, _ = run(capsys, "predict", checkpoint, path, "--invert")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 6 and lines[0] == f"{path}:"
    chances = [float(line.split()[1].rstrip("%")) for line in lines[1:]]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 100.01


def test_summary_and_gradcheck(capsys):
    status, out, _ = run(capsys, "summary", "--variant", "1998")
    assert status == 0 and "60,000" in out
    status, out, _ = run(capsys, "gradcheck", "--backend", "reference")
    assert status == 0 and "61,706" in out


def test_help_lists_the_commands(capsys):
    for arguments in (["--help"], ["train", "--help"]):
        status, out, _ = run(capsys, *arguments)
        assert status == 0 and "Usage" in out
    for words in ("--backend", "--seed", "--threads", "--resume", "--data", "--variant"):
        assert words in out


def test_mistakes(trained, capsys, tmp_path):
    checkpoint = trained / "run" / "last.safetensors"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:-10])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    few = write_set(tmp_path / "few", classes=4)
    large = write_set(tmp_path / "large", size=40)
    more = write_set(tmp_path / "more", count=60)
    untested = write_set(tmp_path / "untested")
    write_idx(untested / "t10k-images-idx3-ubyte", np.zeros((0, 28, 28)))
    write_idx(untested / "t10k-labels-idx1-ubyte", np.zeros(0))
    cases = [
        (("fly",), "fly"),
        (("train", "--speed", 3), "--speed"),
        (("train", "--backend", "tpu"), "tpu"),
        (("train", "--epochs", 0), "epochs"),
        (("train", "--lr", "nan"), "--lr"),
        (("train", "--lr", "inf"), "--lr"),
        (("train", "--threads", 10_000), "threads"),
        (("train", "--data", tmp_path / "nowhere"), "nowhere"),
        (("train", "--data", large), "32, 32"),
        (("train", "--data", untested), "empty"),
        (("train", "--resume", checkpoint, "--data", more), "images, the data has"),
        (("train", "--resume", tmp_path / "nowhere"), "nowhere"),
        (("train", "--data", few, "--variant", "1998"), "num_classes"),
        (("evaluate", tmp_path / "nowhere"), "nowhere"),
        (("evaluate", broken), "broken.safetensors"),
        (("evaluate", text), "text.png"),
        (("evaluate", checkpoint, "--data", few), "10 classes, the data has 4"),
        (("train", "--resume", checkpoint, "--data", few), "10 classes, the data has 4"),
        (("predict", checkpoint), "IMAGES"),
        (("predict", checkpoint, text), "text.png"),
        (("predict", checkpoint, tmp_path / "nowhere.png"), "nowhere.png"),
    ]
    for arguments, words in cases:
        if arguments[0] == "train":
            arguments = (*arguments, "--out", tmp_path / "out")
        assert words in fails(capsys, *arguments), arguments


def test_the_gpu_is_asked_for_without_cupy(capsys):
    with mock.patch.dict(sys.modules, {"cupy": None}):
        assert "pip install -e '.[cuda12]'" in fails(capsys, "train", "--backend", "cuda")


def test_divergence_is_one_line(trained, capsys, tmp_path):
    err = fails(capsys, "train", "--lr", 1e30, "--data", trained / "data", "--out", tmp_path)
    assert "--lr" in err


def rewritten(source, path, **changes):
    """A checkpoint with JSON entries replaced: {"about": None} or {"about": {"options": 3}}."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(source, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for part, change in changes.items():
        entries = {**json.loads(metadata[part]), **change} if change else change
        metadata[part] = json.dumps(entries)
    save_file(arrays, path, metadata)
    return path


DAMAGE = {
    "about": [None, [], {"options": []}, {"options": {"speed": 3}}, {"class_names": 5},
              {"image_shape": None}, {"settings": None}, {"settings": {"batch_size": 0}}],
    "progress": [None, [], {"epoch": "x"}, {"epoch": None}, {"batch": -1}, {"batch": 999},
                 {"rows": "x"}, {"running": None}, {"scheduler": "x"}, {"random": None}],
    "optimizer": [None, [], {"groups": 5}, {"groups": []}, {"groups": [{"lr": "x"}]},
                  {"groups": [{}]}],
}  # fmt: skip


@pytest.mark.parametrize("part", DAMAGE)
def test_a_checkpoint_of_nonsense_is_one_line(trained, capsys, tmp_path, part):
    for i, change in enumerate(DAMAGE[part]):
        path = tmp_path / f"{i}.safetensors"
        rewritten(trained / "run" / "last.safetensors", path, **{part: change})
        fails(capsys, "train", "--resume", path, "--data", trained / "data", "--out", tmp_path)


def test_profile(capsys, tmp_path):
    trace = tmp_path / "trace.json"
    status, out, _ = run(
        capsys, "profile", "--batch-size", 2, "--steps", 2, "--by", "module", "--trace", trace
    )
    lines = out.splitlines()
    assert status == 0 and lines[-1] == str(trace) and lines[0].startswith("module")
    assert any(line.split()[0] == "c3" for line in lines[2:])
    assert json.loads(trace.read_text())["traceEvents"]
    assert "--sort" in fails(capsys, "profile", "--sort", "colour")
    (tmp_path / "file").write_text("")
    assert "file" in fails(capsys, "profile", "--steps", 1, "--trace", tmp_path / "file" / "t.json")


def test_graph(capsys, tmp_path, monkeypatch):
    pytest.importorskip("graphviz")
    status, out, _ = run(capsys, "graph", "--out", tmp_path / "graph.dot")
    assert status == 0 and "1x6x28x28 float32" in out and "c1.weight" in out
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    status, out, _ = run(capsys, "graph", "--backward", "--batch-size", 2)
    assert status == 0 and "Conv2dWeightGrad (backward)" in out and "gradient of c1.weight" in out
    assert ".jpg" in fails(capsys, "graph", "--out", tmp_path / "graph.jpg")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install graphviz" in fails(capsys, "graph", "--out", tmp_path / "graph.svg")
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert ".[graph]" in fails(capsys, "graph", "--out", tmp_path / "graph.svg")


def test_draw(capsys, tmp_path):
    pytest.importorskip("graphviz")
    status, out, _ = run(capsys, "draw", tmp_path / "lenet.dot")
    assert status == 0 and out.strip() == str(tmp_path / "lenet.dot")
    assert "5x5 convolution, 6" in (tmp_path / "lenet.dot").read_text()
    assert ".jpg" in fails(capsys, "draw", tmp_path / "lenet.jpg")
