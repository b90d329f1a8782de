"""Planes in scratch memory: padded, and split into phases so that every tap is contiguous.

With stride s the outputs of a row read every s-th pixel. The padded plane is therefore stored as
its **phases**: phase (a, b) holds the pixels (r sh + a, c sw + b) of it, one row after the other at
a pitch P. In that flat memory the outputs (v, u) read, for one tap, one stretch of memory: element
v P + u from the tap's own offset on. With stride 1 there is one phase, the padded plane itself.
Outputs P - OW to a row are surplus: they mix two rows, and are dropped.
"""

import numpy as np
from numba import njit

from kernels.cpu.moves import copy, copy_halved, copy_rows


def flat(array):
    """All its elements along one contiguous axis."""
    return np.ascontiguousarray(array).reshape(-1)


def grouped(x, groups):
    """(N, C, H, W) as a contiguous (N, G, C/G, H, W)."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x).reshape(n, groups, c // groups, h, w)


def phase_shape(output_size, kernel_size, stride, dilation):
    """(sh, sw, rows, P, A, B): the phases that hold all pixels that the outputs read.

    Those are the phases (a, b) with a < A and b < B; a kernel smaller than the stride skips some.
    """
    reach = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
    rows, pitch = (
        o + r // s for o, r, s in zip(output_size, reach, stride, strict=True)
    )
    used = (min(s, r + 1) for r, s in zip(reach, stride, strict=True))
    return *stride, rows, pitch, *used


def phase_taps(kernel_size, stride, dilation):
    """(kh kw, 3): the number of the phase, and the row and column in it, of each tap."""
    i, j = np.meshgrid(*(np.arange(k) * d for k, d in zip(kernel_size, dilation, strict=True)),
                       indexing="ij")  # fmt: skip
    (sh, sw), i, j = stride, i.reshape(-1), j.reshape(-1)
    used = min(sw, int(j.max()) + 1)
    return np.stack([i % sh * used + j % sw, i // sh, j // sw], axis=1)


def reaching_taps(phase, before, taps, stride, dilation):
    """(numbers, moves) of the taps that reach the pixels phase + stride r along one axis.

    They reach them from the outputs r + move. `taps`: how many there are; `before`: the padding.
    """
    places = phase + before - np.arange(taps) * dilation
    numbers = np.flatnonzero(places % stride == 0)
    return numbers, places[numbers] // stride


@njit(cache=True)
def _real(phase, stride, before, extent, size):
    """The (first, stop) elements of a phase that are pixels of the image, along one axis."""
    first = min(size, max(0, -((phase - before) // stride)))
    return first, max(first, min(size, (extent - 1 + before - phase) // stride + 1))


@njit(cache=True)
def split_phases(plane, flat, start, distance, layout, top, left, fill):
    """Write the plane (H, W), padded with `fill`, as phases of `layout` into flat memory.

    Row r of phase (a, b) begins at start + (a B + b) distance + r P.
    """
    sh, sw, rows, pitch, used_rows, used_columns = layout
    h, w = plane.shape
    source = plane.reshape(h * w)
    if sh * sw == 1 and left == 0 and pitch == w and top == 0 and rows == h:
        copy(flat, start, source, 0, h * w)
        return
    for a in range(used_rows):
        r_first, r_stop = _real(a, sh, top, h, rows)
        for b in range(used_columns):
            c_first, c_stop = _real(b, sw, left, w, pitch)
            begin = start + (a * used_columns + b) * distance
            for i in range(begin, begin + r_first * pitch):
                flat[i] = fill
            for i in range(begin + r_stop * pitch, begin + rows * pitch):
                flat[i] = fill
            for r in range(r_first, r_stop):
                line = begin + r * pitch
                for i in range(line, line + c_first):
                    flat[i] = fill
                for i in range(line + c_stop, line + pitch):
                    flat[i] = fill
                line += c_first
                pixel = (r * sh + a - top) * w + c_first * sw + b - left
                if sw == 1:
                    copy(flat, line, source, pixel, c_stop - c_first)
                elif sw == 2:
                    copy_halved(flat, line, source, pixel, c_stop - c_first)
                else:
                    for i in range(c_stop - c_first):
                        flat[line + i] = source[pixel + sw * i]


@njit(cache=True)
def place_plane(source, start, shape, target, begin, padded, before):
    """Write a plane of `shape`, from source[start] on, into a padded one, from target[begin] on.

    `before`: the padding at the top and on the left, or, where negative, the rows and columns left
    out. What is padding is not written: zeros stay there from one image to the next.
    """
    first, skip = max(0, -before[0]), max(0, -before[1])
    rows = min(shape[0], padded[0] - before[0]) - first
    columns = min(shape[1], padded[1] - before[1]) - skip
    corner = begin + (first + before[0]) * padded[1] + skip + before[1]
    pixel = start + first * shape[1] + skip
    if rows > 0 and columns == shape[1] == padded[1]:
        copy(target, corner, source, pixel, rows * columns)
    elif rows > 0 and columns > 0:
        copy_rows(target, corner, padded[1], source, pixel, shape[1], rows, columns)
