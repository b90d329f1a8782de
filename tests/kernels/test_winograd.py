"""Winograd convolution: the definition against plain convolution, the fast kernels against both."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, dispatch, reference
from kernels.cpu import winograd as fast
from kernels.cpu import winograd_weight as fast_weight
from kernels.cpu.epilogue import affine, plain
from kernels.cpu.winograd_weight import weight_grad_winograd
from kernels.reference.winograd import MATRICES
from kernels.reference.winograd import conv2d_winograd as defined

some = settings(max_examples=40, deadline=None)
sizes = st.sampled_from([2, 4])
# The largest error over the largest result in float32. VGG's and ResNet's layers come to a third.
FLOAT32_BOUND = {2: 2e-6, 4: 4e-5}
UNIT = (1, 1)


def normal(seed, shape, dtype=np.float64, layout="C"):
    """Standard normal values, C-contiguous or not."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    if layout == "F":
        return np.array(values, order="F")
    if layout == "strided":
        wide = np.empty((*shape[:-1], 2 * shape[-1]), dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values


@st.composite
def problems(draw, dtype=np.float64, most_channels=5, max_groups=1, max_padding=2, max_side=20):
    """(x, weight, bias, padding, groups), of a result that is not empty but for an empty batch."""
    groups = draw(st.integers(1, max_groups))
    padding = tuple(draw(st.integers(0, max_padding)) for _ in range(4))
    h, w = (
        draw(st.integers(max(1, 3 - before - after), max_side))
        for before, after in (padding[:2], padding[2:])
    )
    channels, outputs = (groups * draw(st.integers(1, most_channels)) for _ in range(2))
    seed, layout = draw(st.integers(0, 2**31)), draw(st.sampled_from(["C", "F", "strided"]))
    x = normal(seed, (draw(st.integers(0, 4)), channels, h, w), dtype, layout)
    weight = normal(seed + 1, (outputs, channels // groups, 3, 3), dtype, layout)
    return x, weight, normal(seed + 2, (outputs,), dtype, layout), padding, groups


def forward(x, weight, bias, padding, size, groups=1):
    """The fast forward kernel on whatever shape."""
    shape = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups).shape
    y = np.full(shape, np.nan, x.dtype)
    if y.size:
        epilogue = plain(shape[1], x.dtype, bias)
        fast.conv2d_winograd(x, weight, y, padding, size, groups, epilogue)
    return y


def input_grad(dy, weight, x_shape, padding, size, groups=1):
    """The fast gradient by the input on whatever shape."""
    dx = np.full(x_shape, np.nan, dy.dtype)
    if dx.size:
        fast.input_grad_winograd(dy, weight, dx, padding, size, groups)
    return dx


def assert_close(actual, expected, bound):
    largest = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * largest)


@pytest.mark.parametrize("size", MATRICES)
def test_one_tile_is_a_convolution(size):
    """Lavin and Gray's identity for one row: A^T [(G g) * (B^T d)]."""
    matrices = MATRICES[size]
    d, g = normal(0, (size + 2,)), normal(1, (3,))
    y = matrices.outputs @ ((matrices.filters @ g) * (matrices.pixels @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=0, atol=1e-12)


@given(problems(max_groups=3, max_padding=4), sizes)
@some
def test_the_definition_is_a_convolution(problem, size):
    x, weight, bias, padding, groups = problem
    y = defined(x, weight, bias, padding, groups, size)
    assert y.flags.c_contiguous
    expected = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)


def test_the_definition_refuses_other_kernels():
    x = np.zeros((1, 2, 8, 8))
    with pytest.raises(ValueError, match="weight must have shape"):
        defined(x, np.zeros((3, 2, 5, 5)))
    with pytest.raises(ValueError, match="size must be one of"):
        defined(x, np.zeros((3, 2, 3, 3)), size=3)


@given(problems(max_groups=3, max_padding=4, most_channels=40), sizes)
@some
def test_forward(problem, size):
    x, weight, bias, padding, groups = problem
    y = forward(x, weight, bias, padding, size, groups)
    assert_close(y, defined(x, weight, bias, padding, groups, size), 1e-11)


@given(problems(max_groups=3, max_padding=4, most_channels=40), sizes, st.booleans())
@some
def test_epilogue(problem, size, with_others):
    """Scale, shift, others and ReLU, behind a convolution by blocks as by steps."""
    x, weight, shift, padding, groups = problem
    settings_ = UNIT, padding, UNIT, groups
    scale = normal(3, shift.shape)
    y = reference.conv2d_affine(x, weight, scale, shift, None, False, *settings_)
    if not y.size:
        return
    others = normal(4, y.shape) if with_others else None
    expected = reference.conv2d_affine(x, weight, scale, shift, others, True, *settings_)
    for block_bytes in (fast._BLOCK_BYTES, 0):
        with mock.patch.object(fast, "_BLOCK_BYTES", block_bytes):
            epilogue = affine(scale, shift, others, True)
            fast.conv2d_winograd(x, weight, y, padding, size, groups, epilogue)
        assert_close(y, expected, 1e-11)


@given(problems(max_groups=3, max_padding=4, most_channels=40), sizes)
@some
def test_input_gradient(problem, size):
    """Paddings beyond 2 are among them: there the convolution of dy leaves pixels out."""
    x, weight, bias, padding, groups = problem
    dy = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    expected = reference.conv2d_input_grad(dy, weight, x.shape, UNIT, padding, UNIT, groups)
    assert_close(input_grad(dy, weight, x.shape, padding, size, groups), expected, 1e-11)


@given(problems(max_groups=3, max_padding=4, most_channels=40), sizes)
@some
def test_weight_gradient(problem, size):
    x, weight, bias, padding, groups = problem
    dy = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    expected = reference.conv2d_weight_grad(dy, x, (3, 3), UNIT, padding, UNIT, groups)
    actual = weight_grad_winograd(dy, x, weight.shape, padding, size, groups)
    assert_close(actual, expected, 1e-11)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "n, channels, height, width, outputs",
    [(1, 3, 90, 150, 2), (40, 33, 14, 23, 35), (70, 2, 30, 30, 9)],
)
def test_work_in_many_pieces(size, n, channels, height, width, outputs):
    """Blocks that end within a row of tiles, several steps, channels beyond a stretch of lanes."""
    x, weight = normal(0, (n, channels, height, width)), normal(1, (outputs, channels, 3, 3))
    padding, bias = (1, 0, 2, 1), normal(2, (outputs,))
    expected = reference.conv2d(x, weight, bias, UNIT, padding)
    for least in (1, 10**9):  # all by blocks, all by steps
        with mock.patch.multiple(fast, _MIN_BLOCK=least, STEP_TILES=100):
            y = forward(x, weight, bias, padding, size)
            assert_close(y, expected, 1e-12)
            dx = input_grad(y, weight, x.shape, padding, size)
            assert_close(dx, reference.conv2d_input_grad(y, weight, x.shape, UNIT, padding), 1e-12)
    with mock.patch.object(fast_weight, "STEP_TILES", 100):
        dw = weight_grad_winograd(y, x, weight.shape, padding, size)
    assert_close(dw, reference.conv2d_weight_grad(y, x, (3, 3), UNIT, padding), 1e-12)


