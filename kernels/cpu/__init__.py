"""Numba kernels: the functions of kernels.reference, compiled and parallel over the cores."""

from kernels.cpu.activation import bias_relu, bias_relu_backward, relu, relu_backward
from kernels.cpu.add import add
from kernels.cpu.avg_pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
)
from kernels.cpu.batchnorm import (
    batchnorm_affine,
    batchnorm_backward,
    batchnorm_eval,
    batchnorm_eval_backward,
    batchnorm_statistics,
    batchnorm_train,
)
from kernels.cpu.conv import (
    col2im,
    conv2d,
    conv2d_affine,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv_transpose2d,
    im2col,
)
from kernels.cpu.dropout import dropout, dropout_mask
from kernels.cpu.loss import softmax_cross_entropy, softmax_cross_entropy_backward
from kernels.cpu.lrn import lrn, lrn_backward
from kernels.cpu.matmul import matmul
from kernels.cpu.optim import adam_step, sgd_step
from kernels.cpu.pool import (
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_gather,
    max_unpool2d,
)
from kernels.cpu.reduce import channel_sums

__all__ = [
    "adam_step",
    "add",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batchnorm_affine",
    "batchnorm_backward",
    "batchnorm_eval",
    "batchnorm_eval_backward",
    "batchnorm_statistics",
    "batchnorm_train",
    "bias_relu",
    "bias_relu_backward",
    "channel_sums",
    "col2im",
    "conv2d",
    "conv2d_affine",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv_transpose2d",
    "dropout",
    "dropout_mask",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "im2col",
    "lrn",
    "lrn_backward",
    "matmul",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_gather",
    "max_unpool2d",
    "relu",
    "relu_backward",
    "sgd_step",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
]
