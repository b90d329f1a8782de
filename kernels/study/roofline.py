"""The roofline: what a machine allows a kernel, by its arithmetic intensity.

    attainable = min(peak, intensity x bandwidth)          operations a second

Left of the ridge, where the two meet, memory sets the roof, right of it arithmetic. Source:
Williams, Waterman and Patterson, "Roofline" (2009), section 3.
"""

import math

from kernels.files import atomic_path
from kernels.study.ceilings import Ceilings

# The chart for the terminal.
_COLUMNS, _ROWS = 64, 14
# Powers of two of the intensities shown at least.
_LOWEST, _HIGHEST = -4, 10


def attainable(ceilings: Ceilings, intensity: float) -> float:
    """Operations a second under the roof."""
    return min(ceilings.flops, intensity * ceilings.bandwidth)


def _range(intensity, speeds, ceilings):
    """(exponents of 2 of the intensities, exponents of 10 of the speeds) that the chart covers."""
    middle = math.log2(intensity)
    low, high = min(_LOWEST, math.floor(middle)), max(_HIGHEST, math.ceil(middle))
    bottom = math.floor(math.log10(min(*speeds, attainable(ceilings, 2.0**low))))
    top = math.ceil(math.log10(max(*speeds, ceilings.flops)))
    return (low, high), (bottom, top)


def text_chart(ceilings: Ceilings, intensity: float, speeds: dict[str, float]) -> str:
    """The roof and the kernels under it, marked by their first letters, in characters.

    A star stands for several at one place.
    """
    (low, high), (bottom, top) = _range(intensity, speeds.values(), ceilings)
    grid = [[" "] * _COLUMNS for _ in range(_ROWS)]

    def row(speed):
        return round((top - math.log10(speed)) / (top - bottom) * (_ROWS - 1))

    for column in range(_COLUMNS):
        at = 2.0 ** (low + (high - low) * column / (_COLUMNS - 1))
        flat = ceilings.flops <= at * ceilings.bandwidth
        grid[row(attainable(ceilings, at))][column] = "-" if flat else "/"
    column = round((math.log2(intensity) - low) / (high - low) * (_COLUMNS - 1))
    for name, speed in speeds.items():
        taken = grid[row(speed)][column].strip("-/ ")
        grid[row(speed)][column] = "*" if taken else name[0].upper()
    labels = {row(10.0**power): f"{10.0 ** (power - 9):g}" for power in range(bottom, top + 1)}
    lines = [f"{labels.get(i, ''):>8} |{''.join(cells)}".rstrip() for i, cells in enumerate(grid)]
    middle = f"operations a byte (this kernel: {intensity:.3g})"
    ends = f"2^{low}", f"2^{high}"
    axis = ends[0] + middle.center(_COLUMNS - len(ends[0]) - len(ends[1])) + ends[1]
    marks = ", ".join(f"{name[0].upper()} {name}" for name in speeds)
    below = f"{'':8} +{'-' * _COLUMNS}", f"{'':9} {axis}", f"{'':9} {marks}"
    return "\n".join([f"{'GFLOP/s':>8}", *lines, *below])


def save_chart(path, title: str, intensity: float, charts: dict) -> None:
    """The same as a PNG, written atomically; `charts`: {machine: (Ceilings, speeds by name)}."""
    from matplotlib.figure import Figure

    ranges = [_range(intensity, speeds.values(), limits) for limits, speeds in charts.values()]
    (low, high), _ = ranges[0]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for style, (machine, (limits, speeds)) in zip(("-", "--"), charts.items(), strict=False):
        ridge = limits.flops / limits.bandwidth
        corners = sorted([2.0**low, min(max(ridge, 2.0**low), 2.0**high), 2.0**high])
        roof = [attainable(limits, at) / 1e9 for at in corners]
        label = (
            f"{machine}: {limits.flops / 1e9:.0f} GFLOP/s, {limits.bandwidth / 1e9:.1f} GB/s"
        )
        axes.loglog(corners, roof, color="black", linestyle=style, label=label)
        for name, speed in speeds.items():
            axes.plot(intensity, speed / 1e9, "o", label=f"{name}: {speed / 1e9:.3g} GFLOP/s")
    axes.axvline(intensity, color="tab:gray", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    bottom, top = min(r[0] for _, r in ranges), max(r[1] for _, r in ranges)
    axes.set_ylim(10.0 ** (bottom - 9), 10.0 ** (top - 9))
    axes.set_xlabel("arithmetic intensity, operations a byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(title, fontsize=10)
    axes.grid(which="major", linewidth=0.3)
    axes.legend(loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
