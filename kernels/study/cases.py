"""Every kernel as something to measure: its arrays from a few options, and what it costs at least.

* **Operations** are the float operations of the definition, two a multiply-add, a comparison, a
  division, a root or a power one each; the formulas stand at the cases below.
* **Bytes** are the compulsory traffic: every operand read once and every result written once, each
  at its own size (switches are int32, masks bool). Caches can save no more than that; a kernel
  that passes over its data twice moves more.

Their quotient, operations a byte, is the **arithmetic intensity**.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures" (2009), section 3 (operational intensity).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels import reference
from kernels.geometry import check_conv2d, check_conv_transpose2d, check_matmul, conv_output_size

EPS = 1e-5
P, SEED, STEP = 0.5, 0, 0
LRN = 1e-4, 0.75, 2.0  # alpha, beta, k
LR, MOMENTUM, BETAS = 1e-6, 0.9, (0.9, 0.999)


@dataclass(frozen=True)
class Case:
    """A kernel and its arguments: arrays, and settings of other types, in the order it takes them.

    `flops` float operations; `written` bytes that it writes to its arguments, as optimisers do.
    """

    kernel: str
    arguments: tuple
    flops: int
    written: int = 0

    def call(self, kernels, arguments=None):
        """Run the kernel of this module of kernels."""
        return getattr(kernels, self.kernel)(*(arguments or self.arguments))

    @property
    def read(self) -> int:
        """Bytes of the operands."""
        return sum(a.nbytes for a in self.arguments if isinstance(a, np.ndarray))

    def traffic(self, results: tuple) -> int:
        """Compulsory bytes, given what a call returns, or has written to."""
        return self.read + (self.written or sum(result.nbytes for result in results))


def as_tuple(results) -> tuple:
    """The results of a kernel, be they one or several."""
    return results if isinstance(results, tuple) else (results,)


@dataclass(frozen=True)
class Spec:
    """How a kernel's case is made: ``make(kernel, **options)``, and the options' defaults."""

    make: Callable[..., Case]
    defaults: dict


def _draw(*shapes):
    """float32 values in [0.5, 1.5): positive, as variances and scales have to be."""
    rng = np.random.default_rng(0)
    return tuple(rng.random(shape, np.float32) + np.float32(0.5) for shape in shapes)


# -- products --------------------------------------------------------------------------------------


def _conv(kernel, shape, weight, stride, padding, dilation, groups):
    """2 N O OH OW (C / groups) kh kw, in all three passes.

    conv2d_affine, here with ReLU, 3 more for each result: product, sum, comparison.
    """
    settings = stride, padding, dilation, groups
    x, w = _draw(shape, weight)
    y_shape = check_conv2d(x, w, None, *settings)
    flops = 2 * math.prod(y_shape) * math.prod(weight[1:])
    dy, scale, shift = _draw(y_shape, y_shape[1:2], y_shape[1:2])
    if kernel == "conv2d_affine":
        flops += 3 * dy.size
    arguments = {
        "conv2d": (x, w, None, *settings),
        "conv2d_affine": (x, w, scale, shift, None, True, *settings),
        "conv2d_input_grad": (dy, w, shape, *settings),
        "conv2d_weight_grad": (dy, x, weight[2:], *settings),
    }
    return Case(kernel, arguments[kernel], flops)


def _conv_transpose(kernel, shape, weight, stride, padding, dilation, groups):
    """2 N C H W (O / groups) kh kw: every pixel meets every weight of its channel."""
    settings = stride, padding, (0, 0), dilation, groups
    x, w = _draw(shape, weight)
    check_conv_transpose2d(x, w, None, *settings)
    return Case(kernel, (x, w, None, *settings), 2 * math.prod(shape) * math.prod(weight[1:]))


def _matmul(kernel, shape, weight):
    """2 M K N."""
    check_matmul(shape, weight)
    return Case(kernel, _draw(shape, weight), 2 * shape[0] * shape[1] * weight[1])


def _columns(kernel, shape, kernel_size, stride, padding, dilation):
    """im2col: none. col2im: an addition for each entry of the columns, C kh kw N OH OW."""
    settings = kernel_size, stride, padding, dilation
    (x,) = _draw(images(shape))
    size = conv_output_size(*shape[2:], *settings)
    if kernel == "im2col":
        return Case(kernel, (x, *settings), 0)
    rows = shape[1] * math.prod(kernel_size)
    (cols,) = _draw((rows, shape[0] * math.prod(size)))
    return Case(kernel, (cols, shape, *settings), cols.size)


def images(shape):
    """The shape, which must be N,C,H,W. ValueError for another rank."""
    if len(shape) != 4:
        raise ValueError(f"shape must be N,C,H,W, got {','.join(map(str, shape))}")
    return shape


# -- pooling ---------------------------------------------------------------------------------------


def _max_pool(kernel, shape, kernel_size, stride, padding, dilation):
    """max_pool2d: N C OH OW (kh kw - 1) comparisons. Its gradient and unpooling:
    N C OH OW additions. Gather: 0.
    """
    settings = kernel_size, stride, padding, dilation
    (x,) = _draw(images(shape))
    y, switches = reference.max_pool2d(x, *settings)
    if kernel == "max_pool2d":
        return Case(kernel, (x, *settings), y.size * (math.prod(kernel_size) - 1))
    if kernel == "max_pool2d_backward":
        return Case(kernel, (y, switches, shape, *settings), y.size)
    if kernel == "max_unpool2d":
        return Case(kernel, (y, switches, shape[2:]), y.size)
    return Case(kernel, (x, switches), 0)


def _avg_pool(kernel, shape, kernel_size, stride, padding):
    """N C OH OW kh kw: kh kw - 1 additions and a division, or a division and kh kw additions.

    The latter is the backward pass, which has one more.
    """
    settings = kernel_size, stride, padding
    (x,) = _draw(images(shape))
    y = reference.avg_pool2d(x, *settings)
    taps = math.prod(kernel_size)
    if kernel == "avg_pool2d":
        return Case(kernel, (x, *settings), y.size * taps)
    return Case(kernel, (y, shape, *settings), y.size * (taps + 1))


def _global_avg_pool(kernel, shape):
    """N C H W: H W - 1 additions and a division a plane. Backward: N C divisions."""
    n, c, _, _ = images(shape)
    x, dy = _draw(shape, (n, c, 1, 1))
    if kernel == "global_avg_pool2d":
        return Case(kernel, (x,), x.size)
    return Case(kernel, (dy, shape), dy.size)


# -- normalisation ---------------------------------------------------------------------------------


def _lrn(kernel, shape, size):
    """2 size + 3 for each value: size squares, size additions with k, alpha, power, product.

    Backward: the power, dy, x, 1 / s, size - 1 additions, x, 2 alpha beta, a subtraction: size + 6.
    """
    x, dy = _draw(images(shape), shape)
    if kernel == "lrn":
        return Case(kernel, (x, size, *LRN), (2 * size + 3) * x.size)
    scale = reference.lrn(x, size, *LRN)[1]
    return Case(kernel, (dy, x, scale, size, *LRN), (size + 6) * x.size)


def _batchnorm(kernel, shape):
    """7 for each value in training: sum; centre, square, sum; centre, scale, shift. Evaluation: 3.

    Statistics alone: 4. The constants of evaluation: 5 a channel.

    Backward in training, 10: sum; centre, product, sum; centre, scale; the three terms of dx and
    their factor. Backward in evaluation, 5: the sums and the factor.
    """
    n, c, h, w = images(shape)
    x, dy, gamma, beta, mean, var = _draw(shape, shape, *((c,),) * 4)
    if kernel == "batchnorm_affine":
        return Case(kernel, (gamma, beta, mean, var, EPS), 5 * c)
    arguments, operations = {
        "batchnorm_statistics": ((x,), 4),
        "batchnorm_train": ((x, gamma, beta, EPS), 7),
        "batchnorm_eval": ((x, gamma, beta, mean, var, EPS), 3),
        "batchnorm_backward": ((dy, x, gamma, mean, var), 10),
        "batchnorm_eval_backward": ((dy, x, gamma, mean, var), 5),
    }[kernel]
    return Case(kernel, arguments, operations * x.size)


# -- elementwise -----------------------------------------------------------------------------------


def _elementwise(kernel, shape):
    """For each value: relu and its backward 1 comparison, with a bias an addition more; dropout 1
    product (its random bits are integers), its mask none; add and channel_sums 1 addition."""
    if len(shape) < 2 and kernel.startswith(("bias", "channel")):
        raise ValueError(f"shape must be N,C,..., got {','.join(map(str, shape))}")
    a, b = _draw(shape, shape)
    a -= np.float32(1)  # positive and negative
    (bias,) = _draw(shape[1:2])
    arguments, operations = {
        "add": ((a, b), 1),
        "relu": ((a,), 1),
        "relu_backward": ((b, a), 1),
        "bias_relu": ((a, bias), 2),
        "bias_relu_backward": ((b, a), 2),
        "channel_sums": ((a,), 1),
        "dropout": ((a, P, SEED, STEP), 1),
        "dropout_mask": ((shape, P, SEED, STEP), 0),
    }[kernel]
    return Case(kernel, arguments, operations * a.size)


def _cross_entropy(kernel, shape):
    """For each value 6: largest, difference, exponential, sum, product with the target, sum.

    Backward 8: largest, difference, exponential, sum, quotient, total, difference, factor.
    """
    if len(shape) < 2:
        raise ValueError(f"shape must be N,C,..., got {','.join(map(str, shape))}")
    logits, target = _draw(shape, shape)
    (grad,) = _draw((shape[0], *shape[2:]))
    if kernel == "softmax_cross_entropy":
        return Case(kernel, (logits, target), 6 * logits.size)
    return Case(kernel, (grad, logits, target), 8 * logits.size)


def _step(kernel, shape):
    """For each value 4 by SGD with momentum: momentum v + g, values - lr v. By Adam 13: 3 for the
    mean, 4 for the square, 6 for the step. They write the values and the moments in place."""
    arrays = _draw(*(shape,) * 4)
    size = arrays[0].size
    if kernel == "sgd_step":
        return Case(kernel, (*arrays[:3], LR, MOMENTUM), 4 * size, 2 * arrays[0].nbytes)
    return Case(kernel, (*arrays, 1, LR, BETAS, 1e-8), 13 * size, 3 * arrays[0].nbytes)


# -- all of them -----------------------------------------------------------------------------------

_UNIT, _ONE = (1, 1), (1, 1, 1, 1)
_MAPS = (16, 64, 56, 56)
_CONV = {
    "shape": (8, 64, 56, 56), "weight": (64, 64, 3, 3), "stride": _UNIT, "padding": _ONE,
    "dilation": _UNIT, "groups": 1,
}  # fmt: skip
_IM2COL = {
    "shape": (4, 64, 56, 56), "kernel_size": (3, 3), "stride": _UNIT, "padding": _ONE,
    "dilation": _UNIT,
}  # fmt: skip
_POOL = {"shape": _MAPS, "kernel_size": (3, 3), "stride": (2, 2), "padding": _ONE}
_FAMILIES = (
    (_conv, _CONV, ("conv2d", "conv2d_affine", "conv2d_input_grad", "conv2d_weight_grad")),
    (_conv_transpose, _CONV, ("conv_transpose2d",)),
    (_columns, _IM2COL, ("im2col", "col2im")),
    (_matmul, {"shape": (1024, 1024), "weight": (1024, 1024)}, ("matmul",)),
    (_max_pool, _POOL | {"dilation": _UNIT}, (
        "max_pool2d", "max_pool2d_backward", "max_unpool2d", "max_pool2d_gather",
    )),
    (_avg_pool, _POOL, ("avg_pool2d", "avg_pool2d_backward")),
    (_global_avg_pool, {"shape": _MAPS}, ("global_avg_pool2d", "global_avg_pool2d_backward")),
    (_lrn, {"shape": (16, 96, 55, 55), "size": 5}, ("lrn", "lrn_backward")),
    (_batchnorm, {"shape": _MAPS}, (
        "batchnorm_statistics", "batchnorm_train", "batchnorm_eval", "batchnorm_affine",
        "batchnorm_backward", "batchnorm_eval_backward",
    )),
    (_elementwise, {"shape": _MAPS}, (
        "add", "relu", "relu_backward", "bias_relu", "bias_relu_backward", "channel_sums",
        "dropout", "dropout_mask",
    )),
    (_cross_entropy, {"shape": (4096, 1000)}, (
        "softmax_cross_entropy", "softmax_cross_entropy_backward",
    )),
    (_step, {"shape": (4096, 1024)}, ("sgd_step", "adam_step")),
)  # fmt: skip
SPECS = {
    name: Spec(make, defaults) for make, defaults, names in _FAMILIES for name in names
}


def make_case(kernel: str, **options) -> Case:
    """The case of a kernel; options that are not given have the defaults of SPECS.

    Raises ValueError for shapes and settings that do not fit.
    """
    spec = SPECS[kernel]
    return spec.make(kernel, **{**spec.defaults, **options})


def formula(kernel: str) -> str:
    """How the operations of a kernel's case are counted."""
    return " ".join(SPECS[kernel].make.__doc__.split())
