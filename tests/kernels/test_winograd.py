"""Winograd convolution: the definition against plain convolution, the fast kernels against both."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, dispatch, reference
from kernels.cpu import winograd as fast
from kernels.cpu import winograd_strided as strided
from kernels.cpu import winograd_weight as fast_weight
from kernels.cpu.epilogue import affine, plain
from kernels.cpu.winograd_choice import is_winograd, winograd_outputs
from kernels.cpu.winograd_tiles import FORMS
from kernels.cpu.winograd_weight import weight_grad_winograd
from kernels.reference.winograd import MATRICES, minimal_filtering
from kernels.reference.winograd import conv2d_winograd as defined

some = settings(max_examples=40, deadline=None)
# (m, r) of F(m x m, r x r).
forms = st.sampled_from(FORMS)
# The largest error over the largest result in float32, by the tile. VGG's and ResNet's layers come
# to a third.
FLOAT32_BOUND = {4: 2e-6, 6: 4e-5}
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
def problems(
    draw, dtype=np.float64, most_channels=5, max_groups=1, max_padding=2, max_side=20, stride=1
):
    """(x, weight, bias, padding, groups, m), of a result that is not empty but for an empty batch.

    At stride 1 the kernel is r x r; at others of a size that has r taps in a phase.
    """
    m, r = draw(forms)
    kernel = draw(st.integers((r - 1) * stride + 1, r * stride))
    groups = draw(st.integers(1, max_groups))
    padding = tuple(draw(st.integers(0, max_padding)) for _ in range(4))
    h, w = (
        draw(st.integers(max(1, kernel - before - after), max(kernel, max_side)))
        for before, after in (padding[:2], padding[2:])
    )
    channels, outputs = (groups * draw(st.integers(1, most_channels)) for _ in range(2))
    seed, layout = draw(st.integers(0, 2**31)), draw(st.sampled_from(["C", "F", "strided"]))
    x = normal(seed, (draw(st.integers(0, 4)), channels, h, w), dtype, layout)
    weight = normal(seed + 1, (outputs, channels // groups, kernel, kernel), dtype, layout)
    return x, weight, normal(seed + 2, (outputs,), dtype, layout), padding, groups, m


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


@pytest.mark.parametrize("size, taps", [*FORMS, (3, 2), (5, 2)])
def test_one_tile_is_a_convolution(size, taps):
    """Lavin and Gray's identity for one row: A^T [(G g) * (B^T d)]."""
    matrices = minimal_filtering(size, taps)
    d, g = normal(0, (size + taps - 1,)), normal(1, (taps,))
    y = matrices.outputs @ ((matrices.filters @ g) * (matrices.pixels @ d))
    np.testing.assert_allclose(y, np.correlate(d, g, "valid"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", MATRICES)
def test_the_matrices_of_the_paper(size):
    for made, written in zip(minimal_filtering(size, 3), MATRICES[size], strict=True):
        np.testing.assert_allclose(made, written, rtol=1e-15)


@given(problems(max_groups=3, max_padding=4))
@some
def test_the_definition_is_a_convolution(problem):
    x, weight, bias, padding, groups, size = problem
    y = defined(x, weight, bias, padding, groups, size)
    assert y.flags.c_contiguous
    expected = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)


def test_the_definition_refuses_other_kernels():
    x = np.zeros((1, 2, 8, 8))
    with pytest.raises(ValueError, match="weight must have shape"):
        defined(x, np.zeros((3, 2, 5, 3)))
    for taps, size in ((3, 3), (5, 4), (6, 1), (1, 4)):
        with pytest.raises(ValueError, match=f"with {taps} taps; got {size}"):
            defined(x, np.zeros((3, 2, taps, taps)), size=size)


@given(problems(max_groups=3, max_padding=4, most_channels=40))
@some
def test_forward(problem):
    x, weight, bias, padding, groups, size = problem
    y = forward(x, weight, bias, padding, size, groups)
    assert_close(y, defined(x, weight, bias, padding, groups, size), 1e-11)


@given(problems(max_groups=3, max_padding=4, most_channels=40), st.booleans())
@some
def test_epilogue(problem, with_others):
    """Scale, shift, others and ReLU, behind a convolution by blocks as by steps."""
    x, weight, shift, padding, groups, size = problem
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


@given(problems(max_groups=3, max_padding=4, most_channels=40))
@some
def test_input_gradient(problem):
    """Paddings beyond the kernel are among them: there the convolution of dy leaves pixels out."""
    x, weight, bias, padding, groups, size = problem
    dy = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    expected = reference.conv2d_input_grad(dy, weight, x.shape, UNIT, padding, UNIT, groups)
    assert_close(input_grad(dy, weight, x.shape, padding, size, groups), expected, 1e-11)


@given(problems(max_groups=3, max_padding=4, most_channels=40), st.booleans())
@some
def test_weight_gradient(problem, in_pieces):
    x, weight, bias, padding, groups, size = problem
    dy = reference.conv2d(x, weight, bias, UNIT, padding, UNIT, groups)
    if not dy.size:
        return
    expected = reference.conv2d_weight_grad(dy, x, weight.shape[2:], UNIT, padding, UNIT, groups)
    with mock.patch.object(fast_weight, "_PIECE_BYTES", 10**9 if in_pieces else 0):
        actual = weight_grad_winograd(dy, x, weight.shape, padding, size, groups)
    assert_close(actual, expected, 1e-11)


@st.composite
def strided_problems(draw, **limits):
    stride = draw(st.integers(2, 4))
    return stride, draw(problems(stride=stride, **limits))


@given(strided_problems(max_groups=2, max_padding=4, most_channels=9, max_side=30))
@some
def test_strides(problem):
    """Rows that no output reads, and padding that fills whole phases, are among them."""
    stride, (x, weight, bias, padding, groups, size) = problem
    steps = (stride, stride), padding, UNIT, groups
    expected = reference.conv2d(x, weight, bias, *steps)
    if not expected.size:
        return
    y, dx = np.full(expected.shape, np.nan), np.full(x.shape, np.nan)
    epilogue = plain(len(weight), x.dtype, bias)
    strided.conv2d_winograd_strided(x, weight, y, stride, padding, size, groups, epilogue)
    assert_close(y, expected, 1e-11)
    dy = normal(3, y.shape)
    strided.input_grad_winograd_strided(dy, weight, dx, stride, padding, size, groups)
    assert_close(dx, reference.conv2d_input_grad(dy, weight, x.shape, *steps), 1e-11)
    dw = strided.weight_grad_winograd_strided(dy, x, weight.shape, stride, padding, size, groups)
    expected = reference.conv2d_weight_grad(dy, x, weight.shape[2:], *steps)
    assert_close(dw, expected, 1e-11)


@pytest.mark.parametrize("size, taps", FORMS)
@pytest.mark.parametrize(
    "n, channels, height, width, outputs",
    [(1, 3, 90, 150, 2), (40, 33, 14, 23, 35), (70, 2, 30, 30, 9)],
)
def test_work_in_many_pieces(size, taps, n, channels, height, width, outputs):
    """Blocks that end within a row of tiles, several steps, channels beyond a stretch of lanes."""
    x, weight = normal(0, (n, channels, height, width)), normal(1, (outputs, channels, taps, taps))
    padding, bias = (1, 0, 2, 1), normal(2, (outputs,))
    expected = reference.conv2d(x, weight, bias, UNIT, padding)
    for least in (1, 10**9):  # all by blocks, all by steps
        with mock.patch.multiple(fast, _MIN_BLOCK=least, _STEP_BYTES=0):
            y = forward(x, weight, bias, padding, size)
            assert_close(y, expected, 1e-12)
            dx = input_grad(y, weight, x.shape, padding, size)
            assert_close(dx, reference.conv2d_input_grad(y, weight, x.shape, UNIT, padding), 1e-12)
    expected = reference.conv2d_weight_grad(y, x, (taps, taps), UNIT, padding)
    for piece_bytes in (10**9, 0):  # by pieces, by steps
        for rows in (5, 10**9):
            few = mock.Mock(side_effect=lambda all_rows, *_, most=rows: min(all_rows, most))
            with mock.patch.multiple(fast_weight, _PIECE_BYTES=piece_bytes, step_rows=few):
                dw = weight_grad_winograd(y, x, weight.shape, padding, size)
            assert few.called == (piece_bytes == 0)
            assert_close(dw, expected, 1e-12)


@given(problems(np.float32, most_channels=64))
@some
def test_float32_error(problem):
    x, weight, bias, padding, _, size = problem
    bound = FLOAT32_BOUND[size + weight.shape[2] - 1]
    exact = [a.astype(np.float64) for a in (x, weight, bias)]
    expected = reference.conv2d(*exact, UNIT, padding)
    y = forward(x, weight, bias, padding, size)
    assert y.dtype == np.float32
    if not y.size:
        return
    assert_close(y, expected, bound)
    dx = input_grad(y, weight, x.shape, padding, size)
    expected = reference.conv2d_input_grad(y.astype(float), exact[1], x.shape, UNIT, padding)
    assert_close(dx, expected, bound)
    dw = weight_grad_winograd(y, x, weight.shape, padding, size)
    kernel_size = weight.shape[2:]
    expected = reference.conv2d_weight_grad(y.astype(float), exact[0], kernel_size, UNIT, padding)
    assert_close(dw, expected, bound)


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
        assert direct < 1e-6 and two < FLOAT32_BOUND[4] < four < FLOAT32_BOUND[6]
    with dispatch.winograd(None):
        for a, b in zip(exact, all_results(*layer(np.float64)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrong", [3, True, 4.0, "4"])
def test_other_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="size must be one of"):
        dispatch.winograd(wrong)
    assert dispatch.winograd_size() == 4


def chosen(
    result, y_shape, weight_shape, stride=UNIT, dilation=UNIT, groups=1, dtype="float32", padding=0
):
    """Whether a convolution of this result goes by Winograd's algorithm."""
    n, outputs, *size = y_shape
    axes = zip(size, stride, weight_shape[2:], strict=True)
    extent = ((o - 1) * s + k - 2 * padding for o, s, k in axes)
    x_shape = (n, weight_shape[1] * groups, *extent)
    settings_ = stride, (padding,) * 4, dilation, groups
    return is_winograd(result, y_shape, x_shape, weight_shape, *settings_, np.dtype(dtype))


def test_where_winograd_is_chosen():
    y, weight = (4, 64, 28, 28), (64, 64, 3, 3)
    assert chosen("y", y, (64, 32, 3, 3), groups=2)
    assert chosen("dw", y, weight)
    for kernel, stride, channels in ((3, 1, 64), (5, 1, 64), (5, 2, 64), (7, 2, 12), (11, 4, 3)):
        for result in ("y", "dx", "dw"):
            shape = (128, channels, kernel, kernel)
            assert chosen(result, (4, 128, 28, 28), shape, (stride, stride))
    for other in (
        (y, (64, 64, 3, 3), UNIT, UNIT, 1, "float64"),
        (y, (64, 8, 3, 3), UNIT, UNIT, 8),
        (y, (64, 64, 7, 7)),
        (y, (64, 64, 3, 5)),
        (y, weight, (2, 2)),
        (y, (64, 64, 5, 5), (2, 1)),
        (y, weight, UNIT, (2, 2)),
        (y, (64, 3, 3, 3)),
        ((0, 64, 28, 28), weight),
    ):
        assert not chosen("y", *other)


@pytest.mark.parametrize("size, padding, wanted", [(7, 2, ""), (7, 0, "y"), (14, 2, "y dx")])
def test_zeros_of_the_padding_save_nothing(size, padding, wanted):
    """A third of the taps of 5x5 on 7x7 pixels meets padding; it is left out without Winograd.

    In the gradient by the input, the less an image is padded the more the gradient is.
    """
    for result in ("y", "dx"):
        by_winograd = chosen(result, (16, 128, size, size), (128, 32, 5, 5), padding=padding)
        assert by_winograd == (result in wanted)


def test_larger_kernels_take_the_same_tile():
    assert [winograd_outputs(3, 1), winograd_outputs(5, 1), winograd_outputs(7, 2)] == [4, 2, 3]
    with dispatch.winograd(2):
        assert [winograd_outputs(3, 1), winograd_outputs(5, 2)] == [2, 2]
        assert winograd_outputs(5, 1) is winograd_outputs(7, 2) is None
    with dispatch.winograd(None):
        assert winograd_outputs(3, 1) is None


@pytest.mark.parametrize("kernel, stride, channels", [(5, 1, 48), (5, 2, 16), (7, 2, 12)])
def test_the_choice_for_larger_kernels(kernel, stride, channels):
    """They go so by default, within the bound, and by plain sums on request."""
    x = normal(0, (2, channels, 40, 44), np.float32)
    weight = normal(1, (96, channels, kernel, kernel), np.float32)
    steps = (stride, stride), (1, 2, 2, 1)
    exact = reference.conv2d(x.astype(float), weight.astype(float), None, *steps)
    dy = normal(2, exact.shape, np.float32)

    def errors():
        y = cpu.conv2d(x, weight, None, *steps)
        dx = cpu.conv2d_input_grad(dy, weight, x.shape, *steps)
        dw = cpu.conv2d_weight_grad(dy, x, weight.shape[2:], *steps)
        wide = [a.astype(float) for a in (dy, x, weight)]
        expected = (
            exact,
            reference.conv2d_input_grad(wide[0], wide[2], x.shape, *steps),
            reference.conv2d_weight_grad(wide[0], wide[1], weight.shape[2:], *steps),
        )
        return [
            np.abs(a - b).max() / np.abs(b).max()
            for a, b in zip((y, dx, dw), expected, strict=True)
        ]

    by_winograd = errors()
    with dispatch.winograd(None):
        plainly = errors()
    assert max(plainly) < 1e-6 < min(by_winograd) and max(by_winograd) < FLOAT32_BOUND[6]


def test_results_do_not_depend_on_the_number_of_threads():
    many = dispatch.get_num_threads()
    if many < 2:
        pytest.skip("one thread only")
    x, weight, dy = layer()
    large = normal(3, (1, 16, 150, 150), np.float32), normal(4, (16, 16, 3, 3), np.float32)
    wide = normal(5, (2, 3, 60, 60), np.float32), normal(6, (64, 3, 7, 7), np.float32)

    def everything():
        y = cpu.conv2d(*wide, None, (2, 2))
        return [
            *all_results(x, weight, dy), cpu.conv2d(*large), y,
            cpu.conv2d_input_grad(y, wide[1], wide[0].shape, (2, 2)),
            cpu.conv2d_weight_grad(y, wide[0], (7, 7), (2, 2)),
        ]  # fmt: skip

    several = everything()
    dispatch.set_num_threads(1)
    try:
        single = everything()
    finally:
        dispatch.set_num_threads(many)
    for a, b in zip(several, single, strict=True):
        np.testing.assert_array_equal(a, b)
