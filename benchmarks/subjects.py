"""The networks that are measured: minidl's, PyTorch's, their batch and their loss."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from architectures import alexnet, googlenet, lenet, resnet, vgg, zfnet
from minidl import Tensor, no_grad, optim
from minidl.architecture import Architecture
from minidl.capture import Captured
from minidl.nn import Module
from minidl.recompute import checkpoint_sequential

# So small that hundreds of steps on noise leave the weights where they are.
LR = 1e-6
MOMENTUM = 0.9


@dataclass(frozen=True)
class Subject:
    """A full-size network; `peer(torch_networks)` builds the same one in PyTorch.

    `network`: what `build` gives copies of, on the same device, instead of drawing new weights.
    """

    name: str
    batch: int
    architecture: Architecture
    peer: Callable
    options: dict = field(default_factory=dict)
    network: Module | None = field(default=None, compare=False, repr=False)

    @property
    def classes(self) -> int:
        return self.architecture.num_classes(**self.options)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.architecture.input_shape(**self.options)

    def build(self):
        """minidl's network."""
        if self.network is not None:
            return copy.deepcopy(self.network)
        return self.architecture.build(num_classes=self.classes, **self.options)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """A batch of noise: (images float32, labels int64)."""
        draw = np.random.default_rng(0)
        images = draw.random((self.batch, *self.input_shape), np.float32)
        return images, draw.integers(0, self.classes, self.batch)


SUBJECTS = (
    Subject("LeNet-5", 128, lenet.ARCHITECTURE, lambda peers: peers.lenet()),
    Subject("AlexNet", 16, alexnet.ARCHITECTURE, lambda peers: peers.alexnet_two_towers()),
    Subject("ZFNet", 16, zfnet.ARCHITECTURE, lambda peers: peers.zfnet()),
    Subject("VGG-16", 4, vgg.ARCHITECTURE, lambda peers: peers.VGG("D"), {"config": "D"}),
    Subject("GoogLeNet", 16, googlenet.ARCHITECTURE, lambda peers: peers.GoogLeNet()),
    Subject(
        "ResNet-18", 16, resnet.ARCHITECTURE, lambda peers: peers.ResNet(18, version="1"),
        {"depth": 18},
    ),
    Subject(
        "ResNet-50", 8, resnet.ARCHITECTURE, lambda peers: peers.ResNet(50, version="1"),
        {"depth": 50},
    ),
)  # fmt: skip


def by_name(name: str) -> Subject:
    """The subject of this name, of those in SUBJECTS."""
    return next(subject for subject in SUBJECTS if subject.name == name)


def minidl_run(
    subject: Subject, training: bool, device: str = "cpu", segments: int | None = None,
    captured: bool = False,
) -> Callable:  # fmt: skip
    """A step of minidl's network (forward, loss, backward, SGD with momentum), or inference.

    `segments`: in so many checkpointed segments, for a network that is a Sequential. `captured`:
    all but the optimiser as a CUDA graph. Otherwise the labels stay on the CPU, as in training,
    where they can be checked without waiting for the GPU.
    """
    images, labels = subject.draw()
    images = Tensor(images).to(device)
    model = subject.build().to(device)
    model.train(training)
    optimizer = optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    loss = subject.architecture.recipe(**subject.options).loss

    def forward(images):
        return checkpoint_sequential(model, segments, images) if segments else model(images)

    def gradients(images, labels):
        total = loss(model, forward(images), labels)
        total.backward()
        return total

    def step():
        optimizer.zero_grad()
        gradients(images, labels)
        optimizer.step()

    def infer():
        with no_grad():
            forward(images)

    if captured and training:
        labels = Tensor(labels).to(device)
        gradients = Captured(gradients, model.parameters())
    elif captured:
        forward = Captured(forward)
    return step if training else infer


def torch_run(
    subject: Subject, training: bool, device: str = "cpu", captured: bool = False
) -> Callable:
    """The same in PyTorch."""
    import torch

    from benchmarks import torch_networks

    images, labels = (torch.from_numpy(array).to(device) for array in subject.draw())
    model = subject.peer(torch_networks).to(device)
    model.train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def gradients():
        torch_loss(model(images), labels).backward()

    def step():
        optimizer.zero_grad()
        gradients()
        optimizer.step()

    def infer():
        with torch.no_grad():
            model(images)

    if not captured:
        return step if training else infer
    step()  # the optimiser's state is made outside of the graph
    replay = _torch_graph(gradients if training else infer, optimizer.zero_grad)

    def replayed_step():
        replay()
        optimizer.step()

    return replayed_step if training else replay


def _torch_graph(work, zero_grad):
    """What replays `work`, captured as PyTorch's documentation has it."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            zero_grad()
            work()
    torch.cuda.current_stream().wait_stream(side)
    zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(_kept_alive=work):  # whose tensors the graph reads where they lay
        graph.replay()

    return replay


def torch_loss(outputs, labels):
    """Cross-entropy, with that of auxiliary classifiers by the paper's weight."""
    from torch.nn.functional import cross_entropy

    main, *inner = outputs if isinstance(outputs, tuple) else (outputs,)
    total = cross_entropy(main, labels)
    for logits in inner:
        total = total + googlenet.AUXILIARY_WEIGHT * cross_entropy(logits, labels)
    return total


RUNS = {
    "minidl": minidl_run,
    "minidl in 6 segments": partial(minidl_run, segments=6),
    "minidl captured": partial(minidl_run, captured=True),
    "PyTorch": torch_run,
    "PyTorch captured": partial(torch_run, captured=True),
}