@given(problems(np.float32, most_channels=64), sizes)
@some
def test_float32_error(problem, size):
    x, weight, bias, padding, _ = problem
    exact = [a.astype(np.float64) for a in (x, weight, bias)]
    expected = reference.conv2d(*exact, UNIT, padding)
    y = forward(x, weight, bias, padding, size)
    assert y.dtype == np.float32
    assert_close(y, expected, FLOAT32_BOUND[size])
    dx = input_grad(y, weight, x.shape, padding, size)
    expected = reference.conv2d_input_grad(y.astype(float), exact[1], x.shape, UNIT, padding)
    assert_close(dx, expected, FLOAT32_BOUND[size])
    dw = weight_grad_winograd(y, x, weight.shape, padding, size)
    expected = reference.conv2d_weight_grad(y.astype(float), exact[0], (3, 3), UNIT, padding)
    assert_close(dw, expected, FLOAT32_BOUND[size])


def layer(dtype=np.float32):
    """A layer for which Winograd pays: (x, weight, dy), the same values in either dtype."""
    shapes = ((2, 64, 20, 28), (128, 64, 3, 3), (2, 128, 20, 28))
    return [normal(i, shape, np.float32).astype(dtype) for i, shape in enumerate(shapes)]


def all_results(x, weight, dy):
    padding = (1, 1, 1, 1)
    y = cpu.conv2d(x, weight, None, UNIT, padding)
    dw = cpu.conv2d_weight_grad(dy, x, (3, 3), UNIT, padding)
    return y, cpu.conv2d_input_grad(dy, weight, x.shape, UNIT, padding), dw


