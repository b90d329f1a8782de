"""CUDA C++ kernels: the functions of kernels.reference on the GPU, launched by CuPy.

Sources (*.cu) and launchers of one name stand side by side. Importing this needs no CuPy; the
first launch does.
"""

from kernels.cuda.activation import relu, relu_backward
from kernels.cuda.reduce import channel_sums

__all__ = [
    "channel_sums",
    "relu",
    "relu_backward",
]
