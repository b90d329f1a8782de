"""Convolutions on tensor cores against their definitions, emulated and on a GPU that has them.

Small integers are TF32 numbers, and so are sums of their products exact: every digit must agree.
"""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import dispatch, reference
from kernels.cuda import conv, conv_tf32, runtime, tiles_tf32
from kernels.geometry import conv_output_size
from minidl.testing import conv2d_parameters
from tests.emulator import run
from tests.kernels.cuda.cuts import cut_by, cut_into

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def tensor_cores(device):
    if not runtime.multiplies_tf32():
        pytest.skip("needs a GPU of compute capability 8.0 or later")
    with dispatch.precision("tf32"):
        yield


def integers(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]


def launched(device, kernel, *arguments):
    """The names of the kernels that are launched, which must agree with the reference."""
    names = []

    def launch(source, name, *rest, **options):
        names.append(name)
        plain(source, name, *rest, **options)

    plain = runtime.launch
    with mock.patch.object(runtime, "launch", launch):
        device.agree(kernel, *arguments, exact=True)
    return names


def agree_on_all(device, x, weight, bias, dy, settings_):
    """All kernels that convolve; the names of those that are launched."""
    arguments = weight.shape[2:], *settings_
    return [
        *launched(device, "conv2d", x, weight, bias, *settings_),
        *launched(device, "conv2d_affine", x, weight, 2 * bias, bias, dy, True, *settings_),
        *launched(device, "conv2d_affine", x, weight, None, bias, None, False, *settings_),
        *launched(device, "conv2d_input_grad", dy, weight, x.shape, *settings_),
        *launched(device, "conv2d_weight_grad", dy, x, *arguments),
    ]


@given(p=conv2d_parameters(max_batch=3, max_extra=8), seed=seeds)
@few
def test_convolution(device, p, seed):
    shapes = p.x_shape, p.weight_shape, p.weight_shape[:1], p.y_shape
    agree_on_all(device, *integers(seed, *shapes), p.settings)


