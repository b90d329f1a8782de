"""Every CUDA kernel but convolutions against its reference: emulated, and on a GPU."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cuda, reference
from minidl.testing import pool2d_parameters
from tests.emulator import launch
from tests.kernels.agreement import (
    arrays,
    check_cross_entropy_of_extremes,
    class_shapes,
    cross_entropy_arguments,
    dtypes,
)

few = settings(max_examples=12, deadline=None)
shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)
channel_shapes = st.lists(st.integers(0, 5), min_size=2, max_size=5).map(tuple)
images = st.tuples(*(st.integers(low, 5) for low in (0, 1, 1, 1)))
# Channels of one part and of several, the last of them short; images smaller and larger than a
# block, made of whole packs of 16 bytes or not.
LARGE = [
    (3, 2, 75, 75), (2500, 2, 2, 2), (1, 1, 1, 8193), (300, 40, 1, 1), (3, 2, 76, 76),
    (2, 1, 181, 100), (33000, 1, 1, 1),
]  # fmt: skip
# Around what a block holds of a channel, as threads hold 4 packs, or 13 where there are fewer.
LIMITS = [limit + step for limit in (4096, 8192, 13312, 16384, 26624) for step in (0, 4, 1)]


@given(st.data(), shapes, dtypes)
@few
def test_relu(device, data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    if x.size:
        x.reshape(-1)[0] = np.nan
    y = np.asarray(device.agree("relu", x, exact=True))
    device.agree("relu_backward", dy, y, exact=True)


@pytest.mark.parametrize("columns", [slice(None), slice(None, None, 2)])
def test_relu_into_a_given_array(device, columns):
    """Another array or x itself, whether it lies in one piece or not."""
    x = np.random.default_rng(0).standard_normal((5, 6))[:, columns]
    expected = reference.relu(x)
    placed = device.put(x.copy())
    other = device.put(np.zeros((5, 6)))[:, columns]
    assert cuda.relu(placed, other) is other
    np.testing.assert_array_equal(device.get(placed), x)
    np.testing.assert_array_equal(device.get(other), expected)
    other[...] = placed
    assert cuda.relu(other, other) is other
    np.testing.assert_array_equal(device.get(other), expected)
    with pytest.raises(ValueError, match="out must have shape"):
        cuda.relu(placed, other[1:])


@given(st.data(), images, dtypes)
@few
def test_bias_relu(device, data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    y = device.agree("bias_relu", x, data.draw(arrays(shape[1:2], dtype)), exact=True)
    device.agree("bias_relu_backward", dy, y)


@given(st.data(), channel_shapes, dtypes)
@few
def test_channel_sums(device, data, shape, dtype):
    device.agree("channel_sums", data.draw(arrays(shape, dtype)))


@pytest.mark.parametrize("shape", LARGE)
def test_reductions_of_many_values(device, shape):
    """Several parts a channel, several blocks a grid; a large mean must not cost digits."""
    draw = np.random.default_rng(0)
    x, dy = draw.standard_normal((2, *shape))
    gamma, beta = draw.standard_normal((2, shape[1]))
    device.agree("channel_sums", x)
    device.agree("bias_relu", x, gamma, exact=True)
    device.agree("bias_relu_backward", dy, x)
    _, mean, _, inv_std = device.agree("batchnorm_train", x, gamma, beta, 1e-3)
    device.agree("batchnorm_backward", dy, x, gamma, mean, inv_std)
    device.agree("batchnorm_eval_backward", dy, x, gamma, mean, inv_std)
    far = (x + 1e4).astype(np.float32)
    gamma, beta, dy = (a.astype(np.float32) for a in (gamma, beta, dy))
    _, mean, _, inv_std = device.agree("batchnorm_train", far, gamma, beta, 1e-3)
    device.agree("batchnorm_backward", dy, far, gamma, mean, inv_std)
    statistics_agree(device, x)
    statistics_agree(device, far)


@pytest.mark.parametrize("length", LIMITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_channels_around_what_a_block_holds(device, length, dtype):
    x, dy, others = np.random.default_rng(0).standard_normal((3, 1, 2, 1, length)).astype(dtype)
    gamma, beta = x[0, :, 0, 0], dy[0, :, 0, 0]
    device.agree("channel_sums", x)
    y, mean, _, inv_std = device.agree("batchnorm_train", x, gamma, beta, 1e-3, others, True)
    device.agree("batchnorm_backward", dy, x, gamma, mean, inv_std, y)
    device.agree("batchnorm_eval_backward", dy, x, gamma, mean, inv_std)
    device.agree("bias_relu_backward", dy, y)


@pytest.mark.parametrize("plane", [(4, 5), (3, 5), (70, 130)])
@pytest.mark.parametrize("name", ["x", "dy", "both"])
def test_arrays_that_begin_between_packs(device, plane, name):
    """They are taken element by element, with the same results to the bit."""
    draw = np.random.default_rng(0)
    x, dy = draw.standard_normal((2, 3, 4, *plane)).astype(np.float32)
    per_channel = draw.standard_normal(4).astype(np.float32)

    def misplaced(array):
        wide = device.put(np.concatenate([[np.nan], array.reshape(-1)]).astype(np.float32))
        return wide[1:].reshape(array.shape)

    placed = [
        misplaced(a) if name in (label, "both") else device.put(a)
        for label, a in (("x", x), ("dy", dy))
    ]
    channel = device.put(per_channel)
    calls = (
        lambda x, dy, c: cuda.add(x, dy),
        lambda x, dy, c: cuda.relu(x),
        lambda x, dy, c: cuda.relu_backward(dy, x),
        lambda x, dy, c: cuda.bias_relu(x, c),
        lambda x, dy, c: cuda.bias_relu_backward(dy, x),
        lambda x, dy, c: cuda.channel_sums(x),
        lambda x, dy, c: cuda.batchnorm_train(x, c, c, 1e-3, dy, True),
        lambda x, dy, c: cuda.batchnorm_backward(dy, x, c, c, c, x),
    )
    for call in calls:
        actual = call(*placed, channel)
        expected = call(device.put(x), device.put(dy), channel)
        np.testing.assert_equal(device._gotten(actual), device._gotten(expected))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 3, 7, 7), (2, 3, 120, 121)])
def test_batchnorm_of_values_that_are_no_numbers(device, shape):
    """A NaN, or an infinity that comes first, makes its own channel NaN, and no other."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[-1, 1, -1, -1] = np.nan
    x[0, 2, 0, 0] = np.inf
    ones = np.ones(3, np.float32)
    with np.errstate(invalid="ignore"):
        device.agree("batchnorm_train", x, ones, ones, 1e-3, None, True)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (2, 4, 120, 120)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [1, 2])
