"""minidl: a small deep learning framework whose every kernel can be read."""

from minidl import ops, random
from minidl.function import Function
from minidl.graph import grad
from minidl.random import manual_seed
from minidl.tensor import Tensor, as_tensor, enable_grad, is_grad_enabled, no_grad, tensor

__version__ = "0.1.0"

__all__ = [
    "Function",
    "Tensor",
    "as_tensor",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "manual_seed",
    "no_grad",
    "ops",
    "profile",
    "random",
    "tensor",
]


def __getattr__(name):
    # Loaded when asked for: most programs profile nothing.
    if name == "profile":
        from minidl.profiler import profile

        return profile
    raise AttributeError(f"module 'minidl' has no attribute {name!r}")
