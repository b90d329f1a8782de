"""Convolution, rung by rung: the loops, then matrix products, then fewer multiplications."""

import math

import numpy as np
from numba import get_thread_id, njit, prange

from kernels import cpu, reference
from kernels.cpu.blas import gemm
from kernels.cpu.conv import choose
from kernels.cpu.conv_direct import conv2d_direct
from kernels.cpu.conv_gathered import conv2d_gathered
from kernels.cpu.conv_pointwise import conv2d_pointwise, is_pointwise
from kernels.cpu.conv_rows import conv2d_rows
from kernels.cpu.conv_tiles import conv2d_tiles
from kernels.cpu.epilogue import plain
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd import conv2d_winograd
from kernels.cpu.winograd_choice import winograd_outputs
from kernels.cpu.winograd_strided import conv2d_winograd_strided, taps_of
from kernels.cpu.workspace import workspace
from kernels.study.ladder.conv_loops import (
    UNIT,
    Convolution,
    compiled_loops,
    numpy_planes,
    padded_apart,
    parallel_tiles,
    python_loops,
    register_tile,
    row_loops,
)
from kernels.study.ladder.rungs import Ladder, Rung

# Multiply-adds that the slow versions are timed on.
_INTERPRETED, _COMPILED = 50_000, 50_000_000
# Columns of a block fill so much cache.
_BLOCK_BYTES = 256 << 10


def whole_columns(p: Convolution):
    """Each pixel is copied to all places where the kernel meets it (im2col), and the convolution is
    one large matrix product (kernels/cpu/matmul.py): tiles of sums that fill the widest registers
    and stay there for a hundred terms, columns packed in the order in which they are read, pieces
    that fit each cache. The price is the column matrix, kh kw times as large as the image: it is
    written to memory and read back, and at its worst that takes longer than the product."""
    weight, (n, o, oh, ow) = p.weight, p.y_shape
    cols = cpu.im2col(p.x, weight.shape[2:], p.stride, p.padding)
    y = cpu.matmul(weight.reshape(o, weight[0].size), cols)
    return np.ascontiguousarray(y.reshape(o, n, oh, ow).swapaxes(0, 1))


