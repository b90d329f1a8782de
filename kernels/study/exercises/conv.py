"""Exercises: convolution by columns, its gradients, and its transpose."""

import numpy as np

from kernels import reference
from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

# Image size and settings: different along the two axes, so that they cannot be exchanged unseen.
_SETTINGS = (
    ((4, 5), (2, 3), {}),
    ((7, 6), (3, 2), {"stride": (2, 1), "padding": (1, 0, 2, 1)}),
    ((7, 8), (2, 3), {"dilation": (2, 3), "padding": (1, 1, 1, 1)}),
    ((5, 5), (3, 3), {"stride": (2, 2), "padding": (1, 1, 1, 1)}),
    ((3, 4), (1, 1), {"stride": (1, 2)}),
)


def _im2col_cases(draw):
    for dtype in (np.float64, np.float32):
        for plane, kernel, settings in _SETTINGS:
            x = arrays(draw, dtype, (2, 3, *plane))[0]
            yield {"x": x, "kernel_size": kernel, **settings}


def _col2im_cases(draw):
    for case in _im2col_cases(draw):
        x = case.pop("x")
        cols = reference.im2col(x, **case)
        yield {"cols": arrays(draw, x.dtype, cols.shape)[0], "x_shape": x.shape, **case}


def _im2col_slopes(code, draw):
    for plane, kernel, settings in _SETTINGS:
        (x,) = arrays(draw, np.float64, (1, 2, *plane))
        (u,) = arrays(draw, np.float64, code.im2col(x, kernel, **settings).shape)
        yield (
            f"d im2col / dx ({settings})",
            lambda x, u=u, k=kernel, s=settings: (u * code.im2col(x, k, **s)).sum(), x,
            code.col2im(u, x.shape, kernel, **settings),
        )  # fmt: skip


_TURNED = Mistake(
    "what comes out with the kernel turned by 180 degrees: mathematicians' convolution. Here it is "
    "cross-correlation, tap (i, j) multiplies the pixel i rows down and j columns right.",
    {"yield i, j, rows, slice(j * dw": "yield kh - 1 - i, kw - 1 - j, rows, slice(j * dw"},
)
_NO_DILATION = Mistake(
    "what comes out without dilation: taps lie d pixels apart.",
    {"= kernel_size, stride, dilation, output_size": "= kernel_size, stride, (1, 1), output_size"},
)

IM2COL = Exercise(
    name="im2col",
    title="patches to columns, and back",
    difficulty=2,
    module="conv",
    parts={
        "im2col": Part(
            _im2col_cases, ("cols",),
            ("conv_output_size gives (OH, OW).",
             "Rows are ordered (c, i, j), columns (n, v, u): build an array of those six axes.",
             "For one tap (i, j) the pixels of all outputs are one slice of the padded image."),
        ),
        "col2im": Part(
            _col2im_cases, ("x",),
            ("The same slices, the other way round. A pixel that was copied to several columns "
             "gets the sum.",),
        ),
    },
    slopes=_im2col_slopes,
    mistakes=(
        _TURNED,
        _NO_DILATION,
        Mistake(
            "what comes out without the stride: outputs lie s pixels apart.",
            {"= kernel_size, stride, dilation, output_size":
             "= kernel_size, (1, 1), dilation, output_size"},
        ),
        Mistake(
            "what comes out where padding after the image is taken for that before it: the four "
            "are top, bottom, left, right.",
            {"top, bottom, left, right = padding": "bottom, top, right, left = padding"},
        ),
        Mistake(
            "what comes out where rows are ordered (i, j, c): the channel comes first.",
            {"np.empty((c, *kernel_size, n, oh, ow), x.dtype)":
             "np.empty((*kernel_size, c, n, oh, ow), x.dtype)",
             "cols[:, i, j] = padded": "cols[i, j] = padded"},
        ),
        Mistake(
            "what comes out where columns are ordered (v, u, n): the image comes first.",
            {"return cols.reshape(c * kernel_size[0]":
             "return np.moveaxis(cols, 3, 5).reshape(c * kernel_size[0]"},
        ),
        Mistake(
            "what comes out where overlapping patches overwrite each other: they are summed.",
            {"padded[:, :, rows, columns] += cols": "padded[:, :, rows, columns] = cols"},
        ),
    ),
)  # fmt: skip

