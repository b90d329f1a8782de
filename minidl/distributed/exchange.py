"""Activations handed from rank to rank: where a network itself is spread over ranks.

Forward and backward are each other's transpose: what gathers maps in one scatters the sums of their
gradients in the other.
"""

from minidl.array_module import get_array_module
from minidl.function import Function
from minidl.tensor import Tensor


class AllGather(Function):
    keep_inputs = False

    def __init__(self, world):
        self.world = world

    def forward(self, x):
        xp = get_array_module(x)
        what = f"activations {x.shape} of the other ranks"
        parts = self.world.all_gather(xp.ascontiguousarray(x), what)
        return xp.concatenate(list(parts), axis=1)

    def backward(self, grad):
        return ReduceScatter(self.world)(grad)


class ReduceScatter(Function):
    keep_inputs = False

    def __init__(self, world):
        self.world = world

    def forward(self, x):
        xp = get_array_module(x)
        parts = xp.stack(xp.split(x, self.world.size, axis=1))
        return self.world.reduce_scatter(parts, f"gradients of activations {x.shape}")

    def backward(self, grad):
        return AllGather(self.world)(grad)


def all_gather(x: Tensor, world) -> Tensor:
    """The ranks' tensors (N, C, ...) side by side: (N, size C, ...), the same on every rank.

    Its backward adds up the gradients that all ranks have for this rank's maps. So what is
    differentiated is the sum of the ranks' losses: where all compute one and the same loss, each
    starts backward from 1 / size. Raises ValueError for an x of fewer than two axes.
    """
    if x.ndim < 2:
        raise ValueError(f"x must have shape (N, C, ...), got {x.shape}")
    return AllGather(world)(x)
