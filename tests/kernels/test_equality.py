"""Every fast kernel against its reference, on drawn shapes, settings, dtypes and memory layouts."""

import dataclasses
import inspect
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cpu, cuda, reference
from kernels.cpu import conv_pixels, gathered_plan, pool, streams
from kernels.cpu.conv import choose
from minidl.testing import conv2d_parameters, pool2d_parameters
from tests.kernels.agreement import (
    TOLERANCE,
    arrays,
    assert_agree,
    check_cross_entropy_of_extremes,
    class_shapes,
    cross_entropy_arguments,
    dtypes,
    some,
)


def agree(name, *arguments, exact=False):
    """Run a kernel on both backends; the results must agree. Returns the reference's."""
    kept = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    expected, actual = (getattr(module, name)(*arguments) for module in (reference, cpu))
    for before, after in zip(kept, arguments, strict=True):
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after, err_msg=f"{name} changed its input")
    assert_agree(name, expected, actual, exact)
    return expected


@given(st.data(), conv2d_parameters(max_batch=3, min_batch=0, max_extra=8), dtypes)
@settings(some, max_examples=60)
def test_convolution(data, p, dtype):
    x = data.draw(arrays(p.x_shape, dtype))
    weight = data.draw(arrays(p.weight_shape, dtype))
    bias = data.draw(st.none() | arrays(p.weight_shape[:1], dtype))
    dy = data.draw(arrays(p.y_shape, dtype))
    agree("conv2d", x, weight, bias, *p.settings)
    agree("conv2d_input_grad", dy, weight, p.x_shape, *p.settings)
    agree("conv2d_weight_grad", dy, x, p.weight_shape[2:], *p.settings)
    columns = agree("im2col", x, p.weight_shape[2:], *p.settings[:3], exact=True)
    agree("col2im", columns, p.x_shape, p.weight_shape[2:], *p.settings[:3])


@given(st.data(), conv2d_parameters(max_batch=3, min_batch=0, max_extra=8), dtypes, st.booleans())
@some
def test_conv2d_affine(data, p, dtype, rectify):
    x, weight = data.draw(arrays(p.x_shape, dtype)), data.draw(arrays(p.weight_shape, dtype))
    scale, shift = (data.draw(arrays(p.weight_shape[:1], dtype)) for _ in range(2))
    others = data.draw(st.none() | arrays(p.y_shape, dtype))
    agree("conv2d_affine", x, weight, scale, shift, others, rectify, *p.settings)


