"""The networks side by side: size, cost, speed on this machine, and the errors their papers report.

The errors are those of single networks on ImageNet's validation images, in percent.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from architectures import alexnet, googlenet, lenet, nin, resnet, vgg, zfnet
from minidl import Tensor, no_grad, optim
from minidl.architecture import Architecture
from minidl.summary import Summary, summary
from minidl.table import format_bytes, format_table
from minidl.visualize.bubbles import save_bubbles


@dataclass(frozen=True)
class Entry:
    """A network of the comparison; the errors are None where the paper has none on ImageNet."""

    name: str
    year: int
    depth: int
    architecture: Architecture
    options: dict
    top1: float | None = None
    top5: float | None = None
    tested: str = ""

    def build(self):
        """The full-size network, with its paper's number of classes."""
        classes = self.architecture.num_classes(**self.options)
        return self.architecture.build(num_classes=classes, **self.options)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.architecture.input_shape(**self.options)


def _resnet(depth: int, *errors) -> Entry:
    return Entry(f"ResNet-{depth}", 2015, depth, resnet.ARCHITECTURE, {"depth": depth}, *errors)


ENTRIES = (
    Entry("LeNet-5 (1998)", 1998, 7, lenet.ARCHITECTURE, {"variant": "1998"}, tested="MNIST 0.95"),
    Entry("AlexNet", 2012, 8, alexnet.ARCHITECTURE, {}, 40.7, 18.2, "table 2, 1 CNN"),
    Entry("NIN (CIFAR)", 2013, 9, nin.ARCHITECTURE, {}, tested="CIFAR-10 8.81"),
    Entry("ZFNet", 2013, 8, zfnet.ARCHITECTURE, {}, 38.4, 16.5, "table 2, 1 net"),
    Entry("VGG-16", 2014, 16, vgg.ARCHITECTURE, {"config": "D"}, 25.6, 8.1, "table 3, jitter"),
    Entry("VGG-19", 2014, 19, vgg.ARCHITECTURE, {"config": "E"}, 25.5, 8.0, "table 3, jitter"),
    Entry(
        "GoogLeNet", 2014, 22, googlenet.ARCHITECTURE, {"auxiliary": False}, None, 10.07,
        "table 3, 1 crop",
    ),
    _resnet(18, 27.88, None, "table 2, 10-crop"),
    _resnet(34, 24.52, 7.46, "table 3, 10-crop"),
    _resnet(50, 22.85, 6.71, "table 3, 10-crop"),
    _resnet(101, 21.75, 6.05, "table 3, 10-crop"),
    _resnet(152, 21.43, 5.71, "table 3, 10-crop"),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What was counted and measured of an entry; speeds in images/s, None if not measured."""

    entry: Entry
    summary: Summary
    training: float | None
    inference: float | None


def compare(entries, batch_size: int, rounds: int, measure: bool = True, progress=None):
    """A Result an entry. Speeds are medians over `rounds` batches of float32 noise.

    `progress(name)` is called before each network.
    """
    results = []
    for entry in entries:
        if progress is not None:
            progress(entry.name)
        model = entry.build()
        counted = summary(model, entry.input_shape)
        speeds = _speeds(entry, model, batch_size, rounds) if measure else (None, None)
        results.append(Result(entry, counted, *speeds))
    return results


def _speeds(entry, model, batch_size, rounds):
    """(images/s of training steps, images/s of inference)."""
    draw = np.random.default_rng(0)
    images = Tensor(draw.random((batch_size, *entry.input_shape), np.float32))
    labels = draw.integers(0, entry.architecture.num_classes(**entry.options), batch_size)
    recipe = entry.architecture.recipe(**entry.options)
    optimizer = optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def train():
        optimizer.zero_grad()
        recipe.loss(model, model(images), labels).backward()
        optimizer.step()

    def infer():
        with no_grad():
            model(images)

    model.train()
    training = batch_size / _median_seconds(train, rounds)
    model.eval()
    return training, batch_size / _median_seconds(infer, rounds)


def _median_seconds(run: Callable, rounds: int) -> float:
    run()  # compilation, and memory that is used again
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def table(results) -> str:
    """The comparison as text."""
    header = ("network", "year", "layers", "parameters", "G multiply-adds", "activations",
              "train img/s", "infer img/s", "top-1 %", "top-5 %", "the paper's test")  # fmt: skip
    rows = [
        (
            r.entry.name, r.entry.year, r.entry.depth, f"{r.summary.parameters:,}",
            f"{r.summary.multiply_adds / 1e9:.3f}", format_bytes(r.summary.activation_bytes),
            _number(r.training, ".1f"), _number(r.inference, ".1f"), _number(r.entry.top1, ".2f"),
            _number(r.entry.top5, ".2f"), r.entry.tested,
        )
        for r in results
    ]  # fmt: skip
    return "\n".join(format_table(header, rows))


def _number(value, form):
    return "-" if value is None else format(value, form)


def save_chart(path, results) -> None:
    """Top-5 accuracy against multiply-adds, bubbles as large as the parameters, as PNG.

    Networks without a top-5 error on ImageNet are left out.
    """
    shown = [r for r in results if r.entry.top5 is not None]
    save_bubbles(
        path,
        [r.entry.name for r in shown],
        [r.summary.multiply_adds / 1e9 for r in shown],
        [100 - r.entry.top5 for r in shown],
        [r.summary.parameters / 1e5 for r in shown],
        x_label="multiply-adds per image, in thousand millions",
        y_label="top-5 accuracy in percent, as the paper reports it",
        title="Accuracy against cost; area: parameters",
    )
