"""The transforms of Winograd's tiles, on vectors of channels: one intrinsic a matrix.

F(m x m, r x r) takes tiles of (m + r - 1) x (m + r - 1) pixels. B^T depends on the tile alone, the
other matrices on m and r: F(4x4, 3x3), F(3x3, 4x4) and F(2x2, 5x5) share the tile of 6x6 pixels,
F(2x2, 3x3) has one of 4x4. Each function takes squares of vectors as `simd.transform_tile` does,
with m ("size") and r ("taps") before. They are written out one by one, since Numba keeps no
compiled closures from one run to the next.
"""

from numba import njit

from kernels.cpu.simd import transform_tile
from kernels.reference.winograd import minimal_filtering

# The forms in use, (m, r).
FORMS = ((2, 3), (4, 3), (3, 4), (2, 5))
_M23, _M43, _M34, _M25 = (minimal_filtering(*form) for form in FORMS)
_pixels_4, _pixels_6 = (transform_tile(matrices.pixels) for matrices in (_M23, _M43))
_filters_23, _filters_43, _filters_34, _filters_25 = (
    transform_tile(matrices.filters) for matrices in (_M23, _M43, _M34, _M25)
)
_outputs_23, _outputs_43, _outputs_34, _outputs_25 = (
    transform_tile(matrices.outputs) for matrices in (_M23, _M43, _M34, _M25)
)
_grads_23, _grads_43, _grads_34, _grads_25 = (
    transform_tile(matrices.outputs.T) for matrices in (_M23, _M43, _M34, _M25)
)
_folds_23, _folds_43, _folds_34, _folds_25 = (
    transform_tile(matrices.filters.T) for matrices in (_M23, _M43, _M34, _M25)
)


@njit(cache=True)
def transform_tile_pixels(
    size, taps, source, source0, row, column, target, target0, target_row, target_column
):
    """B^T d B."""
    square = source, source0, row, column, target, target0, target_row, target_column
    if size + taps == 7:
        _pixels_6(*square)
    else:
        _pixels_4(*square)


@njit(cache=True)
def transform_tile_filters(
    size, taps, source, source0, row, column, target, target0, target_row, target_column
):
    """G g G^T."""
    square = source, source0, row, column, target, target0, target_row, target_column
    if taps == 5:
        _filters_25(*square)
    elif taps == 4:
        _filters_34(*square)
    elif size == 4:
        _filters_43(*square)
    else:
        _filters_23(*square)


@njit(cache=True)
def transform_tile_outputs(
    size, taps, source, source0, row, column, target, target0, target_row, target_column
):
    """A^T M A."""
    square = source, source0, row, column, target, target0, target_row, target_column
    if taps == 5:
        _outputs_25(*square)
    elif taps == 4:
        _outputs_34(*square)
    elif size == 4:
        _outputs_43(*square)
    else:
        _outputs_23(*square)


@njit(cache=True)
def transform_tile_grads(
    size, taps, source, source0, row, column, target, target0, target_row, target_column
):
    """A dy A^T."""
    square = source, source0, row, column, target, target0, target_row, target_column
    if taps == 5:
        _grads_25(*square)
    elif taps == 4:
        _grads_34(*square)
    elif size == 4:
        _grads_43(*square)
    else:
        _grads_23(*square)


@njit(cache=True)
def fold_tile(
    size, taps, source, source0, row, column, target, target0, target_row, target_column
):
    """G^T dU G."""
    square = source, source0, row, column, target, target0, target_row, target_column
    if taps == 5:
        _folds_25(*square)
    elif taps == 4:
        _folds_34(*square)
    elif size == 4:
        _folds_43(*square)
    else:
        _folds_23(*square)
