"""Planes in scratch memory: padded, and split into phases so that every tap is contiguous.

With stride s the outputs of a row read every s-th pixel. The padded plane is therefore stored as
its **phases**: phase (a, b) holds the pixels (r sh + a, c sw + b) of it, one row after the other at
a pitch P. In that flat memory the outputs (v, u) read, for one tap, one stretch of memory: element
v P + u from the tap's own offset on. With stride 1 there is one phase, the padded plane itself.
Outputs P - OW to a row are surplus: they mix two rows, and are dropped.
"""

import numpy as np
from numba import njit

from kernels.cpu.simd import copy


def phase_shape(output_size, kernel_size, stride, dilation):
    """(sh, sw, rows, P): the phases that hold all pixels that the outputs read."""
    rows, pitch = (
        size + (kernel - 1) * step // jump
        for size, kernel, jump, step in zip(output_size, kernel_size, stride, dilation, strict=True)
    )
    return *stride, rows, pitch


def tap_offsets(phases, kernel_size, dilation):
    """int64 (kh kw,): where in the phases each tap of output (0, 0) lies, in row-major order."""
    sh, sw, rows, pitch = phases
    i, j = (np.arange(k) * d for k, d in zip(kernel_size, dilation, strict=True))
    row_part = (i % sh) * (sw * rows * pitch) + i // sh * pitch
    column_part = (j % sw) * (rows * pitch) + j // sw
    return np.add.outer(row_part, column_part).reshape(-1)


@njit(inline="always")
def _real(phase, stride, before, extent, size):
    """The (first, stop) elements of a phase that are pixels of the image, along one axis."""
    first = max(0, -((phase - before) // stride))
    return min(first, size), max(first, min(size, (extent - 1 + before - phase) // stride + 1))


@njit(cache=True)
def split_phases(plane, flat, start, distance, layout, top, left, fill):
    """Write the plane (H, W), padded with `fill`, as phases of `layout` into flat memory.

    Row r of phase (a, b) begins at start + (a sw + b) distance + r P.
    """
    sh, sw, rows, pitch = layout
    h, w = plane.shape
    source = plane.reshape(h * w)
    for a in range(sh):
        r_first, r_stop = _real(a, sh, top, h, rows)
        for b in range(sw):
            c_first, c_stop = _real(b, sw, left, w, pitch)
            begin = start + (a * sw + b) * distance
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
                    for i in range(c_stop - c_first):
                        flat[line + i] = source[pixel + 2 * i]
                else:
                    for i in range(c_stop - c_first):
                        flat[line + i] = source[pixel + sw * i]