def test_batchnorm_moves_running_statistics(device, shape, dtype, step):
    """In place, whether they lie in one piece or not."""
    draw = np.random.default_rng(0)
    x, (gamma, beta) = draw.standard_normal(shape).astype(dtype), np.ones((2, 4), dtype)
    averages = np.abs(draw.standard_normal((2, 4 * step))).astype(dtype)
    expected, placed = averages.copy(), device.put(averages.copy())
    reference.batchnorm_train(x, gamma, beta, 1e-3, running=(*expected[:, ::step], 0.25))
    cuda.batchnorm_train(
        *map(device.put, (x, gamma, beta)), 1e-3,
        running=(placed[0, ::step], placed[1, ::step], 0.25),
    )  # fmt: skip
    np.testing.assert_allclose(
        device.get(placed), expected, rtol=1e-5 if dtype == np.float32 else 1e-12
    )
    assert (expected[:, ::step] != averages[:, ::step]).all()


def test_channel_sums_keep_digits_of_a_large_plane(device):
    x = np.full((1, 2, 400, 500), 0.1, np.float32)
    np.testing.assert_allclose(device.run("channel_sums", x), 2e4, rtol=1e-6)


@given(st.data(), pool2d_parameters(max_batch=3, min_batch=0, max_extra=8), dtypes)
@settings(few, max_examples=30)
def test_max_pool2d(device, data, p, dtype):
    x = data.draw(arrays(p.x_shape, dtype))
    if data.draw(st.booleans()):  # ties and NaN
        x = np.round(x).astype(dtype)
        if x.size and data.draw(st.booleans()):
            x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    arguments = (x, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)
    try:
        reference.max_pool2d(*arguments)
    except ValueError:
        with pytest.raises(ValueError):
            device.run("max_pool2d", *arguments)
        return
    y, switches = device.agree("max_pool2d", *arguments, exact=True)
    device.agree("max_unpool2d", y, switches, p.x_shape[2:], exact=True)
    dy, windows = data.draw(arrays(y.shape, dtype)), arguments[1:-1]
    device.agree("max_pool2d_backward", dy, switches, p.x_shape, *windows, exact=True)
    device.agree("max_pool2d_gather", x, switches, exact=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unpooling_where_many_share_a_pixel(device, dtype):
    """Sums in the reference's order, whether a pixel's elements meet in one round or in several."""
    draw = np.random.default_rng(0)
    y = draw.standard_normal((2, 3, 10, 13)).astype(dtype)
    switches = draw.integers(0, 20, y.shape).astype(np.int32)
    switches[0, 0] = 7
    device.agree("max_unpool2d", y, switches, (4, 5), exact=True)
    device.agree("max_pool2d_gather", y[:, :, :4, :5], switches, exact=True)


@pytest.mark.parametrize("wrong", [-1, 12])
def test_switches_outside_of_the_plane(device, wrong):
    y, switches = np.ones((2, 1, 2, 2)), np.zeros((2, 1, 2, 2), np.int32)
    switches[1, 0, 1, 1] = wrong
    with pytest.raises(ValueError, match="switches must lie in"):
        device.run("max_unpool2d", y, switches, (3, 4))
    with pytest.raises(ValueError, match="switches must lie in"):
        device.run("max_pool2d_gather", np.ones((2, 1, 3, 4)), switches)


def test_switches_of_a_larger_plane(device):
    """Those that max_pool2d made itself are trusted, but only in planes of the same size."""
    x = device.put(np.arange(12.0).reshape(1, 1, 3, 4))
    y, switches = cuda.max_pool2d(x, (2, 2), (1, 1))
    back = cuda.max_unpool2d(y, switches, (3, 4))
    assert device.get(back).sum() == device.get(y).sum()
    with pytest.raises(ValueError, match="switches must lie in"):
        cuda.max_unpool2d(y, switches, (3, 3))
    with pytest.raises(ValueError, match="switches must lie in"):
        cuda.max_pool2d_gather(x[:, :, :2], switches)


@given(
    st.data(), pool2d_parameters(max_batch=3, min_batch=0, max_extra=8, dilated=False), dtypes,
    st.booleans(),
)  # fmt: skip
@settings(few, max_examples=30)
def test_avg_pool2d(device, data, p, dtype, count_include_pad):
    x = data.draw(arrays(p.x_shape, dtype))
    settings_ = (p.kernel_size, p.stride, p.padding, p.ceil_mode, count_include_pad)
    y = device.agree("avg_pool2d", x, *settings_)
    device.agree("avg_pool2d_backward", y, p.x_shape, *settings_)
    y = device.agree("global_avg_pool2d", x)
    device.agree("global_avg_pool2d_backward", y, p.x_shape, exact=True)


@pytest.mark.parametrize("size", [(7, 9), (30, 31)])
def test_global_average_of_planes_around_a_warp(device, size):
    x = np.random.default_rng(0).standard_normal((3, 5, *size)).astype(np.float32)
    y = device.agree("global_avg_pool2d", x)
    device.agree("global_avg_pool2d_backward", y, x.shape, exact=True)


@given(st.data(), images, dtypes, st.integers(1, 7), st.sampled_from([0.75, 0.4]), st.booleans())
@few
def test_lrn(device, data, shape, dtype, size, beta, size_normalized):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    settings_ = (size, 0.2, beta, 1.5, size_normalized)
    _, scale = device.agree("lrn", x, *settings_)
    device.agree("lrn_backward", dy, x, scale, *settings_)


@pytest.mark.parametrize("size", [1, 5, 12, 170, 10**6])
@pytest.mark.parametrize("channels", [33, 100])
def test_lrn_of_many_channels(device, size, channels):
    """Several tiles of channels and of pixels; windows of several chunks, and of all channels."""
    x, dy = np.random.default_rng(0).standard_normal((2, 2, channels, 6, 7)).astype(np.float32)
    settings_ = (size, 0.2, 0.75, 1.5, True)
    _, scale = device.agree("lrn", x, *settings_)
    device.agree("lrn_backward", dy, x, scale, *settings_)


@given(st.data(), images, dtypes)
@few
def test_add(device, data, shape, dtype):
    a, b = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    device.agree("add", a, b, exact=True)


@pytest.mark.parametrize("columns", [slice(None), slice(None, None, 2)])
@pytest.mark.parametrize("name", ["relu_backward", "bias_relu_backward", "batchnorm_backward"])
def test_gradients_over_an_operand(device, name, columns):
    dy, y, x = np.random.default_rng(0).standard_normal((3, 2, 3, 5, 6))[..., columns]
    gamma = np.arange(1.0, 4)
    _, mean, _, inv_std = reference.batchnorm_train(x, gamma, gamma, 1e-2)
    rest = (x, gamma, mean, inv_std, y) if name == "batchnorm_backward" else (y,)
    expected = getattr(reference, name)(dy, *rest)
    placed = device.put(np.random.default_rng(0).standard_normal((3, 2, 3, 5, 6))[0])[..., columns]
    results = getattr(cuda, name)(placed, *map(device.put, rest), out=placed)
    results = results if isinstance(results, tuple) else (results,)
    assert results[0] is placed
    for result, right in zip(results, expected if len(results) > 1 else (expected,), strict=True):
        np.testing.assert_allclose(device.get(result), right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("columns", [slice(None), slice(None, None, 2)])
def test_add_to_an_operand(device, columns):
    a, b = np.random.default_rng(0).standard_normal((2, 5, 6))
    placed, other = device.put(a.copy())[:, columns], device.put(b.copy())[:, columns]
    assert cuda.add(placed, other, placed) is placed
    np.testing.assert_array_equal(device.get(placed), (a + b)[:, columns])
    np.testing.assert_array_equal(device.get(other), b[:, columns])


@given(st.data(), images, dtypes)
@few
def test_batchnorm(device, data, shape, dtype):
    x, dy = data.draw(arrays(shape, dtype)), data.draw(arrays(shape, dtype))
    gamma, beta, mean = (data.draw(arrays(shape[1:2], dtype)) for _ in range(3))
    var = data.draw(arrays(shape[1:2], dtype)) ** 2
    device.agree("batchnorm_eval", x, gamma, beta, mean, var, 1e-2)
    device.agree("batchnorm_affine", gamma, beta, mean, var, 1e-2)
    device.agree("batchnorm_eval_backward", dy, x, gamma, mean, 1 / np.sqrt(var + dtype(0.1)))
    if x.size // shape[1] > 1:
        _, mean, _, inv_std = device.agree("batchnorm_train", x, gamma, beta, 1e-2)
        device.agree("batchnorm_backward", dy, x, gamma, mean, inv_std)
        others = data.draw(arrays(x.shape, dtype))
        device.agree("batchnorm_train", x, gamma, beta, 1e-2, others)
        y, *_ = device.agree("batchnorm_train", x, gamma, beta, 1e-2, others, True)
        device.agree("batchnorm_backward", dy, x, gamma, mean, inv_std, y)
    else:
        with pytest.raises(ValueError, match="one value"):
            device.run("batchnorm_train", x, gamma, beta, 1e-2)
    if x.size:
        statistics_agree(device, x)
    else:
        with pytest.raises(ValueError, match="a value a channel"):
            device.run("batchnorm_statistics", x)


def statistics_agree(device, x):
    """They are float64 for a float32 x, too, and as exact."""
    actual = device.run("batchnorm_statistics", x)
    for name, a, b in zip(
        ("mean", "var"), actual, reference.batchnorm_statistics(x), strict=True
    ):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@given(
    st.data(), shapes, dtypes, st.floats(0, 0.99), st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)  # fmt: skip
@few
def test_dropout(device, data, shape, dtype, p, seed, step):
    np.testing.assert_array_equal(
        device.get(cuda.dropout_mask(shape, p, seed, step)),
        reference.dropout_mask(shape, p, seed, step),
    )
    device.agree("dropout", data.draw(arrays(shape, dtype)), p, seed, step, exact=True)


def test_dropout_of_several_blocks(device):
    x = np.random.default_rng(0).standard_normal((3, 1501)).astype(np.float32)
    device.agree("dropout", x, 0.5, 3, 4, exact=True)


def steps_agree(device, name, changed, gradient, *settings_):
    """Run a step on copies of `changed` here and in the reference; what they leave must agree."""
    expected, actual = ([None if a is None else a.copy() for a in changed] for _ in range(2))
    getattr(reference, name)(expected[0], gradient, *expected[1:], *settings_)
    placed = [None if a is None else device.put(a) for a in actual]
    getattr(cuda, name)(placed[0], device.put(gradient), *placed[1:], *settings_)
    for a, b in zip(expected, placed, strict=True):
        if a is not None:
            tolerance = 1e-6 if a.dtype == np.float32 else 1e-13
            np.testing.assert_allclose(device.get(b), a, rtol=tolerance, atol=tolerance)


step_shapes = shapes | st.just((70, 11))
decays = st.sampled_from([0.0, 0.3])


@given(
    st.data(), step_shapes, dtypes, st.sampled_from([(0.0, False), (0.9, False), (0.9, True)]),
    decays,
)  # fmt: skip
@few
def test_sgd_step(device, data, shape, dtype, momentum, weight_decay):
    values, gradient, velocity = (data.draw(arrays(shape, dtype)) for _ in range(3))
    velocity = velocity if momentum[0] else None
    steps_agree(device, "sgd_step", [values, velocity], gradient, 0.1, *momentum, weight_decay)


@given(st.data(), step_shapes, dtypes, st.integers(1, 20), decays, st.booleans())
@few
def test_adam_step(device, data, shape, dtype, step, weight_decay, decoupled):
    values, gradient, mean, square = (data.draw(arrays(shape, dtype)) for _ in range(4))
    square *= square
    settings_ = (step, 0.1, (0.9, 0.99), 1e-3, weight_decay, decoupled)
    steps_agree(device, "adam_step", [values, mean, square], gradient, *settings_)


@pytest.mark.parametrize("name, states", [("sgd_steps", 1), ("adam_steps", 2)])
def test_steps_of_many_parameters(device, name, states):
    """Of two dtypes and all sizes, more than a launch takes; some empty, some strided views."""
    draw = np.random.default_rng(0)
    sizes = [*range(60), 1023, 1024, 1025, 5000, *[3] * 90]
    settings_ = (0.1, 0.9, True, 0.2) if states == 1 else (3, 0.1, (0.9, 0.99), 1e-3, 0.2, True)
    here, there = [], []
    for number, size in enumerate(sizes):
        dtype = np.float64 if number % 7 == 2 else np.float32
        arrays_ = [draw.standard_normal((2, size)).astype(dtype) for _ in range(2 + states)]
        arrays_[-1] **= 2
        placed = [device.put(a.copy()) for a in arrays_]
        if number % 11 == 5:
            arrays_, placed = ([a[:, ::2] for a in some] for some in (arrays_, placed))
        if number % 5 == 1 and states == 1:
            arrays_[2] = placed[2] = None
        here.append(tuple(arrays_))
        there.append(tuple(placed))
    with device.counted() as launches:
        getattr(cuda.optim, name)(there, *settings_)
    getattr(reference.optim, name)(here, *settings_)
    for expected, actual in zip(here, there, strict=True):
        for a, b in zip(expected, actual, strict=True):
            if a is not None:
                tolerance = 1e-6 if a.dtype == np.float32 else 1e-13
                np.testing.assert_allclose(device.get(b), a, tolerance, tolerance)
    assert len(launches) == 3  # float32 is more than one table, float64 one


def test_steps_write_to_strided_views(device):
    """What cannot be taken as one flat array must still be updated in place."""
    wide = device.put(np.ones((4, 6), np.float32))
    ones, zeros = np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)
    cuda.sgd_step(wide[:, ::2], device.put(ones), None, 0.25)
    np.testing.assert_array_equal(device.get(wide), [[0.75, 1] * 3] * 4)
    moments = device.put(zeros.copy()), device.put(zeros.copy())
    cuda.adam_step(wide[:, ::2], device.put(ones), *moments, 1, 0.25, (0.9, 0.99), 0.0)
    np.testing.assert_allclose(device.get(wide), [[0.5, 1] * 3] * 4, rtol=1e-6)


@given(st.data(), class_shapes, dtypes)
@few
def test_softmax_cross_entropy(device, data, shape, dtype):
    arguments, grad = cross_entropy_arguments(data.draw, shape, dtype)
    device.agree("softmax_cross_entropy", *arguments)
    device.agree("softmax_cross_entropy_backward", grad, *arguments)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_of_many_samples(device, reduction):
    """More than the block has threads that adds them up."""
    draw = np.random.default_rng(0)
    logits, labels = draw.standard_normal((1100, 3, 2)), draw.integers(0, 3, (1100, 2))
    labels[:700] = -1
    device.agree("softmax_cross_entropy", logits, labels, reduction, 0.0, -1)
    grad = np.array(2.0)
    device.agree("softmax_cross_entropy_backward", grad, logits, labels, reduction, 0.0, -1)
    device.agree("softmax_cross_entropy", logits, logits**2, reduction)
    device.agree("softmax_cross_entropy_backward", grad, logits, logits**2, reduction)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_that_are_no_class(device, smoothing):
    """Their samples' losses and gradients are NaN, and no others."""
    logits = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    labels, settings_ = np.array([0, 3, -1, -100, 2, 2**40]), ("none", smoothing)
    right = labels.copy()
    right[wrong := [1, 2, 5]] = 0
    grad = np.ones(6, np.float32)
    for name, first in (("softmax_cross_entropy", ()), ("softmax_cross_entropy_backward", (grad,))):
        expected = getattr(reference, name)(*first, logits, right, *settings_)
        expected[wrong] = np.nan
        actual = device.run(name, *first, logits, labels, *settings_)
        np.testing.assert_allclose(actual, expected, 1e-5, 1e-6)


def test_softmax_cross_entropy_of_extremes(device):
    names = "softmax_cross_entropy", "softmax_cross_entropy_backward"
    check_cross_entropy_of_extremes(
        *(lambda *arrays, name=name: device.run(name, *arrays) for name in names)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("integer, number", [(np.int32, np.float64), (np.int64, np.float32)])
def test_numpy_numbers_for_python_ones(device, dtype, integer, number):
    """They have a width, but kernels must get that of their parameters."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 4, 6, 6)).astype(dtype)
    gamma, yes, half = x[0, :, 0, 0], np.bool_(True), number(0.5)
    one, two, none = (integer(1),) * 2, (integer(2),) * 2, (integer(0),) * 4
    shape = tuple(map(integer, x.shape))
    calls = [
        ("dropout", x, half, 1, 2),
        ("dropout_mask", two, half, 1, 2),
        ("lrn", x, two[0], half, half, half),
        ("lrn_backward", x, x, x * x + 1, two[0], half, half, half),
        ("batchnorm_train", x, gamma, gamma, half),
        ("batchnorm_eval", x, gamma, gamma, gamma, gamma * gamma, half),
        ("batchnorm_affine", gamma, gamma, gamma, gamma * gamma, half),
        ("max_pool2d", x, two, two, none, one),
        ("avg_pool2d", x, two, two, none, yes, yes),
        ("avg_pool2d_backward", x[:, :, :3, :3], shape, two, two, none, yes, yes),
        ("global_avg_pool2d_backward", x[:, :, :1, :1], shape),
        ("conv2d", x, x[:, :2, :2, :2], None, one, none, one, two[0]),
        ("conv2d_input_grad", x[..., :5, :5], x[:1].repeat(4, 0)[..., :2, :2], shape, one, none),
        ("conv2d_weight_grad", x[..., :5, :5], x, two, one, none),
        ("conv_transpose2d", x, x[0][:, None, :2, :2], None, one, none, none[:2], one, two[0]),
        ("im2col", x, two, one, none),
    ]
    for call in calls:
        device.agree(*call)
    settings_ = half, half, yes, half
    steps_agree(device, "sgd_step", [x, x], x, *settings_)
    settings_ = two[0], half, (half, half), half, half, yes
    steps_agree(device, "adam_step", [x, x, x * x], x, *settings_)


def test_shapes_of_networks(device):
    """As large as in networks on a GPU, twice with the same bits; small in the emulator."""
    images, share = (16, 1) if device.name == "gpu" else (1, 16)
    draw = np.random.default_rng(0)

    def values(*shape):
        return draw.standard_normal(shape).astype(np.float32)

    x, dy = values(images, 96 // share, 55, 55), values(images, 96 // share, 27, 27)
    gamma, beta = values(2, 96 // share)
    _, scale = device.agree("lrn", x, 5, 1e-4, 0.75, 2.0)
    _, mean, _, inv_std = device.agree("batchnorm_train", x, gamma, beta, 1e-5)
    _, switches = device.agree("max_pool2d", x, (3, 3), (2, 2), exact=True)
    logits, target = values(8 * images, 1000), np.abs(values(8 * images, 1000))
    calls = [
        ("lrn_backward", x, x, scale, 5, 1e-4, 0.75, 2.0),
        ("batchnorm_backward", x, x, gamma, mean, inv_std),
        ("max_unpool2d", dy, switches, x.shape[2:]),
        ("max_pool2d_backward", dy, switches, x.shape, (3, 3), (2, 2)),
        ("avg_pool2d_backward", dy, x.shape, (3, 3), (2, 2)),
        ("bias_relu", x, beta),
        ("bias_relu_backward", x, x),
        ("dropout", x, 0.5, 1, 2),
        ("softmax_cross_entropy", logits, target),
        ("softmax_cross_entropy_backward", logits[:, 0], logits, target),
    ]
    for call in calls:
        device.agree(*call)
        np.testing.assert_equal(device.run(*call), device.run(*call), err_msg=call[0])


def test_arguments_are_checked(device):
    a, b = device.put(np.zeros((1, 2, 3, 3), np.float32)), device.put(np.zeros(3, np.float32))
    cases = [
        (ValueError, "bias", lambda: cuda.bias_relu(a, b)),
        (ValueError, "gradient", lambda: cuda.sgd_step(a, b, None, 0.1)),
        (ValueError, "gamma", lambda: cuda.batchnorm_train(a, b, b, 1e-5)),
        (ValueError, "dy", lambda: cuda.relu_backward(b, a)),
        (ValueError, "size", lambda: cuda.lrn(a, 0, 1.0, 1.0, 1.0)),
        (ValueError, "x must be", lambda: cuda.channel_sums(b)),
        (ValueError, "p must be", lambda: cuda.dropout(a, 1.0, 0, 0)),
        (ValueError, "kernel_size", lambda: cuda.max_pool2d(a, (5, 5), (1, 1))),
        (TypeError, "float32 or float64", lambda: cuda.avg_pool2d(a > 0, (1, 1), (1, 1))),
        (TypeError, "float32 or float64", lambda: cuda.relu(a > 0)),
        (TypeError, "one dtype", lambda: cuda.relu_backward(a, a.astype(np.float64))),
        (TypeError, "one dtype", lambda: cuda.bias_relu_backward(a, a.astype(np.float64))),
    ]
    for error, words, call in cases:
        with pytest.raises(error, match=words):
            call()


def test_division_beyond_32_bits(device):
    """Sizes may pass 2^31; indices beyond it are divided exactly, too."""
    if device.name != "emulator":
        pytest.skip("runs a source of its own, which only the emulator takes")
    text = """
    #include "common.cuh"
    extern "C" __global__ void halves(const long long *a, const int *b, long long *y, int *rest)
    {
        y[threadIdx.x] = divide(a[threadIdx.x], b[threadIdx.x], rest + threadIdx.x);
    }
    """
    draw = np.random.default_rng(0)
    a = draw.integers(0, [[2**31], [2**32], [2**33], [2**62]], (4, 8)).reshape(-1)
    a[:4] = 2**32 - 1, 2**32, 2**31, 0
    b = draw.integers(1, 2**31, 32).astype(np.int32)
    b[1::2] %= 100
    b[1::2] += 1
    y, rest = np.zeros(32, np.int64), np.zeros(32, np.int32)
    launch("planted", "halves", np.float32, 1, 32, (a, b, y, rest), text=text)
    np.testing.assert_array_equal(y, a // b)
    np.testing.assert_array_equal(rest, a % b)


def test_names_and_signatures():
    assert cuda.__all__ == reference.__all__
    for name in cuda.__all__:
        slow, fast = (inspect.signature(getattr(m, name)) for m in (reference, cuda))
        assert str(slow) == str(fast), name