@njit(parallel=True, cache=True)
def _by_blocks(x, weight, y, scratch, kernel_size, row_step, height):
    """y (N, O, OH, OW) from x as of `padded_apart` and weight (O, K), `height` rows at a time."""
    images, outputs, rows, columns = y.shape
    step, depth = x.shape[3], weight.shape[1]
    bands = -(-rows // height)
    for task in prange(images * bands):
        n, band = split(task, bands)
        first, stop = chunk_bounds(band, height, rows)
        width = (stop - first) * columns
        memory = scratch[get_thread_id()]
        cols = memory[: depth * width].reshape(depth, stop - first, columns)
        out = memory[depth * width : (depth + outputs) * width].reshape(outputs, width)
        k = 0
        for c in range(x.shape[1]):
            for i in range(kernel_size[0]):
                for j in range(kernel_size[1]):
                    for v in range(first, stop):
                        line = x[n, c, v * row_step + i, j % step, j // step :]
                        column = cols[k, v - first]
                        for u in range(columns):
                            column[u] = line[u]
                    k += 1
        gemm(weight, cols.reshape(depth, width), out, False)
        for o in range(outputs):
            y[n, o, first:stop] = out[o].reshape(stop - first, columns)


def column_blocks(p: Convolution):
    """The column matrix is never whole: a task fills some 256 KiB of columns, multiplies them (by
    BLAS) while they lie in its core's own cache, and fills the next over them. The copies cost no
    memory traffic any more, and no core waits for another between the steps. They still cost
    instructions: each pixel is read and written kh kw times, and BLAS then packs it once more."""
    x, y = padded_apart(p), np.empty(p.y_shape, p.x.dtype)
    weight = p.weight.reshape(len(p.weight), -1)
    line = weight.shape[1] * y.shape[3]
    height = min(y.shape[2], max(1, _BLOCK_BYTES // (line * x.itemsize)))
    size = (weight.shape[1] + len(weight)) * height * y.shape[3]
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    weight = np.ascontiguousarray(weight)
    _by_blocks(x, weight, y, scratch, p.weight.shape[2:], p.stride[0], height)
    return y


def _house_way(way):
    """Call a function of kernels.cpu that writes its result into y, and does no more to it."""

    def run(p):
        y = np.empty(p.y_shape, p.x.dtype)
        way(p, y, plain(len(p.weight), p.x.dtype))
        return y

    run.__name__, run.__doc__ = way.__name__, way.__doc__
    return run


@_house_way
def plane_tiles(p, y, epilogue):
    """No columns at all. In the flat memory of a padded plane, row (c, i, j) of the column matrix
    lies there already, as a stretch from an offset of its own on (kernels/cpu/conv_tiles.py). So
    the product reads its right matrix from the image. It is computed in tiles as in rung 4, but
    larger and written out as vector instructions: with AVX-512, 8 output maps times 3 vectors,
    whose 24 sums stay in registers for hundreds of terms: 11 loads and no store for 24
    multiply-adds."""
    conv2d_tiles(p.x, p.weight, y, p.stride, p.padding, UNIT, 1, epilogue)


@_house_way
def gathered_tiles(p, y, epilogue):
    """The same product turned over: vectors run along the output maps, whose weights are packed
    side by side, and each pixel is broadcast from where it lies (kernels/cpu/conv_gathered.py).
    With AVX-512, 48 maps times 8 pixels, of whatever images, that meet the same taps: nothing is
    multiplied by the zeros of the padding, and nothing between the rows is computed. That is best
    where maps fill vectors, and the smaller the images are."""
    conv2d_gathered(p.x, p.weight, y, p.stride, p.padding, UNIT, 1, epilogue)


@_house_way
def row_tiles(p, y, epilogue):
    """Tiles of two vectors of pixels, each within a row, times up to eight maps, for few of them
    (kernels/cpu/conv_rows.py): no place of the tile is empty however many maps there are."""
    conv2d_rows(p.x, p.weight, y, p.padding, UNIT, 1, epilogue)


@_house_way
def image_tiles(p, y, epilogue):
    """Nothing is copied any more: a 1x1 kernel needs neither padding nor rows beyond the result's,
    so the right matrix is the image itself, and the same tiles read it where it lies
    (kernels/cpu/conv_pointwise.py). Only small images, which would not fill the vectors, and
    images of which the stride leaves pixels out are put side by side first."""
    conv2d_pointwise(p.x, p.weight, y, p.stride, 1, epilogue)


@_house_way
def direct_sweeps(p, y, epilogue):
    """No tile either: five taps of one output map sweep over stretches of the padded planes
    (kernels/cpu/conv_direct.py). Where a group has one or two output maps, as in depthwise
    convolutions, a tile of eight would be mostly empty. With more maps, it loses to tiles: sums are
    loaded and stored once in five multiply-adds."""
    conv2d_direct(p.x, p.weight, y, p.padding, UNIT, 1, epilogue)


@_house_way
def winograd_2(p, y, epilogue):
    """Fewer multiplications: 2x2 outputs of a 3x3 kernel from 16 products instead of 36, 2.25 times
    fewer, for some additions before and after (kernels/reference/winograd.py has the algebra). The
    sum over channels is 16 matrix products, between transforms of tiles that stay in the cache.
    Speed is still counted in the multiply-adds of the definition, and may exceed the peak."""
    conv2d_winograd(p.x, p.weight, y, p.padding, 2, 1, epilogue)


@_house_way
def winograd_4(p, y, epilogue):
    """4x4 outputs from 36 products instead of 144: four times fewer. The transforms are larger, and
    their fractions and differences cost a decimal digit. Larger tiles yet would save little more
    and lose many digits."""
    conv2d_winograd(p.x, p.weight, y, p.padding, 4, 1, epilogue)


@_house_way
def winograd_6(p, y, epilogue):
    """Fewer multiplications: the tile of 6x6 pixels whose transforms give 4x4 outputs of a 3x3
    kernel gives 3x3 of a 4x4 and 2x2 of a 5x5 kernel, too, with 36 products instead of 144 or 100.
    A stride deals pixels and taps into phases, each with a smaller kernel of its own at stride 1
    (kernels/cpu/winograd_strided.py): 7x7 at stride 2 is 4x4 on four times as many channels. The
    sum over channels is 36 matrix products, between transforms of tiles that stay in the cache.
    Speed is still counted in the multiply-adds of the definition, and may exceed the peak."""
    kernel, stride = p.weight.shape[2], p.stride[0]
    size = 7 - taps_of(kernel, stride)
    conv2d_winograd_strided(p.x, p.weight, y, stride, p.padding, size, 1, epilogue)


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
    Rung("tiles from padded planes", plane_tiles),
    Rung("vectors of output maps", gathered_tiles, aside=True),
)
_1X1 = (Rung("tiles from the images", image_tiles),)
_STRIDE_1 = (
    Rung("vectors within rows", row_tiles, aside=True),
    Rung("direct sweeps", direct_sweeps, aside=True),
)
_3X3 = (
    Rung("Winograd F(2x2, 3x3)", winograd_2),
    Rung("Winograd F(4x4, 3x3)", winograd_4, tolerance=1e-4),
)
_SMALL = (Rung("Winograd on tiles of 6x6", winograd_6, tolerance=1e-4),)


def chosen_way(p: Convolution) -> str:
    """Which of its ways kernels.cpu.conv2d takes."""
    way = choose(
        "y", p.y_shape, p.x.shape, p.weight.shape, p.stride, p.padding, UNIT, 1, p.x.dtype
    )
    if way == "winograd":
        taps, size = (f(p.weight.shape[2], p.stride[0]) for f in (taps_of, winograd_outputs))
        phases = "" if p.stride == UNIT else " on phases"
        return f"Winograd F({size}x{size}, {taps}x{taps}){phases}"
    return {
        "product": "one matrix product", "direct": "direct sweeps",
        "tiles": "tiles from padded planes", "pointwise": "tiles from the images",
        "gathered": "vectors of output maps", "rows": "vectors within rows",
    }[way]  # fmt: skip


def _winograd(height, width, down, across):
    """The rungs of Winograd's algorithm that apply."""
    if (height, width, down, across) == (3, 3, 1, 1):
        return _3X3
    fits = height == width and down == across and taps_of(height, down) in (3, 4, 5)
    return _SMALL if fits else ()


def build(shape, weight, stride, padding) -> Ladder:
    """The ladder of a convolution, on normal values. ValueError where the shapes do not fit."""
    draw = np.random.default_rng(0)
    p = Convolution(
        draw.standard_normal(shape, np.float32), draw.standard_normal(weight, np.float32), stride,
        padding,
    )  # fmt: skip
    rungs = _ANY + (_1X1 if is_pointwise(weight, padding) else ())
    if stride == UNIT:
        rungs += _STRIDE_1
    rungs += _winograd(*p.weight.shape[2:], *stride)
    wide = p.x.astype(np.float64), p.weight.astype(np.float64)
    return Ladder(
        title=f"conv2d of {_by(shape)} with {_by(weight)}, stride {_by(stride)}, padding "
        f"{','.join(map(str, padding))}: {p.work / 1e9:.3g} G multiply-adds",
        problem=p,
        expected=reference.conv2d(*wide, None, stride, padding),
        rungs=rungs,
        flops=2 * p.work,
        traffic=p.x.nbytes + p.weight.nbytes + p.x.itemsize * math.prod(p.y_shape),
        note=f"kernels.cpu.conv2d takes here: {chosen_way(p)}.",
    )


def _by(numbers):
    return "x".join(map(str, numbers))
