"""Rectification on the GPU; the definitions stand in kernels.reference.activation."""

from kernels.cuda import runtime
from kernels.geometry import check_shape


def relu(x):
    """See kernels.reference.relu."""
    x = runtime.contiguous(x)
    y = runtime.empty(x.shape, x.dtype)
    runtime.launch_elements("activation", "relu", x.dtype, x.size, (x, y, x.size))
    return y


def relu_backward(dy, y):
    """See kernels.reference.relu_backward."""
    check_shape("dy", dy.shape, y.shape)
    dy, y = runtime.contiguous(dy), runtime.contiguous(y)
    dx = runtime.empty(dy.shape, dy.dtype)
    runtime.launch_elements("activation", "relu_backward", dy.dtype, dy.size, (dy, y, dx, dy.size))
    return dx