_GROUPED = (
    (3, 4, 1, *_SETTINGS[0]),
    (4, 6, 2, *_SETTINGS[1]),
    (3, 2, 1, *_SETTINGS[2]),
    (3, 6, 3, *_SETTINGS[3]),
    (2, 5, 1, *_SETTINGS[4]),
)


def _conv_operands(draw):
    """(x, weight, bias, settings): every geometry with some number of groups, in both dtypes."""
    for dtype in (np.float64, np.float32):
        for channels, outputs, groups, plane, kernel, settings in _GROUPED:
            x, weight, bias = arrays(
                draw, dtype, (2, channels, *plane), (outputs, channels // groups, *kernel), outputs
            )
            yield x, weight, bias, {**settings, "groups": groups}


def _conv_cases(draw):
    for k, (x, weight, bias, settings) in enumerate(_conv_operands(draw)):
        yield {"x": x, "weight": weight, "bias": None if k == 0 else bias, **settings}


def _gradient_operands(draw):
    for x, weight, _, settings in _conv_operands(draw):
        y = reference.conv2d(x, weight, **settings)
        yield arrays(draw, x.dtype, y.shape)[0], x, weight, settings


def _input_grad_cases(draw):
    for dy, x, weight, settings in _gradient_operands(draw):
        yield {"dy": dy, "weight": weight, "x_shape": x.shape, **settings}


def _weight_grad_cases(draw):
    for dy, x, weight, settings in _gradient_operands(draw):
        yield {"dy": dy, "x": x, "kernel_size": weight.shape[2:], **settings}


def _conv_slopes(code, draw):
    for dy, x, weight, settings in _gradient_operands(draw):
        if x.dtype == np.float64:
            yield (
                f"d conv2d / dx ({settings})",
                lambda x, w=weight, u=dy, s=settings: (u * code.conv2d(x, w, **s)).sum(), x,
                code.conv2d_input_grad(dy, weight, x.shape, **settings),
            )  # fmt: skip
            yield (
                f"d conv2d / dweight ({settings})",
                lambda w, x=x, u=dy, s=settings: (u * code.conv2d(x, w, **s)).sum(), weight,
                code.conv2d_weight_grad(dy, x, weight.shape[2:], **settings),
            )  # fmt: skip


_NO_BIAS = Mistake("what comes out without the bias.", {"y += bias[:, None, None]": "pass"})

CONV2D = Exercise(
    name="conv2d",
    title="convolution with groups, and both gradients",
    difficulty=3,
    module="conv",
    given=("im2col", "col2im"),
    parts={
        "conv2d": Part(
            _conv_cases, ("y",),
            ("im2col and col2im are given. Begin with groups = 1.",
             "The product has rows of channels, (O, N OH OW): the image is its second axis.",
             "With groups, reshape to a stack of blocks: @ multiplies stacks."),
        ),
        "conv2d_input_grad": Part(
            _input_grad_cases, ("dx",), ("dcols = W^T dy, and col2im. dy needs channels first.",)
        ),
        "conv2d_weight_grad": Part(
            _weight_grad_cases, ("dW",), ("dW = dy cols^T, a sum over images and positions.",)
        ),
    },
    slopes=_conv_slopes,
    mistakes=(
        _TURNED,
        _NO_DILATION,
        _NO_BIAS,
        Mistake(
            "what comes out without padding.",
            {"n, o, oh, ow = check_conv2d(x, weight, bias, stride, padding,":
             "n, o, oh, ow = check_conv2d(x, weight, bias, stride, (0, 0, 0, 0),",
             "im2col(x, weight.shape[2:], stride, padding,":
             "im2col(x, weight.shape[2:], stride, (0, 0, 0, 0),"},
        ),
        Mistake(
            "what comes out without the stride: outputs lie s pixels apart.",
            {"n, o, oh, ow = check_conv2d(x, weight, bias, stride,":
             "n, o, oh, ow = check_conv2d(x, weight, bias, (1, 1),",
             "im2col(x, weight.shape[2:], stride,": "im2col(x, weight.shape[2:], (1, 1),"},
        ),
        Mistake(
            "what comes out when the product is read as (N, O, OH, OW): its rows are channels, so "
            "reshape to (O, N, OH, OW) and swap.",
            {"y.reshape(o, n, oh, ow).swapaxes(0, 1)": "y.reshape(n, o, oh, ow)"},
        ),
        Mistake(
            "what comes out when the groups' outputs are interleaved: first come all of group 0.",
            {"y.reshape(o, n, oh, ow)": "y.swapaxes(0, 1).reshape(o, n, oh, ow)"},
        ),
        Mistake(
            "what comes out when dy (N, O, OH, OW) is reshaped to (O, N OH OW) without a swap.",
            {"return y.swapaxes(0, 1).reshape(y.shape[1]": "return y.reshape(y.shape[1]"},
        ),
        Mistake(
            "the mean over the images: a weight's gradient is the sum over all its uses.",
            {"return dw.reshape(weight_shape)": "return dw.reshape(weight_shape) / dy.shape[0]"},
        ),
    ),
)  # fmt: skip

_TRANSPOSED = (
    (3, 4, 1, (3, 4), (2, 3), {}),
    (4, 6, 2, (3, 2), (3, 2), {"stride": (2, 2), "padding": (1, 0, 0, 1)}),
    (2, 3, 1, (3, 3), (3, 3), {"stride": (2, 3), "padding": (1,) * 4, "output_padding": (1, 2)}),
    (3, 3, 3, (3, 2), (2, 2), {"dilation": (2, 3)}),
)


def _transpose_cases(draw):
    for dtype in (np.float64, np.float32):
        for channels, outputs, groups, plane, kernel, settings in _TRANSPOSED:
            x, weight, bias = arrays(
                draw, dtype, (2, channels, *plane), (channels, outputs // groups, *kernel), outputs
            )
            yield {"x": x, "weight": weight, "bias": bias, **settings, "groups": groups}


CONV_TRANSPOSE2D = Exercise(
    name="conv_transpose2d",
    title="transposed convolution",
    difficulty=2,
    module="conv",
    given=("conv2d_input_grad",),
    parts={
        "conv_transpose2d": Part(
            _transpose_cases, ("y",),
            ("It is conv2d_input_grad under another name, which is given. What is the shape of y?",
             "OH = (H - 1) stride - top - bottom + dilation (kh - 1) + output_padding + 1.",
             "Without conv2d_input_grad it is a fine exercise too: every pixel of x paints a "
             "kernel, where they overlap they add up."),
        ),
    },
    mistakes=(
        _TURNED,
        _NO_BIAS,
        Mistake(
            "what comes out when output_padding is ignored: it adds rows and columns at the end.",
            {"x, weight, bias, stride, padding, output_padding, dilation, groups\n":
             "x, weight, bias, stride, padding, (0, 0), dilation, groups\n"},
        ),
        Mistake(
            "what comes out without padding: here it crops the result.",
            {"x, weight, bias, stride, padding, output_padding, dilation, groups\n":
             "x, weight, bias, stride, (0, 0, 0, 0), output_padding, dilation, groups\n",
             "_add_bias(conv2d_input_grad(x, weight, y_shape, stride, padding,":
             "_add_bias(conv2d_input_grad(x, weight, y_shape, stride, (0, 0, 0, 0),"},
        ),
        Mistake(
            "what comes out when groups share one kernel: group g has weights of its own.",
            {"return weight.reshape(groups, o // groups, c * kh * kw)":
             "return np.repeat(weight[: o // groups].reshape(1, -1, c * kh * kw), groups, 0)"},
        ),
    ),
)  # fmt: skip

EXERCISES = (IM2COL, CONV2D, CONV_TRANSPOSE2D)
