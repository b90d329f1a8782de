"""Stochastic gradient descent."""

from kernels.dispatch import kernels_for
from minidl.array_module import get_array_module
from minidl.optim.optimizer import Optimizer, not_negative


class SGD(Optimizer):
    """v = momentum v + g, p -= lr v, where g = gradient + weight_decay p (PyTorch's convention).

    Nesterov's form steps by g + momentum v instead of v: Sutskever et al. 2013, section 2. The
    first step takes v = g. Raises ValueError for a negative setting, or Nesterov without momentum.
    """

    def __init__(self, params, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
        super().__init__(
            params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )

    def check(self, group):
        super().check(group)
        not_negative("momentum", group["momentum"])
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov needs a momentum above 0, got 0")

    def update(self, parameters, group):
        momentum, arrays = group["momentum"], []
        for values, gradient, state in parameters:
            if momentum and not state:
                state["velocity"] = get_array_module(values).zeros_like(values)
            arrays.append((values, gradient, state["velocity"] if momentum else None))
        kernels_for(values).optim.sgd_steps(
            arrays, group["lr"], momentum, group["nesterov"], group["weight_decay"]
        )