def test_the_choice_of_size():
    """By default F(4x4, 3x3); F(2x2, 3x3) and plain sums on request; float64 by plain sums."""
    x, weight, dy = layer()
    exact = all_results(*layer(np.float64))
    errors = {}
    for size in (None, 2, 4):
        with dispatch.winograd(size):
            assert dispatch.winograd_size() == size
            pairs = zip(all_results(x, weight, dy), exact, strict=True)
            errors[size] = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
    assert dispatch.winograd_size() == 4
    for direct, two, four in zip(*errors.values(), strict=True):
        assert direct < 1e-6 and two < FLOAT32_BOUND[2] < four < FLOAT32_BOUND[4]
    with dispatch.winograd(None):
        for a, b in zip(exact, all_results(*layer(np.float64)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrong", [3, True, 4.0, "4"])
def test_other_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="size must be one of"):
        dispatch.winograd(wrong)
    assert dispatch.winograd_size() == 4


def test_where_winograd_is_chosen():
    y, weight = (4, 64, 28, 28), (64, 64, 3, 3)
    float32 = np.dtype(np.float32)
    assert fast.is_winograd("y", y, (64, 32, 3, 3), UNIT, UNIT, 2, float32)
    assert not fast.is_winograd("dw", y, weight, UNIT, UNIT, 1, float32)
    assert fast.is_winograd("dw", y, (128, 64, 3, 3), UNIT, UNIT, 1, float32)
    assert fast.is_winograd("y", y, weight, UNIT, UNIT, 1, float32)
    for other in (
        (y, weight, UNIT, UNIT, 1, np.dtype(np.float64)),
        (y, (64, 8, 3, 3), UNIT, UNIT, 8, float32),
        (y, (64, 64, 5, 5), UNIT, UNIT, 1, float32),
        (y, weight, (2, 2), UNIT, 1, float32),
        (y, weight, UNIT, (2, 2), 1, float32),
        (y, (64, 3, 3, 3), UNIT, UNIT, 1, float32),
        ((0, 64, 28, 28), weight, UNIT, UNIT, 1, float32),
    ):
        assert not fast.is_winograd("y", *other)


def test_results_do_not_depend_on_the_number_of_threads():
    many = dispatch.get_num_threads()
    if many < 2:
        pytest.skip("one thread only")
    x, weight, dy = layer()
    large = normal(3, (1, 16, 150, 150), np.float32), normal(4, (16, 16, 3, 3), np.float32)

    def everything():
        return [*all_results(x, weight, dy), cpu.conv2d(*large)]

    several = everything()
    dispatch.set_num_threads(1)
    try:
        single = everything()
    finally:
        dispatch.set_num_threads(many)
    for a, b in zip(several, single, strict=True):
        np.testing.assert_array_equal(a, b)