LARGER = (  # tiles that are full and tiles that are not, along every axis; rows that copy by fours
    ((2, 9, 9, 8), (70, 9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((3, 72, 6, 6), (66, 72, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 66, 2, 2), (70, 33, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),
    ((3, 40, 7, 5), (68, 40, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((2, 8, 20, 19), (12, 4, 5, 4), (3, 2), (2, 1, 0, 3), (1, 2), 2),
    ((2, 20, 25, 24), (20, 4, 3, 3), (4, 3), (0, 1, 2, 0), (2, 3), 5),
    ((1, 3, 23, 23), (24, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 4, 35, 3), (8, 4, 32, 2), (2, 1), (3, 0, 1, 0), (1, 1), 1),
    ((1, 32, 6, 6), (80, 32, 3, 3), (2, 1), (1, 1, 1, 1), (1, 1), 1),
)  # fmt: skip


def draw_larger(case):
    x_shape, weight_shape, *settings_ = case
    size = conv_output_size(*x_shape[2:], weight_shape[2:], *settings_[:3])
    y_shape = (x_shape[0], weight_shape[0], *size)
    return *integers(0, x_shape, weight_shape, weight_shape[:1], y_shape), settings_


@pytest.fixture
def one_order():
    """Of threads, for the emulator."""
    with mock.patch.object(run, "RUNS", run.RUNS[:1]):
        yield


@pytest.mark.parametrize("case", LARGER[1:3] + LARGER[-1:])
def test_arrays_that_begin_between_packs(device, case):
    x, weight, bias, dy, settings_ = draw_larger(case)

    put = device.put

    def misplace(array):
        return put(np.append(np.nan, array).astype(np.float32))[1:].reshape(array.shape)

    with mock.patch.object(device, "put", misplace):
        agree_on_all(device, x, weight, bias, dy, settings_)


@pytest.mark.parametrize("shape", tiles_tf32.SHAPES)
@pytest.mark.parametrize("case", LARGER)
def test_several_tiles(device, one_order, shape, case):
    if shape in tiles_tf32.GROUP_SHAPES and not runtime.multiplies_by_groups():
        pytest.skip("needs a GPU of compute capability 9.0")
    with cut_into(shape):
        names = agree_on_all(device, *draw_larger(case))
    blocks = {name for name in names if name.endswith(("high", "low"))}
    if shape in tiles_tf32.WARP_SHAPES:
        assert blocks and all(name.endswith(f"tf32_{shape}") for name in blocks)
    else:
        convolutions = {name for name in blocks if name.startswith("conv2d_tf32")}
        assert convolutions <= {f"conv2d_tf32_{shape}"}
        assert convolutions or {name[:13] for name in blocks} == {"multiply_tf32"}


@pytest.mark.parametrize("case", LARGER)
def test_split_sums(device, one_order, case):
    with cut_by(MOST_POSITIONS=48, SHORTEST=16, ADDING=0, PARTS_RATE=np.inf):
        names = agree_on_all(device, *draw_larger(case))
    assert "finish_splits" in names


@pytest.mark.parametrize(
    "case, adding", [(LARGER[2], "finish_splits"), (LARGER[3], "sum_weight_parts")]
)
def test_long_sums_are_split_however_many_blocks_there_are(device, one_order, case, adding):
    x, _, _, dy, settings_ = draw_larger(case)
    with cut_by(MOST_POSITIONS=4, SHORTEST=2**30):
        names = launched(device, "conv2d_weight_grad", dy, x, (1, 1), *settings_)
    assert adding in names


def test_how_products_are_cut():
    """High tiles where they are filled, splits where there are too few blocks, and no more of them
    than pay or fit.
    """
    cut = tiles_tf32.choose_cut
    assert cut(64, 200_000, 576, 1, 64 * 200_000) == ("low", 1)
    assert cut(128, 50_176, 1152, 1, 128 * 50_176) == ("high", 1)
    # 100 high tiles occupy 100 of 132 multiprocessors; two splits of them give most two at a time.
    assert cut(512, 3136, 4608, 1, 512 * 3136, 5)[0] == "high"
    assert 2 <= cut(512, 3136, 4608, 1, 512 * 3136, 5)[1] <= 5
    assert cut(20, 20, 127, 1, 400) == ("low", 1)
    assert cut(20, 20, 16_000, 1, 400)[1] > 10
    assert cut(20, 20, 16_000, 1, 1 << 24)[1] == 1
    groups = {"begin": 4, "shapes": (*tiles_tf32.WARP_SHAPES, *tiles_tf32.GROUP_SHAPES)}
    assert cut(128, 50_176, 1152, 1, 128 * 50_176, **groups) == ("group_high", 1)
    assert cut(64, 50_176, 576, 1, 64 * 50_176, **groups) == ("group_low", 1)
    name, splits = cut(512, 784, 4608, 1, 512 * 784, **groups)
    assert name == "group_high" and 4 <= splits <= 8
    longest = conv_tf32.MOST_POSITIONS
    assert cut(5000, 5000, 10 * longest, 1, 1 << 24, longest=longest)[1] == 10
    assert cut(20, 20, 2**31, 1, 400, longest=longest)[1] == 65535


@pytest.mark.parametrize(
    "shape, outputs, groups, taken",
    [((65535, 4, 1, 1), 4, 1, True), ((65536, 4, 1, 1), 4, 1, False),
     ((1, 4, 32768, 65535), 4, 1, True), ((1, 4, 32768, 65536), 4, 1, False),
     ((1, 4, 1, 2**31 - 100), 4, 1, False), ((1, 2**18, 1, 1), 2**18, 2**16, False),
     ((1, 2**19 - 16, 1, 1), 4, 1, True), ((1, 2**19, 1, 1), 4, 1, False),
     ((1, 4, 1, 1), 2**19, 1, False), ((1, 2**13, 1024, 1023), 4, 1, True),
     ((1, 2**13, 1024, 1024), 4, 1, False), ((1, 4, 1024, 1024), 2**13, 1, False)],
)  # fmt: skip
def test_what_grids_and_numbers_cannot_hold_is_left_to_other_kernels(
    shape, outputs, groups, taken
):
    y_shape = (shape[0], outputs, *shape[2:])
    sizes = conv._Sizes.of(shape, y_shape, (1, 1), (1, 1), (0,) * 4, (1, 1), groups)
    assert conv_tf32.takes(sizes) is taken


@pytest.mark.parametrize("stride, taken", [(32, True), (64, False)])
def test_filters_of_a_stride_with_many_classes_are_not_turned(stride, taken):
    """Every class has room for all of them: 1 GB and 4 GB here."""
    shapes = (1, 512, stride, stride), (1, 512, 1, 1)
    sizes = conv._Sizes.of(*shapes, (1, 1), (stride, stride), (0,) * 4, (1, 1), 1)
    assert conv_tf32.takes(sizes) is taken


@pytest.mark.parametrize("exponent, taken", [(27, True), (28, False)])
def test_windows_that_reach_far_outside(device, exponent, taken):
    """Of two taps one is inside; where the other lies, in floats, is more than 32 bits hold."""
    far = 2**exponent
    x, weight, dy = integers(0, (1, 64, 1, 1), (8, 64, 1, 2), (1, 8, 1, 1))
    settings_, inside = ((1, 1), (0, 0, far, 0), (1, far), 1), weight[..., 1:]
    assert conv_tf32.takes(conv._Sizes.of(x.shape, dy.shape, (1, 2), *settings_)) is taken
    y = device.run("conv2d", x, weight, None, *settings_)
    np.testing.assert_array_equal(y, reference.conv2d(x, inside))
    dx = device.run("conv2d_input_grad", dy, weight, x.shape, *settings_)
    np.testing.assert_array_equal(dx, reference.conv2d_input_grad(dy, inside, x.shape))
    dw = device.run("conv2d_weight_grad", dy, x, (1, 2), *settings_)
    np.testing.assert_array_equal(dw[..., 1:], reference.conv2d_weight_grad(dy, x, (1, 1)))
    assert not dw[..., :1].any()


def test_operands_are_rounded_and_sums_are_not(device):
    draw = np.random.default_rng(0)
    x, weight = (draw.standard_normal(s).astype(np.float32) for s in ((2, 20, 9, 9), (8, 20, 3, 3)))
    actual = device.run("conv2d", x, weight)
    rounded = [
        ((a.view(np.uint32) + 0x1000) & ~np.uint32(0x1FFF)).view(np.float32) for a in (x, weight)
    ]
    np.testing.assert_allclose(actual, reference.conv2d(*rounded), rtol=0, atol=2e-4)
    assert abs(actual - reference.conv2d(x, weight)).max() > 2e-3


def test_values_that_are_no_numbers_stay_so(device):
    x, weight = integers(0, (1, 4, 6, 6), (4, 4, 3, 3))
    x[0, 0, 0, 0], x[0, 1, 5, 5] = np.nan, np.inf
    actual, expected = device.run("conv2d", x, weight), reference.conv2d(x, weight)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(actual, expected)


def test_what_is_left_to_other_kernels(device):
    """float64, thin groups, long kernels, and whatever is asked for by name."""
    x, weight, thin = integers(0, (1, 8, 5, 5), (8, 8, 3, 3), (8, 1, 3, 3))
    long, high = integers(0, (8, 8, 33, 1), (1, 8, 34, 2))
    for arguments, products, expected in (
        ((x, weight), "auto", True), ((x, weight), "own", False),
        ((x.astype(np.float64), weight.astype(np.float64)), "auto", False),
        ((x, thin, None, (1, 1), (0,) * 4, (1, 1), 8), "auto", False),
        ((high, long), "auto", False), ((high, long[:, :, 1:]), "auto", True),
    ):  # fmt: skip
        with dispatch.products(products):
            names = launched(device, "conv2d", *arguments)
        assert any("tf32" in name for name in names) is expected
    with dispatch.precision("float32"):
        assert not any("tf32" in name for name in launched(device, "conv2d", x, weight))


def test_images_without_pixels(device):
    """Padding alone makes room for a window."""
    x, weight, bias, dy = integers(0, (1, 8, 0, 5), (8, 8, 3, 3), (8,), (1, 8, 2, 5))
    agree_on_all(device, x, weight, bias, dy, ((1, 1), (2, 2, 1, 1), (1, 1), 1))
