"""The log of a run: one row an epoch, as CSV and JSON."""

import csv
import io
import json
from pathlib import Path

from minidl.files import write_text

COLUMNS = (
    "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "samples_per_s",
)  # fmt: skip


def write_history(directory, rows: list[dict]) -> None:
    """Write ``history.csv`` and ``history.json`` in `directory`, each atomically."""
    directory = Path(directory)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(directory / "history.csv", buffer.getvalue())
    write_text(directory / "history.json", json.dumps(rows, indent=1) + "\n")
