"""The three implementations of the kernels, as far as they can run here."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np

from kernels import dispatch


@dataclass(frozen=True)
class Implementation:
    """A module of kernels; how NumPy arrays get to it and its arrays back; and waiting for it."""

    kernels: ModuleType
    to_device: Callable = lambda array: array
    to_host: Callable = lambda array: array
    wait: Callable[[], None] = lambda: None

    def arguments(self, arguments: tuple) -> tuple:
        """The arguments of a call, with the arrays among them copied to the device."""
        return tuple(self.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments)


def implementations() -> dict[str, Implementation | str]:
    """By name, the definition first; of one that cannot run here, the reason in a line."""
    return {
        "reference": Implementation(import_module("kernels.reference")),
        "cpu": Implementation(import_module("kernels.cpu")),
        "cuda": _cuda(),
    }


def _cuda():
    try:
        with dispatch.use("cuda"):
            pass
    except RuntimeError as error:
        return " ".join(str(error).split())
    cupy = import_module("kernels.cuda.runtime").array_module()
    return Implementation(
        import_module("kernels.cuda"), cupy.asarray, cupy.asnumpy,
        lambda: cupy.cuda.Device().synchronize(),
    )  # fmt: skip
