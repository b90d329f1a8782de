"""Adam and AdamW."""

from kernels.dispatch import kernels_for
from minidl.array_module import get_array_module
from minidl.optim.optimizer import Optimizer, check_betas, not_negative


class Adam(Optimizer):
    """Steps of the first moment over the root of the second: Kingma and Ba 2015, algorithm 1.

    `weight_decay` is added to the gradient (L2 penalty). Raises ValueError for a setting out of
    range.
    """

    decoupled = False  # whether weight decay leaves the gradient alone

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group):
        super().check(group)
        check_betas(group["betas"])
        not_negative("eps", group["eps"])

    def update(self, parameters, group):
        by_step = {}  # parameters that went without a gradient for a while count fewer
        for values, gradient, state in parameters:
            if not state:
                zeros_like = get_array_module(values).zeros_like
                state.update(step=0, mean=zeros_like(values), square=zeros_like(values))
            state["step"] += 1
            arrays = values, gradient, state["mean"], state["square"]
            by_step.setdefault(state["step"], []).append(arrays)
        for step, arrays in by_step.items():
            kernels_for(values).optim.adam_steps(
                arrays, step, group["lr"], group["betas"], group["eps"], group["weight_decay"],
                self.decoupled,
            )  # fmt: skip


class AdamW(Adam):
    """Adam whose weight decay acts on the weights alone: Loshchilov and Hutter 2019, algorithm 2.

    Raises as `Adam`.
    """

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
