"""Normalisation layers."""

import numpy as np

from minidl import ops
from minidl.nn.linear import positive_int
from minidl.nn.module import Module, Parameter
from minidl.tensor import Tensor


class BatchNorm2d(Module):
    """Batch normalisation of (N, num_features, H, W), with running statistics for evaluation.

    Ioffe and Szegedy 2015; see `minidl.ops.batch_norm` for the formula and the errors. Buffers:
    running_mean, running_var and num_batches_tracked.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.num_features = positive_int("num_features", num_features)
        if eps < 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.eps = eps
        self.momentum = momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, np.float32)))
        self.register_buffer("running_var", Tensor(np.ones(num_features, np.float32)))
        self.register_buffer("num_batches_tracked", Tensor(np.zeros((), np.int64)))

    def forward(self, x, others=None, rectify=False):
        y = ops.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps, others, rectify,
        )  # fmt: skip
        if self.training:
            with self.num_batches_tracked.mutate() as count:
                count += 1
        return y

    def affine(self):
        """(scale, shift), Tensors (num_features,): in evaluation y = x scale + shift."""
        return ops.batch_norm_affine(
            self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )

    def extra_repr(self):
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class LocalResponseNorm(Module):
    """x / (k + alpha' sum of squares over `size` channels) ** beta, alpha' = alpha / size.

    Krizhevsky et al. 2012, section 3.3, whose alpha is not divided: ``size_normalized=False``.
    """

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1.0, size_normalized=True):
        super().__init__()
        self.size = positive_int("size", size)
        self.alpha = alpha
        self.beta = beta
        self.k = k
        self.size_normalized = bool(size_normalized)

    def forward(self, x):
        return ops.local_response_norm(
            x, self.size, self.alpha, self.beta, self.k, self.size_normalized
        )

    def extra_repr(self):
        text = f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
        return text if self.size_normalized else text + ", size_normalized=False"
