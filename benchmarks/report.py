"""The figures as a table in Markdown, as JSON and as a picture."""

import json
from functools import reduce
from pathlib import Path

from benchmarks.tasks import Figure, Machine
from kernels.files import atomic_path, write_text
from kernels.study import machine
from kernels.study.ceilings import Ceilings

CANDIDATES = ("minidl", "minidl captured", "PyTorch", "PyTorch captured")
PACKAGES = ("numpy", "numba", "torch")


def taken_on(where: Machine, gpu: dict | None = None) -> dict:
    """What the figures were taken on, and when; `gpu`: what `cuda.about` told of it."""
    about = {**machine.describe(where.threads, PACKAGES), "precision": where.precision}
    return {**about, **(gpu or {})}


# -- table -----------------------------------------------------------------------------------------


def table(figures: list[Figure], about: dict, notes) -> str:
    """Everything in Markdown: the machine, a row a figure, what the columns mean."""
    ceilings = _highest(figures)
    columns = _columns(figures)
    lines = [
        f"{_gpu(about)}{machine.sentence(about, PACKAGES)}; {about['precision']}.",
        "",
        ceilings.sentence(),
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for figure in figures:
        lines.append("| " + " | ".join(cell(figure) for cell in columns.values()) + " |")
    meaning = (
        "Times: median (lower quartile to upper quartile) of turns that the candidates take one "
        "after the other in one process. Reached: the part of the ceiling that binds, arithmetic "
        "or memory."
    )
    return "\n".join([*lines, "", *(f"- {note}" for note in (meaning, *notes))])


def _highest(figures):
    return reduce(Ceilings.highest, (figure.ceilings for figure in figures))


def _gpu(about):
    if "gpu" not in about:
        return ""
    versions = f"CUDA {about['cuda']}, driver {about['driver']}, cupy {about['cupy']}"
    return f"{about['gpu']}, {versions}; beside it "


def _columns(figures):
    """{header: function of a figure}, those that are empty everywhere left out."""
    columns = {"": lambda f: f.name}
    for name in CANDIDATES:
        columns[f"{name} ms"] = lambda f, name=name: _times(f, name)
    for name in ("minidl", "minidl captured"):
        columns[name.replace("minidl", "ratio", 1)] = lambda f, name=name: _ratio(f, name)
    columns["floor ms"] = lambda f: _milliseconds(f.floor)
    columns["speed"] = speed
    columns["reached"] = lambda f: f"{f.percent:.0f} % of {f.bound}"
    for name in CANDIDATES:
        columns[f"{name} memory"] = lambda f, name=name: _memory(f, name)
    return {header: cell for header, cell in columns.items() if any(map(cell, figures))}


def _ratio(figure, name):
    ratio = figure.ratio_of(name)
    return "" if ratio is None else f"{ratio:.2f}"


def speed(figure: Figure) -> str:
    """Operations or bytes a second, whichever binds."""
    if figure.bound == "arithmetic":
        return f"{figure.flops / figure.seconds / 1e9:.1f} GFLOP/s"
    return f"{figure.traffic / figure.seconds / 1e9:.1f} GB/s"


def _times(figure, name):
    if name not in figure.times:
        return ""
    low, middle, high = map(_milliseconds, _quartiles(figure.times[name]))
    return f"{middle} ({low} to {high})"


def _milliseconds(seconds):
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _quartiles(spread):
    return spread.low, spread.median, spread.high


def _memory(figure, name):
    """In one unit, to be compared."""
    return f"{figure.memory[name] / 2**20:,.0f} MiB" if name in figure.memory else ""


# -- files -----------------------------------------------------------------------------------------


def as_dict(figures: list[Figure], about: dict, notes) -> dict:
    """All figures, in seconds, bytes and operations."""
    ceilings = _highest(figures)
    return {
        "machine": about,
        "ceilings": {"flops_per_s": ceilings.flops, "bytes_per_s": ceilings.bandwidth},
        "notes": list(notes),
        "figures": [
            {
                "name": figure.name,
                "flops": figure.flops,
                "bytes": figure.traffic,
                "floor_s": figure.floor,
                "bound": figure.bound,
                "percent_of_bound": figure.percent,
                "seconds": {n: list(_quartiles(s)) for n, s in figure.times.items()},
                "ratio": figure.ratio,
                "ratio_captured": figure.ratio_of("minidl captured"),
                "peak_memory_bytes": figure.memory,
            }
            for figure in figures
        ],
    }


def save(directory, name: str, figures: list[Figure], about: dict, notes) -> list[Path]:
    """Write NAME.md, NAME.json and NAME.png into `directory`, each atomically."""
    paths = [Path(directory) / f"{name}.{ending}" for ending in ("md", "json", "png")]
    write_text(paths[0], f"# Speed of {name}\n\n{table(figures, about, notes)}\n")
    write_text(paths[1], json.dumps(as_dict(figures, about, notes), indent=1) + "\n")
    save_chart(paths[2], figures)
    return paths


def save_chart(path, figures: list[Figure]) -> None:
    """Bars of the ratios to PyTorch; where there are none, of what is reached of the ceilings."""
    from matplotlib.figure import Figure as Picture

    compared = [figure for figure in figures if figure.ratio is not None]
    shown = compared or figures
    values = [figure.ratio if compared else figure.percent for figure in shown]
    label = "time of minidl / time of PyTorch" if compared else "% of the ceiling that binds"
    picture = Picture(figsize=(10, 1.2 + 0.22 * len(shown)), layout="constrained")
    axes = picture.subplots()
    colours = ["tab:red" if compared and value > 1 else "tab:blue" for value in values]
    bars = axes.barh([figure.name for figure in shown], values, color=colours)
    axes.bar_label(bars, fmt="%.2f" if compared else "%.0f", fontsize=7, padding=2)
    axes.axvline(1 if compared else 100, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel(label)
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)
