"""Convolution as three bilinear maps that are each other's derivatives.

For y = conv(x, w) the chain rule needs dx = input_grad(dy, w) and dw = weight_grad(dy, x). Each of
the three is linear in both of its operands, and the derivatives of each are the other two, so that
gradients of any order come from the same three kernels.
"""

from typing import NamedTuple

from kernels.dispatch import kernels_for
from kernels.geometry import padding4, pair
from minidl.function import Function
from minidl.ops.elementwise import behind_rectifier, relu, taken
from minidl.ops.rounding import is_rounded, product_operands, product_result
from minidl.tensor import Tensor, is_grad_enabled, is_traced


class ConvSettings(NamedTuple):
    """Sizes shared by a convolution and its gradients; padding is (top, bottom, left, right)."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


class Conv2d(Function):
    keep_inputs = (0, 1)

    def __init__(self, settings: ConvSettings):
        self.settings = settings

    def forward(self, x, weight, bias=None):
        return kernels_for(x).conv2d(x, weight, bias, *self.settings)

    def backward(self, grad):
        return (*self.by_operands(grad), *_bias_grad(self.needs_input_grad, grad))

    def by_operands(self, grad):
        """The gradients by x and by the weight, None for one that is not needed."""
        x, weight = self.inputs[:2]
        needs = self.needs_input_grad
        dx = Conv2dInputGrad(self.settings, x.shape)(grad, weight) if needs[0] else None
        dw = Conv2dWeightGrad(self.settings, weight.shape[2:])(grad, x) if needs[1] else None
        return dx, dw


class Conv2dReLU(Conv2d):
    """Rectified by the kernel that convolves; backward takes the bias along with the mask."""

    keep_outputs = True
    takes_grad = True

    def forward(self, x, weight, bias):
        return kernels_for(x).conv2d_affine(x, weight, None, bias, None, True, *self.settings)

    def backward(self, grad):
        (y,), needs = self.outputs, self.needs_input_grad
        dx, dbias = _behind_bias_and_rectifier(grad, y, self.grad_is_free)
        return (*self.by_operands(dx), dbias if needs[2] else None)


class Conv2dAffine(Function):
    """The kernel of `conv2d_affine`, which takes itself apart where a graph is recorded."""

    keep_inputs = False

    def __init__(self, settings: ConvSettings, rectify: bool, scaled: bool):
        self.settings = settings
        self.rectify = rectify
        self.scaled = scaled

    def forward(self, x, weight, shift, *rest):
        scale = rest[0] if self.scaled else None
        others = rest[-1] if len(rest) > self.scaled else None
        return kernels_for(x).conv2d_affine(
            x, weight, scale, shift, others, self.rectify, *self.settings
        )


class Conv2dInputGrad(Function):
    """dx from (dy, w): also the transposed convolution, without its bias."""

    def __init__(self, settings: ConvSettings, x_shape: tuple[int, int, int, int]):
        self.settings = settings
        self.x_shape = x_shape

    def forward(self, dy, weight):
        return kernels_for(dy).conv2d_input_grad(dy, weight, self.x_shape, *self.settings)

    def backward(self, grad):
        dy, weight = self.inputs
        return (
            Conv2d(self.settings)(grad, weight),
            Conv2dWeightGrad(self.settings, weight.shape[2:])(dy, grad),
        )


class Conv2dWeightGrad(Function):
    """dw from (dy, x)."""

    def __init__(self, settings: ConvSettings, kernel_size: tuple[int, int]):
        self.settings = settings
        self.kernel_size = kernel_size

    def forward(self, dy, x):
        return kernels_for(dy).conv2d_weight_grad(dy, x, self.kernel_size, *self.settings)

    def backward(self, grad):
        dy, x = self.inputs
        return (
            Conv2d(self.settings)(x, grad),
            Conv2dInputGrad(self.settings, x.shape)(dy, grad),
        )


class ConvTranspose2d(Function):
    keep_inputs = (0, 1)

    def __init__(self, settings: ConvSettings, output_padding: tuple[int, int]):
        self.settings = settings
        self.output_padding = output_padding

    def forward(self, x, weight, bias=None):
        stride, padding, dilation, groups = self.settings
        return kernels_for(x).conv_transpose2d(
            x, weight, bias, stride, padding, self.output_padding, dilation, groups
        )

    def backward(self, grad):
        x, weight = self.inputs[:2]
        needs = self.needs_input_grad
        dx = Conv2d(self.settings)(grad, weight) if needs[0] else None
        dw = Conv2dWeightGrad(self.settings, weight.shape[2:])(x, grad) if needs[1] else None
        return (dx, dw, *_bias_grad(needs, grad))


class BiasReLU(Function):
    keep_inputs = False
    keep_outputs = True
    takes_grad = True

    def forward(self, x, bias):
        return kernels_for(x).bias_relu(x, bias)

    def backward(self, grad):
        return _behind_bias_and_rectifier(grad, *self.outputs, self.grad_is_free)


def _behind_bias_and_rectifier(grad, y, inplace):
    """The gradients by x and by the bias, of y = max(x + bias, 0)."""
    if is_grad_enabled():
        dx = behind_rectifier(grad, y)
        return dx, dx.sum(axis=(0, *range(2, dx.ndim)))
    array, (out, storage) = grad._array, taken(grad, inplace)
    dx, dbias = kernels_for(array).bias_relu_backward(array, y._array, out)
    return Tensor._wrap(dx, storage), Tensor._wrap(dbias)


def _bias_grad(needs, grad):
    """The gradient of an optional third input: the sum over images and positions."""
    if len(needs) < 3:
        return ()
    if not needs[2]:
        return (None,)
    if is_grad_enabled():
        return (grad.sum(axis=(0, 2, 3)),)
    return (Tensor._wrap(kernels_for(grad._array).channel_sums(grad._array)),)


def _settings(stride, padding, dilation, groups) -> ConvSettings:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    return ConvSettings(
        pair("stride", stride), padding4("padding", padding), pair("dilation", dilation), groups
    )


def _operands(x, weight, bias):
    """The inputs without an absent bias, after checking that their dtypes agree."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    if len({t.dtype for t in operands}) > 1:
        dtypes = ", ".join(str(t.dtype) for t in operands)
        raise TypeError(f"x, weight and bias must have one dtype, got {dtypes}")
    return operands


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """2-D cross-correlation (the field's "convolution").

    x (N, C, H, W), weight (O, C/groups, kh, kw), bias (O,) or None, all of one floating dtype;
    returns (N, O, OH, OW) with OH = floor((H + top + bottom - dilation (kh - 1) - 1) / stride) + 1.
    `padding`: an int, (vertical, horizontal) or (top, bottom, left, right).

    Raises ValueError where shapes, groups or sizes do not fit, TypeError for mixed dtypes.
    """
    settings = _settings(stride, padding, dilation, groups)
    x, weight = product_operands(x, weight)
    return product_result(Conv2d(settings)(*_operands(x, weight, bias)))


