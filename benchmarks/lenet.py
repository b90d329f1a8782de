"""A training step of LeNet-5 beside PyTorch's: forward, loss, backward, SGD with momentum."""

import numpy as np

from architectures import lenet
from benchmarks.timing import interleaved, spread
from kernels import dispatch
from minidl import Tensor, ops, optim

STEP_MACS_PER_FORWARD_MAC = 3  # forward, input gradient, weight gradient
FORWARD_MACS = 416_520


def minidl_step(images, labels):
    model = lenet.build()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        ops.cross_entropy(model(Tensor(images)), labels).backward()
        optimizer.step()

    return step


def torch_step(images, labels, threads):
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def gemm_peak() -> float:
    """GFLOP/s of one large float32 product, split over the threads by the convolution kernel."""
    from kernels.cpu import conv2d

    x = np.ones((8, 1024, 16, 16), np.float32)
    weight = np.ones((1024, 1024, 1, 1), np.float32)
    times = interleaved({"gemm": lambda: conv2d(x, weight)}, 20)["gemm"]
    return 2 * 8 * 1024 * 1024 * 256 / min(times) / 1e9


def table(batch: int, threads: int | None, rounds: int) -> str:
    """The measured table in Markdown."""
    if threads is not None:
        dispatch.set_num_threads(threads)
    threads = dispatch.get_num_threads()
    draw = np.random.default_rng(0)
    images = draw.random((batch, 1, 32, 32), np.float32)
    labels = draw.integers(0, 10, batch)
    candidates = {
        "minidl": minidl_step(images, labels),
        "PyTorch": torch_step(images, labels, threads),
    }
    times = interleaved(candidates, rounds)
    peak = gemm_peak()
    flops = 2 * STEP_MACS_PER_FORWARD_MAC * FORWARD_MACS * batch
    lines = [
        f"LeNet-5 (modern), training step, batch {batch}, float32, {threads} threads; median of "
        f"{rounds} alternating runs.",
        f"Floor: {flops / 1e9:.2f} GFLOP at the measured {peak:.0f} GFLOP/s of a large product: "
        f"{flops / peak / 1e6:.2f} ms.",
        "",
        "| | lower quartile ms | median ms | upper quartile ms |",
        "|---|---|---|---|",
    ]
    for name, seconds in times.items():
        lines.append(f"| {name} | " + " | ".join(f"{ms:.2f}" for ms in spread(seconds)) + " |")
    ratio = spread(times["minidl"])[1] / spread(times["PyTorch"])[1]
    return "\n".join([*lines, "", f"Ratio minidl / PyTorch: {ratio:.2f}"])
