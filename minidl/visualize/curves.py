"""Learning curves."""

from minidl.files import atomic_path


def save_curves(path, rows: list[dict], title: str) -> None:
    """Draw loss and accuracy of train and test by epoch into a PNG file at `path`."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    losses, accuracies = figure.subplots(1, 2)
    for axes, kind in ((losses, "loss"), (accuracies, "accuracy")):
        for split in ("train", "test"):
            axes.plot(epochs, [row[f"{split}_{kind}"] for row in rows], marker=".", label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(kind)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
