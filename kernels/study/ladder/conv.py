"""Convolution, rung by rung: the loops, then matrix products, then fewer multiplications."""

import math

import numpy as np

from kernels import cpu, reference
from kernels.cpu.conv import conv2d_blocks, is_product
from kernels.cpu.conv_direct import conv2d_direct, is_direct
from kernels.cpu.conv_flat import conv2d_flat, is_flat
from kernels.cpu.winograd import conv2d_winograd, is_winograd
from kernels.dispatch import winograd_size
from kernels.study.ladder.conv_loops import (
    UNIT,
    Convolution,
    compiled_loops,
    numpy_planes,
    parallel_tiles,
    python_loops,
    register_tile,
    row_loops,
)
from kernels.study.ladder.rungs import Ladder, Rung

# Multiply-adds that the slow versions are timed on.
_INTERPRETED, _COMPILED = 50_000, 50_000_000


def whole_columns(p: Convolution):
    """Each pixel is copied to all places where the kernel meets it (im2col), and the convolution is
    one large matrix product. BLAS's kernels are written in assembler for this very processor:
    tiles of sums that fill all of its widest registers, operands packed in the order in which they
    are read, blocks that fit each cache. The price is the column matrix, kh kw times as large as
    the image: it is written to memory and read back, and at its worst that takes longer than the
    product."""
    weight, (n, o, oh, ow) = p.weight, p.y_shape
    cols = cpu.im2col(p.x, weight.shape[2:], p.stride, p.padding)
    y = cpu.matmul(weight.reshape(o, weight[0].size), cols)
    return np.ascontiguousarray(y.reshape(o, n, oh, ow).swapaxes(0, 1))


def _house_way(way):
    """Call a function of kernels.cpu that writes its result into y."""

    def run(p):
        y = np.empty(p.y_shape, p.x.dtype)
        way(p, np.zeros(len(p.weight), p.x.dtype), y)
        return y

    run.__name__, run.__doc__ = way.__name__, way.__doc__
    return run


@_house_way
def column_blocks(p, bias, y):
    """The column matrix is never whole: a task fills some 256 KiB of columns, multiplies them while
    they lie in its core's own cache, and fills the next over them. The copies cost no memory
    traffic any more, and no core waits for another between the steps (kernels/cpu/conv.py). This
    serves every shape, stride and dilation, and is as fast as convolution gets with all of its
    multiplications."""
    conv2d_blocks(p.x, p.weight, bias, y, p.stride, p.padding, UNIT, 1)


@_house_way
def flat_columns(p, bias, y):
    """Columns filled by long stretches: in the flat memory of a padded image, a row of the column
    matrix is one stretch from an offset on, gaps between image rows included, and is copied in one
    go (kernels/cpu/conv_flat.py). Where images are small, short rows cost more than the gaps; where
    they are large, the columns outgrow the cache."""
    conv2d_flat(p.x, p.weight, bias, y, p.padding, UNIT, 1)


@_house_way
def direct_sweeps(p, bias, y):
    """No columns at all: five taps of one output map sweep over stretches of the padded planes
    (kernels/cpu/conv_direct.py). With few channels, as in first layers, a product is too thin to
    pay for columns. With many, sixteen taps a load are better than five."""
    conv2d_direct(p.x, p.weight, bias, y, p.padding, UNIT, 1)


@_house_way
def winograd_2(p, bias, y):
    """Fewer multiplications: 2x2 outputs of a 3x3 kernel from 16 products instead of 36, 2.25 times
    fewer, for some additions before and after (kernels/reference/winograd.py has the algebra). The
    sum over channels is 16 matrix products, between transforms of tiles that stay in the cache.
    Speed is still counted in the multiply-adds of the definition, and may exceed the peak."""
    conv2d_winograd(p.x, p.weight, bias, y, p.padding, 2)


@_house_way
def winograd_4(p, bias, y):
    """4x4 outputs from 36 products instead of 144: four times fewer. The transforms are larger, and
    their fractions and differences cost a decimal digit. Larger tiles yet would save little more
    and lose many digits."""
    conv2d_winograd(p.x, p.weight, bias, y, p.padding, 4)


# -- the ladder ------------------------------------------------------------------------------------

_ANY = (
    Rung("six loops in Python", python_loops, _INTERPRETED),
    Rung("NumPy, a plane at a time", numpy_planes, _COMPILED, aside=True),
    Rung("six loops compiled", compiled_loops, _COMPILED),
    Rung("columns innermost: vectors", row_loops),
    Rung("tile of sums in registers", register_tile),
    Rung("all cores", parallel_tiles),
    Rung("im2col and one product", whole_columns),
    Rung("im2col by blocks", column_blocks),
)
_STRIDE_1 = (
    Rung("flat stretches", flat_columns, aside=True),
    Rung("direct sweeps", direct_sweeps, aside=True),
)
_3X3 = (
    Rung("Winograd F(2x2, 3x3)", winograd_2),
    Rung("Winograd F(4x4, 3x3)", winograd_4, tolerance=1e-4),
)


def chosen_way(x_shape, weight_shape, y_shape, stride, padding, dilation, groups) -> str:
    """Which of its ways kernels.cpu.conv2d takes in float32."""
    if is_product(x_shape, weight_shape, padding):
        return "one product"
    if is_winograd(y_shape, weight_shape, stride, dilation, groups, np.float32):
        return f"Winograd F({winograd_size()}x{winograd_size()}, 3x3)"
    if is_flat(x_shape, weight_shape, stride, padding, dilation, groups, 4):
        return "flat stretches"
    return "direct sweeps" if is_direct(weight_shape, stride, groups) else "im2col by blocks"


def build(shape, weight, stride, padding) -> Ladder:
    """The ladder of a convolution, on normal values. ValueError where the shapes do not fit."""
    draw = np.random.default_rng(0)
    p = Convolution(
        draw.standard_normal(shape, np.float32), draw.standard_normal(weight, np.float32), stride,
        padding,
    )  # fmt: skip
    rungs = _ANY
    if stride == UNIT:
        rungs += _STRIDE_1 + (_3X3 if p.weight.shape[2:] == (3, 3) else ())
    wide = p.x.astype(np.float64), p.weight.astype(np.float64)
    y_shape = p.y_shape
    chosen = chosen_way(p.x.shape, p.weight.shape, y_shape, stride, padding, UNIT, 1)
    return Ladder(
        title=f"conv2d of {_by(shape)} with {_by(weight)}, stride {_by(stride)}, padding "
        f"{','.join(map(str, padding))}: {p.work / 1e9:.3g} G multiply-adds",
        problem=p,
        expected=reference.conv2d(*wide, None, stride, padding),
        rungs=rungs,
        flops=2 * p.work,
        traffic=p.x.nbytes + p.weight.nbytes + p.x.itemsize * math.prod(y_shape),
        note=f"kernels.cpu.conv2d takes here: {chosen}.",
    )


def _by(numbers):
    return "x".join(map(str, numbers))
