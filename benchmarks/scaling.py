"""How the time of ResNet-18 grows with the batch, the image and the threads.

One thing grows while the others are held, in a training step and in inference. What should not grow
is the time of an image with the batch, and of a pixel with the image.
"""

import json
from dataclasses import dataclass

import numpy as np

from architectures import resnet
from benchmarks.subjects import LR, MOMENTUM
from kernels import dispatch
from kernels.files import atomic_path, write_text
from kernels.study.timing import interleaved, spread
from minidl import Tensor, no_grad, optim
from minidl.ops import cross_entropy

BATCHES, SIDES = (1, 2, 4, 8, 16, 32), (64, 96, 128, 160, 192, 224)
BATCH, SIDE = 8, 224  # where something else grows
KINDS = ("training step", "inference")


@dataclass(frozen=True)
class Point:
    """Seconds of one call at one place of a curve."""

    axis: str  # "batch", "side" or "threads"
    kind: str
    batch: int
    side: int
    threads: int
    seconds: float

    @property
    def place(self) -> int:
        return getattr(self, self.axis)

    @property
    def cost(self) -> float:
        """Seconds of an image of SIDE x SIDE pixels: an image of fewer counts for a part of one."""
        return self.seconds / (self.batch * (self.side / SIDE) ** 2)


def measure(rounds: int, progress, places=None) -> list[Point]:
    """The points of all curves. `places`: {axis: values}, by default the constants above."""
    most = dispatch.get_num_threads()
    places = places or {"batch": BATCHES, "side": SIDES, "threads": range(1, most + 1)}
    model = resnet.ARCHITECTURE.build(depth=18, num_classes=1000)
    points = []
    try:
        for axis, values in places.items():
            for value in values:
                setting = {"batch": BATCH, "side": SIDE, "threads": most, axis: int(value)}
                progress(f"{axis} {value}")
                dispatch.set_num_threads(setting["threads"])
                times = interleaved(_runs(model, setting["batch"], setting["side"]), rounds)
                points += [
                    Point(axis, kind, **setting, seconds=spread(seconds).median)
                    for kind, seconds in times.items()
                ]
    finally:
        dispatch.set_num_threads(most)
    return points


def _runs(model, batch, side):
    draw = np.random.default_rng(0)
    images = Tensor(draw.random((batch, 3, side, side), np.float32))
    labels = draw.integers(0, 1000, batch)
    optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def step():
        model.train()
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    def infer():
        model.eval()
        with no_grad():
            model(images)

    return dict(zip(KINDS, (step, infer), strict=True))


def table(points: list[Point]) -> str:
    """Markdown: a row a point."""
    lines = [
        f"| ResNet-18 | batch | pixels a side | threads | ms | ms an image of {SIDE}x{SIDE} |",
        "|---" * 6 + "|",
    ]
    for p in points:
        lines.append(
            f"| {p.kind}, {p.axis} growing | {p.batch} | {p.side} | {p.threads} "
            f"| {1e3 * p.seconds:.1f} | {1e3 * p.cost:.1f} |"
        )
    return "\n".join(lines)


def save(directory, points: list[Point], about: str) -> list:
    """Write scaling.md, scaling.json and scaling.png into `directory`, each atomically."""
    paths = [directory / f"scaling.{ending}" for ending in ("md", "json", "png")]
    write_text(paths[0], f"# Scaling\n\n{about}\n\n{table(points)}\n")
    records = [{**vars(p), "seconds_an_image": p.cost} for p in points]
    write_text(paths[1], json.dumps({"machine": about, "points": records}, indent=1) + "\n")
    _draw(paths[2], points)
    return paths


def _draw(path, points):
    from matplotlib.figure import Figure

    titles = {
        "batch": f"Batch, {SIDE} pixels a side", "side": f"Pixels a side, batch {BATCH}",
        "threads": f"Threads, batch {BATCH}, {SIDE} pixels a side",
    }  # fmt: skip
    picture = Figure(figsize=(12, 4), layout="constrained")
    panels = picture.subplots(1, 3, sharey=True)
    for axes, (axis, title) in zip(panels, titles.items(), strict=True):
        for kind in KINDS:
            curve = [p for p in points if (p.axis, p.kind) == (axis, kind)]
            axes.plot([p.place for p in curve], [1e3 * p.cost for p in curve], "o-", label=kind)
        axes.set(title=title, xlabel=axis, ylim=(0, None))
        axes.set_xticks(sorted({p.place for p in points if p.axis == axis}))
    axes.legend()
    picture.axes[0].set_ylabel(f"ms an image of {SIDE} x {SIDE}")
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)
