"""CUDA C++ kernels: the functions of kernels.reference on the GPU, launched by CuPy.

Sources (*.cu) and launchers of one name stand side by side. Importing this needs no CuPy; the
first launch does.
"""

from kernels.cuda.activation import bias_relu, bias_relu_backward, relu, relu_backward
from kernels.cuda.add import add
from kernels.cuda.batchnorm import (
    batchnorm_affine,
    batchnorm_eval,
    batchnorm_statistics,
    batchnorm_train,
)
from kernels.cuda.conv import (
    col2im,
    conv2d,
    conv2d_affine,
    conv2d_input_grad,
    conv2d_weight_grad,
    conv_transpose2d,
    im2col,
)
from kernels.cuda.dropout import dropout, dropout_mask
from kernels.cuda.loss import softmax_cross_entropy, softmax_cross_entropy_backward
from kernels.cuda.lrn import lrn, lrn_backward
from kernels.cuda.matmul import matmul
from kernels.cuda.norm_grad import batchnorm_backward, batchnorm_eval_backward
from kernels.cuda.optim import adam_step, sgd_step
from kernels.cuda.pool import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_gather,
    max_unpool2d,
)
from kernels.cuda.reduce import channel_sums

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