@pytest.mark.parametrize(
    "kernel, n, size, channels, outputs",
    [
        (1, 9, 7, 130, 70),  # 1x1 on images that are put side by side
        (1, 2, 9, 40, 600),  # and on images as they lie, whose last vector is half empty
        (1, 1, 28, 300, 24),
        (1, 3, 15, 300, 1100),  # with a stride, pixels that are packed
        (3, 2, 12, 30, 20),
        (3, 2, 9, 6, 2),
        (3, 9, 14, 6, 48),  # outputs that fill vectors, rows that fill tiles
        (5, 17, 19, 4, 96),
        (5, 35, 36, 4, 18),  # several strips of outputs, rows of several vectors
        (2, 3, 2, 6, 4),  # a kernel as large as the image
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_epilogue_of_every_way(kernel, n, size, channels, outputs, stride, groups):
    """Scale, shift, others and ReLU behind each way of convolving, and NaN, which must stay."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((n, channels, size, size))
    x[-1, 0, -1, -1] = np.nan
    weight = draw.standard_normal((outputs, channels // groups, kernel, kernel))
    scale, shift = draw.standard_normal((2, outputs))
    settings_ = ((stride, stride), (0, 0, 0, 0), (1, 1), groups)
    y = agree("conv2d_affine", x, weight, scale, shift, None, True, *settings_)
    agree("conv2d_affine", x, weight, None, shift, None, True, *settings_)
    others = draw.standard_normal(y.shape)
    agree("conv2d_affine", x, weight, scale, shift, others, True, *settings_)
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    agree("conv2d_input_grad", y, weight, x.shape, *settings_)
    agree("conv2d_weight_grad", y, x, (kernel, kernel), *settings_)


def test_errors_of_conv2d_affine():
    x, weight = np.ones((1, 2, 3, 3)), np.ones((4, 2, 1, 1))
    good = np.ones(4)
    for kernels in (reference, cpu):
        for wrong, name in (
            ((np.ones(3), good, None), "scale"),
            ((good, np.ones((4, 1)), None), "shift"),
            ((good, good, np.ones((1, 4, 3, 2))), "others"),
        ):
            with pytest.raises(ValueError, match=name):
                kernels.conv2d_affine(x, weight, *wrong)
        with pytest.raises(TypeError, match="one dtype"):
            kernels.conv2d_affine(x, weight, good.astype(np.float32), good)


@given(
    st.data(), dtypes,
    st.lists(st.integers(0, 40), max_size=3).map(tuple) | st.just((3, 2, 90, 70)),
)  # fmt: skip
@some
def test_add(data, dtype, shape):
    agree("add", data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype)), exact=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (7, 3), (5, 100, 91)])
def test_results_in_the_memory_of_an_operand(shape, dtype):
    a, b = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    calls = (cpu.relu, (a,)), (cpu.add, (a, b)), (cpu.add, (a, a)), (cpu.relu_backward, (a, b))
    for call, operands in calls:
        expected = call(*operands)
        every_second = np.zeros((*shape, 2), dtype)[..., 0]
        for own in (a.copy(), every_second):
            own[...] = a
            given = [own if array is a else array for array in operands]
            assert call(*given, out=own) is own
            np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 90, 101)])
@pytest.mark.parametrize("name", ["bias_relu_backward", "batchnorm_backward"])
def test_gradients_in_the_memory_of_their_operand(name, shape):
    dy, y, x = np.random.default_rng(0).standard_normal((3, *shape))
    gamma = np.arange(1.0, shape[1] + 1)
    _, mean, _, inv_std = reference.batchnorm_train(x, gamma, gamma, 1e-2)
    rest = (y,) if name == "bias_relu_backward" else (x, gamma, mean, inv_std, y)
    expected = getattr(reference, name)(dy, *rest)
    every_second = np.zeros((*shape, 2))[..., 0]
    for kernels in (reference, cpu):
        for own in (dy.copy(), every_second):
            own[...] = dy
            results = getattr(kernels, name)(own, *rest, out=own)
            assert results[0] is own
            for result, right in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, right, rtol=1e-9, atol=1e-9)


def test_errors_of_add():
    for kernels in (reference, cpu):
        with pytest.raises(ValueError, match="out must have shape"):
            kernels.add(np.ones(3), np.ones(3), np.ones(4))
        with pytest.raises(ValueError, match="b must have shape"):
            kernels.add(np.ones(3), np.ones((1, 3)))
        with pytest.raises(TypeError, match="one dtype"):
            kernels.add(np.ones(3), np.ones(3, np.float32))


@pytest.mark.parametrize("way", ["direct", "rows", "images", "tiles"])
@given(st.data(), conv2d_parameters(max_batch=3, min_batch=0, max_extra=8), dtypes)
@some
def test_every_way_of_convolving_at_stride_1(way, data, p, dtype):
    """The shapes choose between them; here each is held to the definition on every shape."""
    p = dataclasses.replace(p, stride=(1, 1))
    x, weight = data.draw(arrays(p.x_shape, dtype)), data.draw(arrays(p.weight_shape, dtype))
    bias, dy = data.draw(arrays(p.weight_shape[:1], dtype)), data.draw(arrays(p.y_shape, dtype))
    with mock.patch("kernels.cpu.conv.choose", lambda *_: way):
        agree("conv2d", x, weight, bias, *p.settings)
        agree("conv2d_input_grad", dy, weight, p.x_shape, *p.settings)
        agree("conv2d_weight_grad", dy, x, p.weight_shape[2:], *p.settings)


@given(st.data(), conv2d_parameters(max_batch=3, min_batch=0, max_extra=16), dtypes)
@some
def test_convolution_of_gathered_pixels(data, p, dtype):
    """With results of all sizes, whichever way the shapes would choose."""
    x, weight = data.draw(arrays(p.x_shape, dtype)), data.draw(arrays(p.weight_shape, dtype))
    bias, dy = data.draw(arrays(p.weight_shape[:1], dtype)), data.draw(arrays(p.y_shape, dtype))
    with mock.patch("kernels.cpu.conv.choose", lambda *_: "gathered"):
        agree("conv2d", x, weight, bias, *p.settings)
        agree("conv2d_input_grad", dy, weight, p.x_shape, *p.settings)


@pytest.mark.parametrize("size", [4, 13])
@pytest.mark.parametrize(
    "stride, padding, dilation", [((1, 2), 0, 1), ((2, 1), 3, 2), ((3, 3), 1, 1)]
)
@pytest.mark.parametrize("cut", [(1, 1), (2, 1), (1, 2), (4, 4), None])
@pytest.mark.parametrize("padded", [True, False])
def test_gathered_pixels_however_cut(size, stride, padding, dilation, cut, padded):
    """Several strips and panels, images of a task; padded images; pixels that no tap reaches."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((6, 2 * 67, size, size + 1))
    x[-1, 0, -1, -1] = np.nan
    weight = draw.standard_normal((2 * 75, 67, 2, 3))
    settings_ = (stride, (padding, padding, padding, 1), (dilation,) * 2, 2)
    parts, slices = ((n,) for n in cut) if cut else (gathered_plan._PARTS, gathered_plan._SLICES)
    gathered_plan.plan_for.cache_clear()
    with (
        mock.patch("kernels.cpu.conv.choose", lambda *_: "gathered"),
        mock.patch.multiple(
            gathered_plan, _PARTS=parts, _SLICES=slices, _LINE=-(10**9) if padded else 10**9
        ),
    ):
        y = agree("conv2d", x, weight, None, *settings_)
        agree("conv2d_input_grad", np.nan_to_num(y), weight, x.shape, *settings_)
    gathered_plan.plan_for.cache_clear()


@pytest.mark.parametrize("n, groups", [(1, 1), (35, 2), (80, 1)])
@pytest.mark.parametrize(
    "kernel, padding, dilation", [(5, (0, 0, 0, 0), 1), (3, (4, 0, 1, 7), 2), (4, (9, 1, 0, 0), 1)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_input_gradient_by_images(n, groups, kernel, padding, dilation, dtype):
    """Blocks of images that are not full; pixels that no tap reaches, some but in one axis."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((6 * groups, 9, kernel, kernel)).astype(dtype)
    x = draw.standard_normal((n, 9 * groups, 9, 12)).astype(dtype)
    settings_ = ((1, 1), padding, (dilation,) * 2, groups)
    dy = reference.conv2d(x, weight, None, *settings_)
    with mock.patch("kernels.cpu.conv.choose", lambda *_: "images"):
        agree("conv2d_input_grad", dy, weight, x.shape, *settings_)


def test_input_gradients_of_many_small_images_go_by_images():
    """As in LeNet-5; neither where the images are few, nor where padding keeps all taps busy."""
    chosen = [
        choose("dx", (n, 16, size, size), (n, 6, 14, 14), (16, 6, 5, 5), (1, 1), (padding,) * 4,
               (1, 1), 1, np.dtype(np.float32))
        for n, size, padding in ((128, 10, 0), (1, 10, 0), (128, 14, 2))
    ]  # fmt: skip
    assert [way == "images" for way in chosen] == [True, False, False]


@pytest.mark.parametrize("channels, outputs", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolution_of_no_channels(channels, outputs, kernel, stride, padding):
    """A sum of no terms is 0."""
    x, weight = np.ones((20, channels, 5, 6)), np.ones((outputs, channels, kernel, kernel))
    settings_ = ((stride, stride), (padding,) * 4, (1, 1), 1)
    y = agree("conv2d", x, weight, np.ones(outputs), *settings_)
    agree("conv2d_input_grad", y, weight, x.shape, *settings_)
    agree("conv2d_weight_grad", y, x, (kernel, kernel), *settings_)


@pytest.mark.parametrize(
    "n, channels, size, outputs", [(1, 40, 40, 16), (20, 3, 9, 5), (2, 70, 5, 8), (18, 2, 60, 2)]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_in_many_blocks(n, channels, size, outputs, groups):
    """Work cut into several pieces: bands of rows, images, channel parts, stretches of a plane."""
    channels, outputs = channels - channels % groups, outputs - outputs % groups
    draw = np.random.default_rng(0)
    x = draw.standard_normal((n, channels, size, size))
    weight = draw.standard_normal((outputs, channels // groups, 3, 3))
    settings_ = ((1, 1), (1, 1, 1, 1), (1, 1), groups)
    y = agree("conv2d", x, weight, None, *settings_)
    agree("conv2d_input_grad", y, weight, x.shape, *settings_)
    agree("conv2d_weight_grad", y, x, (3, 3), *settings_)


@pytest.mark.parametrize("cut", [(1, 2, 2), (2, 2, 1), (2, 1, 2), (4, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    "n, channels, size, outputs, kernel, stride, padding",
    [
        (16, 130, 4, 100, 1, 1, 0),  # pixels of several images in a panel
        (5, 40, 13, 200, 1, 2, 0),
        (9, 24, 7, 110, 5, 1, 2),  # taps that do not meet all pixels
        (2, 8, 73, 99, 3, 2, 1),  # bands of an image
        (2, 3, 75, 101, 7, 2, 3),  # planes
        (5, 21, 20, 97, 4, 3, 2),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weight_gradient_however_it_is_cut(
    cut, n, channels, size, outputs, kernel, stride, padding, dtype
):
    """Shares of the pixels, parts of the rows, slices of the strips; and fetching ahead."""
    draw = np.random.default_rng(0)
    extent = (size + 2 * padding - kernel) // stride + 1
    dy = draw.standard_normal((n, outputs, extent, extent)).astype(dtype)
    x = draw.standard_normal((n, size, size, channels)).astype(dtype).transpose(0, 3, 1, 2)
    settings_ = ((kernel, kernel), (stride, stride), (padding,) * 4, (1, 1), 1)
    conv_pixels._plan.cache_clear()
    with (
        mock.patch.object(conv_pixels, "_CUTS", [conv_pixels._Cut(*cut)]),
        mock.patch.object(conv_pixels, "_FETCHED_BYTES", 0),
    ):
        agree("conv2d_weight_grad", dy, x, *settings_)
    conv_pixels._plan.cache_clear()


@given(st.data(), conv2d_parameters(min_batch=0), dtypes)
@some
def test_conv_transpose2d(data, p, dtype):
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in p.stride)
    x, weight = data.draw(arrays(p.y_shape, dtype)), data.draw(arrays(p.weight_shape, dtype))
    arguments = (x, weight, None, p.stride, p.padding, extra, p.dilation, p.groups)
    try:
        reference.conv_transpose2d(*arguments)
    except ValueError:
        with pytest.raises(ValueError):
            cpu.conv_transpose2d(*arguments)
        return
    agree("conv_transpose2d", *arguments)


# Planes of several strips and vectors, and windows with and without code of their own.
wide_planes = {"max_batch": 3, "max_extra": 70, "max_kernel": 7, "max_stride": 6}


@given(
    st.data(),
    pool2d_parameters(max_batch=3, min_batch=0, max_extra=8) | pool2d_parameters(**wide_planes),
    dtypes,
)
@settings(some, max_examples=100)
def test_max_pool2d(data, p, dtype):
    x = data.draw(arrays(p.x_shape, dtype))
    if data.draw(st.booleans()):  # ties and NaN
        x = np.round(x).astype(dtype)
        if x.size and data.draw(st.booleans()):
            x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
            x[np.random.default_rng(1).random(x.shape) < 0.3] = -np.inf
    arguments = (x, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)
    try:
        reference.max_pool2d(*arguments)
    except ValueError:
        with pytest.raises(ValueError):
            cpu.max_pool2d(*arguments)
        return
    y, switches = agree("max_pool2d", *arguments, exact=True)
    agree("max_unpool2d", y, switches, p.x_shape[2:])
    backward = "max_pool2d_backward", y, switches, p.x_shape, *arguments[1:-1]
    agree(*backward, exact=True)
    with mock.patch.object(streams, "_CACHED", -1), mock.patch.object(pool, "_SHARED", 100):
        agree(*backward, exact=True)  # gathered
    agree("max_pool2d_gather", x, switches, exact=True)


@given(st.data(), st.integers(2, 40), st.integers(2, 40), st.booleans(), dtypes)
@some
def test_max_pool2d_of_2x2_windows(data, height, width, ceil_mode, dtype):
    """The most common pooling, which has a kernel of its own: few different values, many ties."""
    x = np.round(data.draw(arrays((2, 2, height, width), dtype)))
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    agree("max_pool2d", x, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), ceil_mode, exact=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_running_statistics_move_in_place(dtype):
    """(1 - momentum) of what they were, momentum of the batch's mean and unbiased variance."""
    draw = np.random.default_rng(0)
    x, averages = draw.standard_normal((4, 3, 5, 6)).astype(dtype), np.ones((2, 3), dtype)
    ones = np.ones(3, dtype)
    for kernels in (reference, cpu):
        mean, var = averages.copy()
        kernels.batchnorm_train(x, ones, ones, 1e-5, running=(mean, var, 0.25))
        np.testing.assert_allclose(mean, 0.75 + 0.25 * x.mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(var, 0.75 + 0.25 * x.var((0, 2, 3), ddof=1), rtol=1e-5)
        with pytest.raises(ValueError, match="running_var must have shape"):
            kernels.batchnorm_train(x, ones, ones, 1e-5, running=(mean, var[:2], 0.25))


@pytest.mark.parametrize("wrong", [-1, 12])
def test_switches_outside_of_the_plane(wrong):
    y, switches = np.ones((2, 1, 2, 2)), np.zeros((2, 1, 2, 2), np.int32)
    switches[1, 0, 1, 1] = wrong
    for kernels in (reference, cpu):
        with pytest.raises(ValueError, match="switches must lie in"):
            kernels.max_unpool2d(y, switches, (3, 4))
        with pytest.raises(ValueError, match="switches must lie in"):
            kernels.max_pool2d_gather(np.ones((2, 1, 3, 4)), switches)


def test_max_pool2d_by_hand():
    """Ties to the first in row-major order, NaN wins, both in the 2x2 and in the general kernel."""
    x = np.array([[1, 1, 5, np.nan], [1, 1, 9, 5.0], [2, 3, -np.inf, -np.inf],
                  [3, 2, -np.inf, -np.inf]])[None, None]  # fmt: skip
    for kernels in (reference, cpu):
        for padding in ((0, 0, 0, 0), (0, 1, 0, 1)):
            y, switches = kernels.max_pool2d(x, (2, 2), (2, 2), padding)
            np.testing.assert_array_equal(y[0, 0, :2, :2], [[1, np.nan], [3, -np.inf]])
            assert switches[0, 0, :2, :2].tolist() == [[0, 3], [9, 10]]


@given(
    st.data(),
    pool2d_parameters(max_batch=3, min_batch=0, max_extra=8, dilated=False)
    | pool2d_parameters(**wide_planes, dilated=False),
    dtypes,
    st.booleans(),
)
@settings(some, max_examples=100)
def test_avg_pool2d(data, p, dtype, count_include_pad):
    x = data.draw(arrays(p.x_shape, dtype))
    settings_ = (p.kernel_size, p.stride, p.padding, p.ceil_mode, count_include_pad)
    y = agree("avg_pool2d", x, *settings_)
    agree("avg_pool2d_backward", y, p.x_shape, *settings_)
    y = agree("global_avg_pool2d", x)
    agree("global_avg_pool2d_backward", y, p.x_shape)


def test_means_of_large_windows_keep_their_digits():
    """Similar numbers, summed one by one, would lose a digit or two of float32."""
    x = np.random.default_rng(0).uniform(1, 1.001, (2, 2, 3, 9000)).astype(np.float32)
    settings_ = (3, 8500), (1, 1), (0, 0, 0, 0)
    expected = reference.avg_pool2d(x, *settings_)
    np.testing.assert_allclose(cpu.avg_pool2d(x, *settings_), expected, rtol=2e-6)
    np.testing.assert_allclose(
        cpu.global_avg_pool2d(x), reference.global_avg_pool2d(x), rtol=3e-7
    )


matrix_sides = st.integers(0, 5) | st.integers(100, 180)


@given(st.data(), matrix_sides, matrix_sides, matrix_sides, dtypes)
@some
def test_matmul(data, m, k, n, dtype):
    agree("matmul", data.draw(arrays((m, k), dtype)), data.draw(arrays((k, n), dtype)))


@given(st.data(), dtypes)
@some
def test_matmul_of_stacks(data, dtype):
    m, k, n = data.draw(st.tuples(*[st.integers(0, 4)] * 3))
    stacks = data.draw(st.sampled_from([((2,), ()), ((), (3,)), ((2, 1), (3,)), ((0,), (0,))]))
    a = data.draw(arrays((*stacks[0], m, k), dtype))
    agree("matmul", a, data.draw(arrays((*stacks[1], k, n), dtype)))


@pytest.mark.parametrize(
    "m, k, n",
    [
        (300, 130, 200), (3, 900, 1600), (1600, 900, 3), (1500, 3, 1600), (7, 3001, 203),
        (16, 67, 4099), (1, 2100, 2003),
    ],
)
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
def test_matmul_in_several_bands(m, k, n, turn_a, turn_b):
    draw = np.random.default_rng(0)
    a = draw.standard_normal((k, m)).T if turn_a else draw.standard_normal((m, k))
    b = draw.standard_normal((n, k)).T if turn_b else draw.standard_normal((k, n))
    agree("matmul", a, b)


def test_matmul_errors():
    square = np.zeros((2, 2), np.float32)
    for kernels in (reference, cpu):
        for other in (np.zeros((3, 2), np.float32), np.zeros(2, np.float32)):
            with pytest.raises(ValueError, match="a and b"):
                kernels.matmul(square, other)
        with pytest.raises(ValueError, match="stacks a and b must broadcast"):
            kernels.matmul(np.zeros((2, 2, 2)), np.zeros((3, 2, 2)))
        with pytest.raises(TypeError, match="one dtype"):
            kernels.matmul(square, np.zeros((2, 2)))
        with pytest.raises(TypeError, match="b must be"):
            kernels.matmul(square, np.zeros((2, 2), np.int64))


images = st.tuples(*(st.integers(low, 5) for low in (0, 1, 1, 1)))


@given(st.data(), images, dtypes, st.integers(1, 7), st.sampled_from([0.75, 0.4]), st.booleans())
@some
def test_lrn(data, shape, dtype, size, beta, size_normalized):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    settings_ = (size, 0.2, beta, 1.5, size_normalized)
    _, scale = agree("lrn", x, *settings_)
    agree("lrn_backward", dy, x, scale, *settings_)


@pytest.mark.parametrize("shape", [(2, 9, 33, 31), (1, 3, 1, 513), (2, 7, 16, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lrn_in_several_stretches(shape, dtype):
    x, dy = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    for size in (1, 2, 5, 40):
        settings_ = (size, 0.2, 0.75, 1.5)
        _, scale = agree("lrn", x, *settings_)
        agree("lrn_backward", dy, x, scale, *settings_)


def test_lrn_of_extremes():
    """A NaN or an infinite scale reaches its window, and nothing behind it."""
    x = np.ones((1, 9, 1, 2), np.float32)
    dy = np.ones_like(x)
    x[0, 2], x[0, 7, 0, 0] = 1e25, np.nan
    settings_ = (3, 0.2, 0.75, 1.5)
    with np.errstate(over="ignore", invalid="ignore"):
        results = [
            (*(y := kernels.lrn(x, *settings_)), kernels.lrn_backward(dy, x, y[1], *settings_))
            for kernels in (reference, cpu)
        ]
    for slow, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-5)


def test_lrn_of_all_magnitudes():
    """The power of scales from the smallest to the largest there are, exact to a few last bits."""
    x = np.logspace(-22, 19, 5000).astype(np.float32).reshape(1, 1, 1, -1)
    y, scale = cpu.lrn(x, 1, 1.0, 0.75, 0.0)
    expected = x.astype(np.float64) * scale.astype(np.float64) ** -0.75
    np.testing.assert_allclose(y, expected, rtol=4 * 2**-24)


@given(st.data(), images, dtypes)
@some
def test_batchnorm(data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    gamma, beta = (data.draw(arrays(shape[1:2], dtype)) for _ in range(2))
    mean = np.zeros(shape[1], dtype)
    ones = np.ones(shape[1], dtype)
    if x.size // shape[1] > 1:
        _, mean, _, inv_std = agree("batchnorm_train", x, gamma, beta, 1e-2)
        agree("batchnorm_backward", dy, x, gamma, mean, inv_std)
        others = data.draw(arrays(x.shape, dtype))
        agree("batchnorm_train", x, gamma, beta, 1e-2, others)
        y, *_ = agree("batchnorm_train", x, gamma, beta, 1e-2, others, True)
        agree("batchnorm_backward", dy, x, gamma, mean, inv_std, y)
    else:
        for kernels in (reference, cpu):
            with pytest.raises(ValueError, match="one value"):
                kernels.batchnorm_train(x, gamma, beta, 1e-2)
    if x.size:
        slow, fast = (kernels.batchnorm_statistics(x) for kernels in (reference, cpu))
        # float64, but the fast ones are taken from differences in the dtype of x
        np.testing.assert_allclose(fast, slow, rtol=0, atol=10 * TOLERANCE[x.dtype])
    else:
        for kernels in (reference, cpu):
            with pytest.raises(ValueError, match="a value a channel"):
                kernels.batchnorm_statistics(x)
    agree("batchnorm_eval", x, gamma, beta, mean, ones, 1e-2)
    agree("batchnorm_affine", gamma, beta, mean, ones, 1e-2)
    agree("batchnorm_eval_backward", dy, x, gamma, mean, ones)


def test_batchnorm_affine():
    """It is what batchnorm_eval does, and says which argument does not fit."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    gamma, beta, mean, var = x[0, :, 0], x[0, :, 1], x[1, :, 0], x[1, :, 1] ** 2
    operands = [array[:, 0] for array in (gamma, beta, mean, var)]  # strided
    scale, shift = agree("batchnorm_affine", *operands, 1e-2)
    expected = reference.batchnorm_eval(x, *operands, 1e-2)
    np.testing.assert_allclose(x * scale[:, None, None] + shift[:, None, None], expected)
    for kernels in (reference, cpu, cuda):
        with pytest.raises(ValueError, match="mean"):
            kernels.batchnorm_affine(*operands[:2], np.ones(3), operands[3], 1e-2)
        with pytest.raises(ValueError, match="gamma"):
            kernels.batchnorm_affine(gamma, *operands[1:], 1e-2)
        with pytest.raises(TypeError, match="one dtype"):
            kernels.batchnorm_affine(*operands[:3], operands[3].astype(np.float32), 1e-2)


def test_batchnorm_in_groups_of_channels(monkeypatch):
    x, dy, others = np.random.default_rng(0).standard_normal((3, 3, 7, 6, 5)).astype(np.float32)
    gamma, beta = np.random.default_rng(1).standard_normal((2, 7)).astype(np.float32)
    for nbytes in (1, 4 * x.nbytes // 7):  # a channel a group, and two or four
        monkeypatch.setitem(cpu.batchnorm_train.__globals__, "_GROUP_BYTES", nbytes)
        y, mean, _, inv_std = agree("batchnorm_train", x, gamma, beta, 1e-2, others, True)
        agree("batchnorm_backward", dy, x, gamma, mean, inv_std, y)


def test_batchnorm_of_planes_beyond_a_first_cache():
    x = np.random.default_rng(0).standard_normal((2, 2, 91, 100)).astype(np.float32)
    x += np.linspace(0, 9, x.size, dtype=np.float32).reshape(x.shape)  # the pieces' means differ
    slow, fast = (kernels.batchnorm_statistics(x) for kernels in (reference, cpu))
    np.testing.assert_allclose(fast, slow, rtol=1e-6)


def test_batchnorm_keeps_digits_beside_a_large_mean():
    draw = np.random.default_rng(0)
    x = (draw.standard_normal((4, 2, 8, 8)) + 1e4).astype(np.float32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    for kernels in (reference, cpu):
        _, _, var, _ = kernels.batchnorm_train(x, ones, zeros, 1e-5)
        np.testing.assert_allclose(var, x.astype(np.float64).var(axis=(0, 2, 3)), rtol=1e-4)
        mean, var = kernels.batchnorm_statistics(x)
        assert mean.dtype == var.dtype == np.float64
        np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(var, x.astype(np.float64).var(axis=(0, 2, 3)), rtol=1e-6)


shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)


@given(st.data(), shapes, dtypes)
@some
def test_relu(data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    y = agree("relu", x, exact=True)
    agree("relu_backward", dy, y, exact=True)


def test_elementwise_kernels_in_several_chunks():
    draw = np.random.default_rng(0)
    x, dy = draw.standard_normal((2, 50, 700)).astype(np.float32)
    agree("relu_backward", dy, agree("relu", x, exact=True), exact=True)
    agree("dropout", x, 0.5, 3, 4, exact=True)
    agree("dropout_mask", x.shape, 0.5, 3, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 41, 37), (2, 2, 1, 3)])
def test_results_written_past_the_caches(monkeypatch, shape, dtype):
    monkeypatch.setattr(streams, "_CACHED", 0)
    draw = np.random.default_rng(0)
    x, dy = draw.standard_normal((2, *shape)).astype(dtype)
    y = agree("relu", x, exact=True)
    agree("relu_backward", dy, y, exact=True)
    agree("dropout", x, 0.5, 3, 4, exact=True)
    agree("add", np.tile(x, (8, 1, 1, 1)), np.tile(dy, (8, 1, 1, 1)), exact=True)
    for size in (1, 5):
        _, scale = agree("lrn", x, size, 0.2, 0.75, 1.5)
        agree("lrn_backward", dy, x, scale, size, 0.2, 0.75, 1.5)
    gamma, beta = draw.standard_normal((2, shape[1])).astype(dtype)
    y, mean, _, inv_std = agree("batchnorm_train", x, gamma, beta, 1e-2, dy, True)
    agree("batchnorm_backward", dy, x, gamma, mean, inv_std, y)
    agree("batchnorm_backward", dy, x, gamma, mean, inv_std)
    y = agree("relu", x, exact=True)
    out = np.empty(x.size + 3, dtype)[3:].reshape(shape)  # not where a vector begins
    np.testing.assert_array_equal(cpu.relu(x, out=out), y)


@given(st.data(), images, dtypes)
@some
def test_bias_relu(data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    y = agree("bias_relu", x, data.draw(arrays(shape[1:2], dtype)), exact=True)
    agree("bias_relu_backward", dy, y)


channel_shapes = st.lists(st.integers(0, 5), min_size=2, max_size=5).map(tuple)


@given(st.data(), channel_shapes, dtypes)
@some
def test_channel_sums(data, shape, dtype):
    agree("channel_sums", data.draw(arrays(shape, dtype)))


def test_channel_sums_keeps_digits_of_a_large_plane():
    x = np.full((1, 2, 1500, 1500), 0.1, np.float32)
    np.testing.assert_allclose(cpu.channel_sums(x), 0.1 * 2.25e6, rtol=1e-6)


@given(st.data(), class_shapes, dtypes)
@some
def test_softmax_cross_entropy(data, shape, dtype):
    arguments, grad = cross_entropy_arguments(data.draw, shape, dtype)
    agree("softmax_cross_entropy", *arguments)
    agree("softmax_cross_entropy_backward", grad, *arguments)


@pytest.mark.parametrize("shape", [(40, 1000), (3, 70, 12, 30)])
def test_softmax_cross_entropy_of_several_tasks(shape):
    draw = np.random.default_rng(0)
    logits = draw.standard_normal(shape).astype(np.float32)
    labels = draw.integers(0, shape[1], (shape[0], *shape[2:]))
    for target in (labels, np.abs(logits)):
        agree("softmax_cross_entropy", logits, target, "mean")
        agree("softmax_cross_entropy_backward", np.float32([2]).reshape(()), logits, target, "mean")
        grad = logits[:, 0]
        agree("softmax_cross_entropy_backward", grad, logits, target, "none", 0.1)


def test_softmax_cross_entropy_of_extremes():
    """Logits far apart, a class ruled out by -inf, and NaN, which must not vanish."""
    for kernels in (reference, cpu):
        check_cross_entropy_of_extremes(
            kernels.softmax_cross_entropy, kernels.softmax_cross_entropy_backward
        )


def test_softmax_cross_entropy_is_not_compiled_for_each_kind_of_number():
    logits, labels, grad = np.zeros((2, 3)), np.zeros(2, np.int64), np.zeros(2)
    compiled = set()
    for smoothing, ignored in ((0.0, -100), (0, np.int32(1)), (np.float32(1), np.int64(0))):
        settings_ = "none", smoothing, ignored
        cpu.softmax_cross_entropy(logits, labels, *settings_)
        cpu.softmax_cross_entropy_backward(grad, logits, labels, *settings_)
        ways = cpu.loss._cross_entropy, cpu.loss._cross_entropy_backward
        compiled.add(tuple(len(way.signatures) for way in ways))
    assert len(compiled) == 1


def test_softmax_cross_entropy_checks_its_arrays():
    logits, grad = np.zeros((2, 3, 4)), np.zeros((2, 4))
    for kernels in (reference, cpu):
        with pytest.raises(ValueError, match="target"):
            kernels.softmax_cross_entropy(logits, logits[:1])
        with pytest.raises(ValueError, match="grad"):
            kernels.softmax_cross_entropy_backward(grad[:, :3], logits, logits)
        with pytest.raises(ValueError, match="a class"):
            kernels.softmax_cross_entropy(logits[:, :0], logits[:, :0])
        with pytest.raises(ValueError, match="reduction"):
            kernels.softmax_cross_entropy(logits, logits, "product")
        with pytest.raises(TypeError, match="one dtype"):
            kernels.softmax_cross_entropy(logits, logits.astype(np.float32))
        for dtype in (np.int32, np.uint8):
            with pytest.raises(TypeError, match=f"int64 labels, got {np.dtype(dtype)}"):
                kernels.softmax_cross_entropy(logits, np.zeros(len(logits), dtype))


@pytest.mark.parametrize("wrong", [3, -1])
def test_softmax_cross_entropy_checks_its_labels(wrong):
    logits, labels = np.zeros((2, 3, 4)), np.zeros((2, 4), np.int64)
    labels[1, 2] = wrong
    for kernels in (reference, cpu):
        with pytest.raises(ValueError, match=rf"target.*\[0, 3\), got {wrong}"):
            kernels.softmax_cross_entropy(logits, labels)
        with pytest.raises(ValueError, match=rf"target.*\[0, 3\), got {wrong}"):
            kernels.softmax_cross_entropy_backward(labels * 1.0, logits, labels)
        assert kernels.softmax_cross_entropy(logits, labels, ignore_index=wrong)[1, 2] == 0
        with pytest.raises(ValueError, match="target must have shape"):
            kernels.softmax_cross_entropy(logits, labels[:1])


@st.composite
def step_arrays(draw, dtype, count):
    """`count` arrays of one shape; the first, which a step updates, may be a strided view too."""
    shape = draw(shapes | st.just((200, 170)))
    return [draw(arrays(shape, dtype)) for _ in range(count)]


def steps_agree(name, changed, gradient, *settings_):
    """Run a step on copies of `changed` with both backends; what they leave must agree."""
    results = []
    for kernels in (reference, cpu):
        copies = [a if a is None else np.array(a, order="K") for a in changed]
        kept = gradient.copy()
        getattr(kernels, name)(copies[0], gradient, *copies[1:], *settings_)
        np.testing.assert_array_equal(gradient, kept)
        results.append([a for a in copies if a is not None])
    for before, a, b in zip([a for a in changed if a is not None], *results, strict=True):
        assert a.dtype == b.dtype == before.dtype
        tolerance = 1e-6 if a.dtype == np.float32 else 1e-13
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


decays = st.sampled_from([0.0, 0.3])


@given(st.data(), dtypes, st.sampled_from([(0.0, False), (0.9, False), (0.9, True)]), decays)
@some
def test_sgd_step(data, dtype, momentum, weight_decay):
    values, gradient, velocity = data.draw(step_arrays(dtype, 3))
    velocity = velocity if momentum[0] else None
    steps_agree("sgd_step", [values, velocity], gradient, 0.1, *momentum, weight_decay)


@given(st.data(), dtypes, st.integers(1, 20), decays, st.booleans())
@some
def test_adam_step(data, dtype, step, weight_decay, decoupled):
    values, gradient, mean, square = data.draw(step_arrays(dtype, 4))
    settings_ = (step, 0.1, (0.9, 0.99), 1e-3, weight_decay, decoupled)
    steps_agree("adam_step", [values, mean, np.abs(square)], gradient, *settings_)


def test_adam_step_divides_by_zero_as_numpy_does():
    zeros = [np.zeros(3, np.float32) for _ in range(4)]
    with np.errstate(invalid="ignore"):
        for kernels in (reference, cpu):
            values, *others = (array.copy() for array in zeros)
            kernels.adam_step(values, *others, 1, 0.1, (0.9, 0.99), 0.0)
            assert np.isnan(values).all()


def test_steps_write_to_strided_views():
    """What cannot be taken as one flat array must still be updated in place."""
    for kernels in (reference, cpu):
        wide = np.ones((4, 6), np.float32)
        kernels.sgd_step(wide[:, ::2], np.ones((4, 3), np.float32), None, 0.25)
        np.testing.assert_array_equal(wide, [[0.75, 1] * 3] * 4)
        moments = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
        kernels.adam_step(
            wide[:, ::2], np.ones((4, 3), np.float32), *moments, 1, 0.25, (0.9, 0.99), 0.0
        )
        np.testing.assert_allclose(wide, [[0.5, 1] * 3] * 4, rtol=1e-6)


def test_steps_check_their_arrays():
    for kernels in (reference, cpu):
        a, b = np.zeros(2, np.float32), np.zeros(3, np.float32)
        with pytest.raises(ValueError, match="gradient"):
            kernels.sgd_step(a, b, None, 0.1)
        with pytest.raises(TypeError, match="one dtype"):
            kernels.adam_step(a, a, a.astype(np.float64), a, 1, 0.1, (0.9, 0.99), 1e-8)


@given(
    st.data(), shapes, dtypes, st.floats(0, 0.99), st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)  # fmt: skip
@some
def test_dropout(data, shape, dtype, p, seed, step):
    mask = agree("dropout_mask", shape, p, seed, step)
    x = data.draw(arrays(shape, dtype))
    y = agree("dropout", x, p, seed, step, exact=True)
    assert ((y == 0) | mask).all()


def test_dropout_keeps_the_asked_share():
    for p in (0.1, 0.5, 0.9):
        kept = cpu.dropout_mask((400, 500), p, 1, 2).mean()
        assert abs(kept - (1 - p)) < 4 * np.sqrt(p * (1 - p) / 200_000)


# The known answers that Random123, the authors' library, publishes for philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_known_answers(counter, key, expected):
    from kernels.reference.dropout import philox4x32

    words = philox4x32(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(np.ravel(w)[0]) for w in words) == expected


def test_same_names_and_signatures():
    assert reference.__all__ == cpu.__all__
    for name in reference.__all__:
        slow, fast = (inspect.signature(getattr(m, name)) for m in (reference, cpu))
        assert str(slow) == str(fast), name


def test_results_do_not_depend_on_the_number_of_threads():
    from kernels import dispatch

    if dispatch.get_num_threads() < 2:
        pytest.skip("one thread only")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((6, 8, 17, 17)).astype(np.float32)
    weight = draw.standard_normal((16, 8, 3, 3)).astype(np.float32)
    gamma = np.ones(8, np.float32)

    def everything():
        y = cpu.conv2d(x, weight)
        results = [y, cpu.conv2d_input_grad(y, weight, x.shape)]
        results.append(cpu.conv2d_weight_grad(y, x, (3, 3)))
        results += [*cpu.max_pool2d(x, (3, 3), (2, 2)), *cpu.lrn(x, 5, 0.1, 0.75, 2.0)]
        with mock.patch.object(streams, "_CACHED", -1):
            results.append(cpu.max_pool2d_backward(*results[-4:-2], x.shape, (3, 3), (2, 2)))
        results.append(cpu.conv2d(x, np.tile(weight[:, :, :1, :1], (32, 1, 1, 1)), None, (2, 2)))
        windows = (3, 3), (2, 2), (1, 1, 1, 1)
        y = cpu.avg_pool2d(x, *windows)
        results += [y, cpu.avg_pool2d_backward(y, x.shape, *windows), cpu.global_avg_pool2d(x)]
        results += cpu.batchnorm_train(x, gamma, gamma, 1e-5)
        results += cpu.batchnorm_backward(x, x, gamma, gamma, gamma)
        results += [cpu.softmax_cross_entropy(x, x)]
        results += [cpu.softmax_cross_entropy_backward(x[:, 0], x, x)]
        small = x[:, :, :9, :9]  # the kernels for small images, and for one channel
        for image, kernel in ((small, weight), (x[:, :1], weight[:, :1])):
            y = cpu.conv2d(image, kernel)
            results += [y, cpu.conv2d_input_grad(y, kernel, image.shape)]
            results.append(cpu.conv2d_weight_grad(y, image, (3, 3)))
        wide = np.tile(x.reshape(6 * 8, 17 * 17), 4)
        results += [cpu.matmul(wide.T, wide), cpu.matmul(wide[:9], np.tile(wide.T, 50))]
        results.append(cpu.channel_sums(x))
        return [*results, cpu.dropout(x, 0.5, 1, 2), *cpu.bias_relu_backward(x, x)]

    many = dispatch.get_num_threads()
    several = everything()
    dispatch.set_num_threads(1)
    try:
        single = everything()
    finally:
        dispatch.set_num_threads(many)
    for a, b in zip(several, single, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_parallel_function_is_parallel():
    """A prange without parallel=True runs serially and says nothing; the compiler's notes tell."""
    import importlib
    import pkgutil

    test_results_do_not_depend_on_the_number_of_threads()
    found = 0
    for info in pkgutil.iter_modules(cpu.__path__, "kernels.cpu."):
        module = importlib.import_module(info.name)
        for name, function in vars(module).items():
            if not hasattr(function, "overloads") or function.__module__ != info.name:
                continue
            if "prange" not in inspect.getsource(function.py_func):
                continue
            found += 1
            assert function.targetoptions.get("parallel"), f"{info.name}.{name}"
            for overload in function.overloads.values():
                if overload.metadata:  # none where the on-disk cache supplied the code
                    notes = overload.metadata["parfor_diagnostics"]
                    assert notes.initial_parfors, f"{info.name}.{name}"
    assert found >= 30
