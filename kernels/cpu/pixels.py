"""Images turned over: pixel after pixel, each with all its channels side by side.

Where the channels fill vectors, they run over lanes, however small and however padded the images.
"""

from numba import njit

from kernels.cpu.emitter import ROWS
from kernels.cpu.simd import interleave_tile, transpose_some, transpose_some_onto, transpose_tile


@njit(cache=True)
def turn(source, first, pitch, channels, run, target, start, step, width):
    """target[start + p step + c] = source[first + c pitch + p] for p < run and c < channels.

    Where the channels fill vectors, what follows may be overwritten up to a square of elements.
    """
    if channels < width:
        for c in range(channels):
            for p in range(run):
                target[start + p * step + c] = source[first + c * pitch + p]
        return
    for p in range(0, run, width):
        for c in range(0, channels, width):
            corner = first + c * pitch + p
            if corner + (width - 1) * pitch + width <= source.size:
                transpose_tile(source, corner, pitch, target, start + p * step + c, step)
            else:
                for d in range(c, min(channels, c + width)):
                    for q in range(p, min(run, p + width)):
                        target[start + q * step + d] = source[first + d * pitch + q]


@njit(cache=True)
def interleave(source, first, pitch, rows, run, target, start, width):
    """target[start + p ROWS + r] = source[first + r pitch + p] for p < run; 0 for r from rows on.

    rows <= ROWS: what a tile of products wants of its left operand.
    """
    whole = run - run % width if rows == ROWS else 0
    for p in range(0, whole, width):
        interleave_tile(source, first + p, pitch, target, start + p * ROWS)
    for p in range(whole, run):
        for r in range(ROWS):
            target[start + p * ROWS + r] = source[first + r * pitch + p] if r < rows else 0


@njit(cache=True)
def turn_image(x, first, area, shape, channels, top, left, target, start, place, width):
    """The rows from -top on of one image's planes (C, H, W), padded, as rows of pixels.

    `place`: (rows, pixels of a row, elements of a pixel). Less than no padding leaves pixels out.
    """
    h, w = shape
    rows, pitch, step = place
    lead, skip = max(0, left), max(0, -left)
    run = max(0, min(w - skip, pitch - lead))
    for r in range(rows):
        line = start + r * pitch * step
        y = r - top
        if y < 0 or y >= h or run == 0:
            target[line : line + pitch * step] = 0
            continue
        target[line : line + lead * step] = 0
        source = first + y * w + skip
        turn(x, source, area, channels, run, target, line + lead * step, step, width)
        target[line + (lead + run) * step : line + pitch * step] = 0


@njit(cache=True)
def turn_back(pixels, start, step, run, channels, y, first, area, epilogue, first_channel, width):
    """y[first + c area + p] = what `epilogue` makes of pixels[start + p step + c].

    For p < run and c < channels. The pixels and the epilogue's scale and shift, from
    `first_channel` on, are read up to whole vectors.
    """
    scale, shift, others, floor = epilogue
    for c in range(0, channels, width):
        for p in range(0, run, width):
            source, target, channel = start + p * step + c, first + c * area + p, first_channel + c
            if others.size:
                transpose_some_onto(
                    pixels, source, step, y, target, area, channels - c, run - p, scale, shift,
                    channel, others, floor,
                )  # fmt: skip
            else:
                transpose_some(
                    pixels, source, step, y, target, area, channels - c, run - p, scale, shift,
                    channel, others, floor,
                )  # fmt: skip
