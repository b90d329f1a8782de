"""Changing a tensor's dtype or device; the gradient makes the way back."""

import numpy as np

from minidl.array_module import device_of, to_device
from minidl.function import Function
from minidl.tensor import Tensor


class Cast(Function):
    keep_inputs = False

    def __init__(self, dtype):
        self.dtype = dtype

    def forward(self, x):
        self.source = x.dtype
        return x.astype(self.dtype)

    def backward(self, grad):
        return cast(grad, self.source)


class ToDevice(Function):
    keep_inputs = False

    def __init__(self, device):
        self.device = device

    def forward(self, x):
        self.source = device_of(x)
        return to_device(x, self.device)

    def backward(self, grad):
        return to(grad, self.source)


def cast(x: Tensor, dtype) -> Tensor:
    """`x` as `dtype`; itself if it has that dtype. Raises TypeError for an unknown dtype."""
    dtype = np.dtype(dtype)
    return x if x.dtype == dtype else Cast(dtype)(x)


def to(x: Tensor, device: str) -> Tensor:
    """`x` on `device`, "cpu" or "cuda"; itself if it is there. Raises ValueError for others."""
    return x if x.device == device else ToDevice(device)(x)
