"""What the tests of kernels share: drawn arrays, and what it means that two results agree."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

some = settings(max_examples=40, deadline=None)
dtypes = st.sampled_from([np.float32, np.float64])
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}


@st.composite
def arrays(draw, shape, dtype):
    """Standard normal values, C-contiguous or not."""
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    values = values.astype(dtype)
    layout = draw(st.sampled_from(["C", "F", "strided"]))
    if layout == "F":
        return np.array(values, order="F")
    if layout == "strided" and shape:
        wide = np.empty((*shape[:-1], 2 * shape[-1]), dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values


def assert_agree(name, expected, actual, exact=False):
    """Arrays or tuples of them: same dtypes and shapes, C-contiguous, equal but for rounding."""
    pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, actual)), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert b.flags.c_contiguous, name
        if exact or a.dtype.kind != "f":
            np.testing.assert_array_equal(b, a, err_msg=name)
        else:
            tolerance = TOLERANCE[a.dtype] * max(1.0, float(np.abs(a).max(initial=0)))
            np.testing.assert_allclose(b, a, rtol=0, atol=tolerance, err_msg=name)


class_shapes = st.tuples(
    st.integers(0, 5), st.integers(1, 12) | st.integers(31, 70), st.integers(0, 3)
) | st.tuples(st.integers(0, 5), st.integers(1, 40))


def cross_entropy_arguments(draw, shape, dtype):
    """(what softmax_cross_entropy takes, a gradient by its result).

    Targets: weights of classes, some of them 0, or labels, some of them ignored.
    """
    logits, weights = draw(arrays(shape, dtype)), draw(arrays(shape, dtype))
    samples = (shape[0], *shape[2:])
    target, ignored = np.maximum(weights, 0), draw(st.sampled_from([-100, 0]))
    if draw(st.booleans()):
        target = (weights.argmax(axis=1) if weights.size else np.zeros(samples)).astype(np.int64)
        target[draw(arrays(samples, dtype)) > 1] = ignored
    reduction = draw(st.sampled_from(["none", "sum", "mean"]))
    smoothing = draw(st.sampled_from([0.0, 0.1, 1.0]))
    grad = draw(arrays(samples if reduction == "none" else (), dtype))
    return (3 * logits, target, reduction, smoothing, ignored), grad


def check_cross_entropy_of_extremes(forward, backward):
    """Logits far apart, a class ruled out by -inf, and NaN, which must not vanish."""
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [0, -np.inf], [0, np.nan], [np.nan, 0]])
    weights = np.array([[1.0, 0.0]] * 5)
    for dtype in (np.float32, np.float64):
        for target in (weights.astype(dtype), np.zeros(5, np.int64)):
            losses = forward(logits.astype(dtype), target)
            np.testing.assert_array_equal(losses, [0, 2e4, 0, np.nan, np.nan])
            dlogits = backward(np.ones(5, dtype), logits.astype(dtype), target)
            np.testing.assert_array_equal(dlogits[:3], [[0, 0], [-1, 1], [0, 0]])
            assert np.isnan(dlogits[3:]).all()
    # Ruled out, it counts where labels are smoothed; no class does of a sample that weighs nothing.
    logits, labels = np.array([[0, -np.inf]] * 3), np.array([0, 1, -100])
    nothing = np.array([[1.0, 0], [0, 1], [0, 0]])
    for target in (labels, nothing):
        for smoothing in (0.1, 1.0):
            losses = forward(logits, target, "none", smoothing)
            np.testing.assert_array_equal(losses, [np.inf, np.inf, 0])
