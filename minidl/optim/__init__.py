"""Optimisers, learning-rate schedules and gradient clipping."""

from minidl.optim.adam import Adam, AdamW
from minidl.optim.clip import clip_grad_norm_
from minidl.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearWarmup,
    MultiStepLR,
    ReduceLROnPlateau,
    StepLR,
)
from minidl.optim.optimizer import Optimizer
from minidl.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LinearWarmup",
    "MultiStepLR",
    "Optimizer",
    "ReduceLROnPlateau",
    "StepLR",
    "clip_grad_norm_",
]
