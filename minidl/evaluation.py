"""Testing a network: loss, accuracy and class probabilities, without a graph."""

import math
from contextlib import contextmanager

import numpy as np

from minidl import ops
from minidl.array_module import to_device
from minidl.tensor import Tensor, no_grad


class Running:
    """Loss and accuracy summed over the samples seen so far; plain numbers, fit for JSON."""

    def __init__(self, loss_sum=0.0, correct=0, samples=0, top5=0):
        self.loss_sum = loss_sum
        self.correct = correct
        self.samples = samples
        self.top5 = top5

    def add(self, loss: float, correct: int, samples: int, top5: int = 0) -> None:
        """Count a batch with this mean loss."""
        self.merge(Running(loss * samples, correct, samples, top5))

    def merge(self, other: "Running") -> None:
        """Count what `other` has counted."""
        self.loss_sum += other.loss_sum
        self.correct += other.correct
        self.samples += other.samples
        self.top5 += other.top5

    @property
    def loss(self) -> float:
        return self.loss_sum / self.samples if self.samples else math.nan

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples if self.samples else math.nan


def count_correct(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> int:
    """How many rows of scores (N, C) have their label among the k largest."""
    if k == 1:
        return int((scores.argmax(axis=1) == labels).sum())
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return int((best == labels[:, None]).sum())


@contextmanager
def evaluating(model):
    """Inside, `model` is in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model, loader, loss_function, scores=lambda outputs: outputs) -> Running:
    """Loss and accuracy of `model` on a loader's batches, in evaluation mode, without a graph.

    The batches are moved to the model's device.
    """
    total = Running()
    with evaluating(model), no_grad():
        for images, labels in loader:
            outputs = model(Tensor(to_device(images, model.device)))
            loss = loss_function(model, outputs, labels).item()
            rows = to_device(scores(outputs)._array, "cpu")
            correct, top5 = count_correct(rows, labels), count_correct(rows, labels, 5)
            total.add(loss, correct, len(labels), top5)
    return total


def probabilities(model, images, scores=lambda outputs: outputs) -> np.ndarray:
    """Class probabilities (N, classes) of images (N, C, H, W), in evaluation mode."""
    with evaluating(model), no_grad():
        outputs = model(Tensor(to_device(images, model.device)))
        return to_device(ops.softmax(scores(outputs), axis=1)._array, "cpu")


def evaluate_views(model, loader, scores=lambda outputs: outputs) -> Running:
    """Accuracy of probabilities averaged over the views of each image (Krizhevsky 2012, section
    4.1); the loss is their mean negative logarithm at the label.

    The loader's batches are (views float32 (N, V, C, H, W), labels (N,)).
    """
    total = Running()
    for views, labels in loader:
        n, v = views.shape[:2]
        chances = probabilities(model, views.reshape(n * v, *views.shape[2:]), scores)
        chances = chances.reshape(n, v, -1).mean(axis=1)
        smallest = np.finfo(chances.dtype).tiny
        loss = -np.log(np.maximum(chances[np.arange(n), labels], smallest)).mean()
        correct, top5 = count_correct(chances, labels), count_correct(chances, labels, 5)
        total.add(float(loss), correct, n, top5)
    return total
