"""Named points of different areas in one picture."""

from minidl.files import atomic_path


def save_bubbles(path, names, x, y, areas, *, x_label, y_label, title) -> None:
    """Draw a disc at each (x, y) with its name in the middle, as PNG, atomically.

    `areas` are in square points, as matplotlib's scatter takes them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, *place, area in zip(names, x, y, areas, strict=True):
        axes.scatter(*place, s=area, alpha=0.4)
        axes.annotate(name, place, ha="center", va="center", fontsize=8)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.margins(0.15)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
