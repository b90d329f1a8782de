"""Checkpoints: exact, validated, written whole or not at all."""

import numpy as np
import pytest

from minidl import checkpoint
from minidl.checkpoint import Checkpoint, CheckpointError

STATE = Checkpoint(
    model={"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)},
    optimizer={
        "groups": [{"lr": 0.1, "betas": [0.9, 0.99]}],
        "state": {0: {"step": 2, "mean": np.ones((2, 3), np.float32)}, 3: {"step": 1}},
    },
    about={"architecture": "x", "class_names": ["0", "1"]},
    progress={"epoch": 3, "rows": [{"loss": 0.1}]},
)


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "c.safetensors"
    checkpoint.save(path, STATE)
    loaded = checkpoint.load(path)
    assert loaded.about == STATE.about and loaded.progress == STATE.progress
    assert loaded.optimizer["groups"] == STATE.optimizer["groups"]
    assert loaded.optimizer["state"].keys() == {0, 3} and loaded.optimizer["state"][0]["step"] == 2
    for name, value in STATE.model.items():
        assert loaded.model[name].dtype == value.dtype and (loaded.model[name] == value).all()


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for raw in (b"", b"text", whole[:20], whole[:-3], whole[:30] + b"\xff" * 8 + whole[38:]):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match="c.safetensors"):
            checkpoint.load(path)
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        checkpoint.load(tmp_path / "missing")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def fail(arrays, name, metadata):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, STATE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
