"""Adam and AdamW."""

import math

from minidl.array_module import get_array_module
from minidl.optim.optimizer import Optimizer, check_betas, not_negative


class Adam(Optimizer):
    """Steps of the first moment over the root of the second: Kingma and Ba 2015, algorithm 1.

    `weight_decay` is added to the gradient (L2 penalty). Raises ValueError for a setting out of
    range.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group):
        super().check(group)
        check_betas(group["betas"])
        not_negative("eps", group["eps"])

    def update(self, values, gradient, state, group):
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * values
        self.adam_step(values, gradient, state, group)

    def adam_step(self, values, gradient, state, group):
        """The step of algorithm 1, the bias corrections moved into the scalars."""
        xp = get_array_module(values)
        beta1, beta2 = group["betas"]
        if not state:
            state.update(step=0, mean=xp.zeros_like(values), square=xp.zeros_like(values))
        state["step"] += 1
        mean, square = state["mean"], state["square"]
        mean += (1 - beta1) * (gradient - mean)
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        correction1 = 1 - beta1 ** state["step"]
        correction2 = math.sqrt(1 - beta2 ** state["step"])
        denominator = xp.sqrt(square)
        denominator /= correction2
        denominator += group["eps"]
        values -= group["lr"] / correction1 * mean / denominator


class AdamW(Adam):
    """Adam whose weight decay acts on the weights alone: Loshchilov and Hutter 2019, algorithm 2.

    Raises as `Adam`.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, values, gradient, state, group):
        values *= 1 - group["lr"] * group["weight_decay"]
        self.adam_step(values, gradient, state, group)
