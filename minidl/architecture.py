"""What the command line needs to know of a network: how to build it, train it and read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from minidl import ops


class SameNames(ValueError):
    """Public weights have the names of a form, yet they are another form's."""


def softmax_cross_entropy(model, outputs, labels):
    """Mean cross-entropy of logits (N, C) with integer labels (N,)."""
    return ops.cross_entropy(outputs, labels)


@dataclass(frozen=True)
class Protocol:
    """A way of testing that looks at each image more than once.

    `transform(images, rng)` gives views (N, V, C, H, W), whose class probabilities are averaged.
    `prepare(model)` gives the module that scores them (N V, C, H, W) -> (N V, classes).
    """

    transform: Callable
    prepare: Callable = field(default=lambda model: model)
    batch_size: int = 8


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
    # Called with the model after every step of the optimiser.
    after_step: Callable | None = None
    # What `evaluate --protocol` offers besides the single view of `eval_transform`.
    protocols: Mapping[str, Protocol] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A network as the command line sees it.

    `options` are click options, passed by their names: `build(num_classes, **options)` gives the
    module, `recipe(**options)` its Recipe and `input_shape(**options)` the (C, H, W) it takes.

    A network whose paper trains it on ImageNet comes in two sizes (`has_small`): the three get an
    option `full`, True for the paper's and False for a small form that suits the bundled digits.
    `num_classes(**options)` is the paper's number of classes.

    `public_names(**options)` maps names of the module's tree to those of public weights, see
    `minidl.weights.load_into`; None where they are the same or there are none. It raises ValueError
    for a form without public weights, SameNames where those of another form could be mistaken for
    its own. `left_out(**options)` lists the prefixes of such files that a form does without.
    `warm_start(model, state)` copies what fits of another network's state, where the paper starts
    so.
    """

    name: str
    title: str
    build: Callable
    recipe: Callable
    input_shape: Callable
    options: tuple = ()
    num_classes: Callable = lambda **options: 10
    has_small: bool = False
    public_names: Callable | None = None
    left_out: Callable = lambda **options: ()
    warm_start: Callable | None = None
