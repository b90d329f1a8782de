"""What the command line needs to know of a network: how to build it, train it and read it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from minidl import ops


def softmax_cross_entropy(model, outputs, labels):
    """Mean cross-entropy of logits (N, C) with integer labels (N,)."""
    return ops.cross_entropy(outputs, labels)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained by default.

    `make_optimizer(parameters, lr)`; `make_scheduler(optimizer, epochs, steps_per_epoch)` or None,
    stepped by "batch" or "epoch". Transforms are called as ``transform(images, rng)``.
    """

    epochs: int
    batch_size: int
    lr: float
    make_optimizer: Callable
    train_transform: Callable
    eval_transform: Callable
    make_scheduler: Callable | None = None
    schedule_by: str = "batch"
    clip_norm: float | None = None
    loss: Callable = softmax_cross_entropy
    # From the network's outputs to (N, C) scores whose softmax gives the class probabilities.
    scores: Callable = field(default=lambda outputs: outputs)


@dataclass(frozen=True)
class Architecture:
    """A network as the command line sees it.

    `build(num_classes, **options)` gives the module, `recipe(**options)` its Recipe and
    `input_shape` the (C, H, W) it takes. `options` are click options, passed by their names.
    """

    name: str
    title: str
    build: Callable
    recipe: Callable
    input_shape: tuple[int, int, int]
    options: tuple = ()
