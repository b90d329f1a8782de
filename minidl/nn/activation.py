"""Layers without parameters: activations, dropout and reshaping."""

from minidl import ops
from minidl.nn.module import Module


class ReLU(Module):
    """max(x, 0), with `inplace` in the memory of x where nobody else needs that: see ops.relu."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return ops.relu(x, self.inplace)

    def extra_repr(self):
        return "inplace" if self.inplace else ""


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x):
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e ** -x)."""

    def forward(self, x):
        return ops.sigmoid(x)


class Dropout(Module):
    """In training zero each element with probability p and divide the rest by 1 - p.

    Srivastava et al. 2014. Raises ValueError for p outside [0, 1).
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), got {p}")
        self.p = p

    def forward(self, x):
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self):
        return f"p={self.p}"


class Flatten(Module):
    """Merge all axes from `start_dim` on: (N, C, H, W) -> (N, C H W)."""

    def __init__(self, start_dim: int = 1):
        super().__init__()
        self.start_dim = start_dim

    def forward(self, x):
        return ops.flatten(x, self.start_dim)


class Identity(Module):
    """x, unchanged."""

    def forward(self, x):
        return x
