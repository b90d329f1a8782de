"""Planes as padded phases: what is written, and what is left alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.planes import split_phases

small = st.integers(1, 7)


@given(small, small, small, small, small, small, st.integers(-3, 9), st.integers(-3, 9))
@settings(max_examples=300, deadline=None)
def test_phases_are_pixels_or_padding_and_nothing_else_is_written(
    h, w, sh, sw, rows, pitch, top, left
):
    """Padding that fills whole phases, and less than none, are among them."""
    plane = np.random.default_rng(0).standard_normal((h, w))
    phases, guard = sh * sw, 50
    flat = np.full(phases * rows * pitch + 2 * guard, np.nan)
    split_phases(plane, flat, guard, rows * pitch, (sh, sw, rows, pitch, sh, sw), top, left, 7.0)
    assert np.isnan(flat[:guard]).all() and np.isnan(flat[-guard:]).all()
    expected = np.full((sh, sw, rows, pitch), 7.0)
    for a, b, r, c in np.ndindex(expected.shape):
        y, x = r * sh + a - top, c * sw + b - left
        if 0 <= y < h and 0 <= x < w:
            expected[a, b, r, c] = plane[y, x]
    np.testing.assert_array_equal(flat[guard:-guard], expected.reshape(-1))