def conv2d_relu(x, weight, bias, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """max(conv2d(x, weight, bias), 0) in one pass. Arguments and errors as for `conv2d`.

    Those are two operations to whom listens to them.
    """
    if is_rounded() or is_traced():
        return relu(conv2d(x, weight, bias, stride, padding, dilation, groups), inplace=True)
    settings = _settings(stride, padding, dilation, groups)
    return Conv2dReLU(settings)(*_operands(x, weight, bias))


def conv2d_affine(
    x, weight, scale, shift, others=None, rectify=False, stride=1, padding=0, dilation=1, groups=1
) -> Tensor:
    """conv2d(x, weight) scale + shift + others, and ReLU of it if `rectify`.

    scale (O,) or None for 1, shift (O,), others (N, O, OH, OW) or None; the rest as for `conv2d`.
    Where no graph is recorded that is one kernel, which reads and writes the result once. Raises as
    `conv2d`.
    """
    if is_grad_enabled() or is_rounded():
        y = conv2d(x, weight, None, stride, padding, dilation, groups)
        y = y if scale is None else y * scale.reshape(1, -1, 1, 1)
        y = y + shift.reshape(1, -1, 1, 1)
        y = y if others is None else y + others
        return relu(y, inplace=True) if rectify else y
    named = {"x": x, "weight": weight, "shift": shift, "scale": scale, "others": others}
    given = {name: t for name, t in named.items() if t is not None}
    if len({t.dtype for t in given.values()}) > 1:
        dtypes = ", ".join(f"{name} {t.dtype}" for name, t in given.items())
        raise TypeError(f"all operands must have one dtype, got {dtypes}")
    settings = _settings(stride, padding, dilation, groups)
    return Conv2dAffine(settings, bool(rectify), scale is not None)(*given.values())


def conv_transpose2d(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, dilation=1, groups=1
) -> Tensor:
    """The transpose of `conv2d`: col2im(W^T x), see Dumoulin and Visin 2016, section 4.

    x (N, C, H, W), weight (C, O/groups, kh, kw), bias (O,) or None; returns (N, O, OH, OW) with
    OH = (H - 1) stride - top - bottom + dilation (kh - 1) + output_padding + 1.

    Raises ValueError where shapes, groups or sizes do not fit, TypeError for mixed dtypes.
    """
    settings = _settings(stride, padding, dilation, groups)
    extra = pair("output_padding", output_padding, minimum=0)
    x, weight = product_operands(x, weight)
    return product_result(ConvTranspose2d(settings, extra)(*_operands(x, weight, bias)))


def bias_relu(x, bias) -> Tensor:
    """max(x + bias, 0) in one pass: x (N, C, ...), bias (C,). ValueError for other shapes."""
    return BiasReLU()(*_operands(x, bias, None))
