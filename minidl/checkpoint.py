"""Checkpoints: everything that a run needs to go on, in one safetensors file.

Arrays lie under "model/<name>" and "optimizer/<parameter index>/<name>"; all else is JSON in the
file's metadata.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minidl.files import atomic_path

_FORMAT = "minidl-checkpoint-1"


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or belongs to something else."""


@dataclass
class Checkpoint:
    """The state of a training run.

    `model`: name -> array; `optimizer`: an optimiser's `state_dict`; `about`: what the model is
    (architecture, options, class names); `progress`: the place in the run, schedule and random
    state. The last two hold only what JSON can.
    """

    model: dict[str, np.ndarray]
    optimizer: dict = field(default_factory=lambda: {"groups": [], "state": {}})
    about: dict = field(default_factory=dict)
    progress: dict = field(default_factory=dict)


def save(path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` atomically. OSError where that fails: the old file stays."""
    from safetensors.numpy import save_file

    arrays = {f"model/{name}": np.asarray(a, order="C") for name, a in checkpoint.model.items()}
    counts = {}
    for index, entry in checkpoint.optimizer["state"].items():
        counts[index] = {k: v for k, v in entry.items() if isinstance(v, int)}
        for name, value in entry.items():
            if not isinstance(value, int):
                arrays[f"optimizer/{index}/{name}"] = np.asarray(value, order="C")
    metadata = {
        "format": _FORMAT,
        "optimizer": json.dumps({"groups": checkpoint.optimizer["groups"], "counts": counts}),
        "about": json.dumps(checkpoint.about),
        "progress": json.dumps(checkpoint.progress),
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata)


def load(path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError naming the file where it is damaged or another's.

    FileNotFoundError where there is none.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of minidl (format {_FORMAT})")
    try:
        return _assemble(arrays, metadata)
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error}") from error


def _assemble(arrays, metadata):
    optimizer = json.loads(metadata["optimizer"])
    state = {int(index): dict(entry) for index, entry in optimizer["counts"].items()}
    model = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "model":
            model[rest] = array
        else:
            index, _, entry = rest.partition("/")
            state[int(index)][entry] = array
    about, progress = json.loads(metadata["about"]), json.loads(metadata["progress"])
    if not (isinstance(about, dict) and isinstance(progress, dict)):
        raise ValueError("about and progress must be JSON objects")
    return Checkpoint(
        model=model,
        optimizer={"groups": optimizer["groups"], "state": state},
        about=about,
        progress=progress,
    )
