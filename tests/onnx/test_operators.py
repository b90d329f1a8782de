"""Elementwise, matrix, reduction and shape operators against ONNX Runtime over their attributes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minidl.testing import broadcastable_shapes, shapes

onnx = pytest.importorskip("onnx")
few = settings(max_examples=25, deadline=None)
OPSETS = (7, 10, 11, 12, 13, 14, 17, 18, 21, 23, 25, 28)
opsets = st.sampled_from(OPSETS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def since(opset):
    return st.sampled_from([o for o in OPSETS if o >= opset])


def before(opset):
    return st.sampled_from([o for o in OPSETS if o < opset])


def int64(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "op_type", ["Relu", "Tanh", "Sigmoid", "Exp", "Neg", "Abs", "Identity", "Sqrt", "Log"]
)
@given(shapes(), opsets)
@settings(few, max_examples=5)
def test_unary(oracle, op_type, shape, opset):
    x = normal(*shape)
    oracle.agree(op_type, [np.asarray(np.abs(x) + 0.1) if op_type in ("Sqrt", "Log") else x], opset)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@given(broadcastable_shapes(), opsets)
@settings(few, max_examples=10)
def test_binary(oracle, op_type, pair, opset):
    a, b = normal(*pair[0]), normal(*pair[1], seed=1)
    oracle.agree(op_type, [a, np.where(np.abs(b) < 0.1, 1, b).astype(np.float32)], opset)


@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min"])
@given(st.integers(1, 4), st.data())
@settings(few, max_examples=10)
def test_variadic(oracle, op_type, count, data):
    drawn = data.draw(broadcastable_shapes(count))
    inputs = [normal(*shape, seed=i) for i, shape in enumerate(drawn)]
    oracle.agree(op_type, inputs, data.draw(since(8)))


@given(broadcastable_shapes(), since(12), st.sampled_from((np.float32, np.int64)), st.booleans())
@few
def test_pow(oracle, pair, opset, kind, constant):
    exponent = np.asarray(np.random.default_rng(0).integers(-2, 4, pair[1]), kind)
    base = np.asarray(np.abs(normal(*pair[0])) + 0.2, np.float32)
    oracle.agree("Pow", [base, exponent], opset, constant=(1,) if constant else ())


@given(st.sampled_from(["FLOAT", "DOUBLE", "INT64", "INT32", "BOOL"]), since(9))
@few
def test_cast(oracle, name, opset):
    oracle.agree("Cast", [normal(3, 4) * 3], opset, to=onnx.TensorProto.DataType.Value(name))


@given(st.data())
@few
def test_matmul(oracle, data):
    lead_a, lead_b = data.draw(broadcastable_shapes(max_dims=2))
    m, k, n = (data.draw(st.integers(1, 3)) for _ in range(3))
    a, b = data.draw(
        st.sampled_from(
            [((*lead_a, m, k), (*lead_b, k, n)), ((k,), (*lead_b, k, n)), ((*lead_a, m, k), (k,))]
        )
    )
    oracle.agree("MatMul", [normal(*a), normal(*b, seed=1)], data.draw(opsets))


@given(st.data(), st.booleans(), st.booleans(), st.floats(-2, 2), st.floats(-2, 2))
@settings(few, max_examples=40)
def test_gemm(oracle, data, trans_a, trans_b, alpha, beta):
    m, k, n = (data.draw(st.integers(1, 4)) for _ in range(3))
    a, b = normal(m, k), normal(k, n, seed=1)
    c = data.draw(st.sampled_from([None, (), (n,), (1,), (m, 1), (1, n), (m, n)]))
    inputs = [a.T.copy() if trans_a else a, b.T.copy() if trans_b else b]
    inputs += [] if c is None else [normal(*c, seed=2)]
    opset = data.draw(opsets if c is not None else since(11))
    oracle.agree(
        "Gemm", inputs, opset, alpha=alpha, beta=beta, transA=int(trans_a), transB=int(trans_b)
    )


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@given(shapes(min_dims=1), st.data())
@few
def test_softmax(oracle, op_type, shape, data):
    opset = data.draw(opsets)
    low = -len(shape) if opset >= 11 else 0
    axis = data.draw(st.integers(low, len(shape) - 1) | st.none())
    assume(axis is not None or opset >= 13 or len(shape) > 1)
    settings_ = {} if axis is None else {"axis": axis}
    oracle.agree(op_type, [normal(*shape)], opset, **settings_)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceLogSumExp"])
@given(shapes(min_dims=1), st.data())
@settings(few, max_examples=15)
def test_reductions(oracle, op_type, shape, data):
    opset = data.draw(opsets)
    assume(opset >= 11)
    axes = data.draw(st.none() | st.sets(st.integers(0, len(shape) - 1)).map(sorted))
    axes = axes and [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    attributes = {"keepdims": data.draw(st.integers(0, 1))}
    inputs = [normal(*shape)]
    if opset >= (13 if op_type == "ReduceSum" else 18):
        attributes["noop_with_empty_axes"] = data.draw(st.integers(0, 1))
        # Without axes ONNX Runtime's other reductions ignore the flag.
        assume(axes or op_type == "ReduceSum" or not attributes["noop_with_empty_axes"])
        inputs += [] if axes is None else [int64(*axes)]
    elif axes:
        attributes["axes"] = axes
    oracle.agree(op_type, inputs, opset, constant=(1,), **attributes)


@given(st.none() | st.floats(-1, 1), st.none() | st.floats(-1, 1), opsets)
@few
def test_clip(oracle, low, high, opset):
    x = normal(3, 4)
    if opset < 11:
        bounds = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        # ONNX Runtime's oldest Clip prefers the lower bound where the two cross.
        assume(low is None or high is None or low <= high)
        return oracle.agree("Clip", [x], opset, **bounds)
    inputs = [None if b is None else np.array(b, np.float32) for b in (low, high)]
    oracle.agree("Clip", [x, *inputs], opset, constant=(1, 2))


@given(shapes(max_dims=4), st.data())
@few
def test_flatten(oracle, shape, data):
    opset = data.draw(opsets)
    low = -len(shape) if opset >= 11 else 0
    axis = data.draw(st.integers(low, len(shape)))
    oracle.agree("Flatten", [normal(*shape)], opset, axis=axis)


@given(shapes(min_dims=1), st.data(), st.booleans())
@few
def test_reshape(oracle, shape, data, constant):
    order = data.draw(st.permutations(shape))
    target = [*order, 1] if data.draw(st.booleans()) else list(order)
    if data.draw(st.booleans()):
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    for i, size in enumerate(shape):
        if target[i] == size and data.draw(st.booleans()):
            target[i] = 0
    inputs = [normal(*shape), int64(*target)]
    oracle.agree("Reshape", inputs, data.draw(opsets), constant=(1,) if constant else ())


def test_reshape_to_nothing(oracle):
    x = np.zeros((2, 0, 3), np.float32)
    oracle.agree("Reshape", [x, int64(0, 6)], 14, constant=(1,), allowzero=1)
    oracle.agree("Reshape", [x, int64(3, 0, 2)], 14, constant=(1,))


@given(shapes(min_dims=1, max_dims=4), st.data())
@few
def test_transpose(oracle, shape, data):
    perm = data.draw(st.none() | st.permutations(range(len(shape))))
    attributes = {} if perm is None else {"perm": perm}
    oracle.agree("Transpose", [normal(*shape)], data.draw(opsets), **attributes)


@given(broadcastable_shapes(max_dims=4), since(8))
@few
def test_expand(oracle, pair, opset):
    assume(pair[1])
    oracle.agree("Expand", [normal(*pair[0]), int64(*pair[1])], opset, constant=(1,))


@given(st.integers(1, 3), st.data())
@few
def test_concat(oracle, count, data):
    shape = list(data.draw(shapes(min_dims=1)))
    opset = data.draw(opsets)
    axis = data.draw(st.integers(-len(shape) if opset >= 11 else 0, len(shape) - 1))
    inputs = []
    for i in range(count):
        shape[axis] = data.draw(st.integers(1, 3))
        inputs.append(normal(*shape, seed=i))
    oracle.agree("Concat", inputs, opset, axis=axis)


@pytest.mark.parametrize("op_type", ["Squeeze", "Unsqueeze"])
@given(st.lists(st.sampled_from((1, 1, 2, 3)), min_size=1, max_size=4), st.data())
@few
def test_squeeze_and_unsqueeze(oracle, op_type, full, data):
    ones = [i for i, n in enumerate(full) if n == 1]
    assume(ones)
    axes = data.draw(st.lists(st.sampled_from(ones), unique=True, min_size=1))
    opset = data.draw(opsets)
    shape = full if op_type == "Squeeze" else [n for i, n in enumerate(full) if i not in axes]
    if opset >= 11:
        axes = [a - len(full) if data.draw(st.booleans()) else a for a in axes]
    else:
        axes.sort()
    if op_type == "Squeeze" and data.draw(st.booleans()):
        return oracle.agree(op_type, [normal(*shape)], opset)
    if opset < 13:
        return oracle.agree(op_type, [normal(*shape)], opset, axes=axes)
    oracle.agree(op_type, [normal(*shape), int64(*axes)], opset, constant=(1,))


@given(shapes(min_dims=1, max_side=6), st.data())
@settings(few, max_examples=40)
def test_slice(oracle, shape, data):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    bounds = st.integers(-8, 8) | st.sampled_from((2**63 - 1, -(2**63) + 1))
    starts, ends = ([data.draw(bounds) for _ in axes] for _ in range(2))
    opset = data.draw(opsets)
    if opset < 10:
        kept = [len(range(*slice(s, e).indices(shape[a]))) for a, s, e in zip(
            axes, starts, ends, strict=True)]  # fmt: skip
        assume(all(kept))
        return oracle.agree("Slice", [normal(*shape)], opset, starts=starts, ends=ends, axes=axes)
    inputs = [normal(*shape), int64(*starts), int64(*ends), int64(*axes)]
    if data.draw(st.booleans()):
        steps = [data.draw(st.sampled_from((-2, -1, 1, 2))) for _ in axes]
        # ONNX Runtime takes a huge end for "to the front" where the step is negative.
        assume(all(s > 0 or e <= 8 for e, s in zip(ends, steps, strict=True)))
        inputs.append(int64(*steps))
    oracle.agree("Slice", inputs, opset, constant=(1, 2, 3, 4))


@given(shapes(min_dims=1), st.data(), shapes(max_dims=2))
@few
def test_gather(oracle, shape, data, indices_shape):
    opset = data.draw(opsets)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    low = -shape[axis] if opset >= 11 else 0
    indices = np.random.default_rng(0).integers(low, shape[axis], indices_shape)
    oracle.agree("Gather", [normal(*shape), np.asarray(indices)], opset, constant=(1,), axis=axis)


@given(shapes(min_dims=1, min_side=3, max_side=5), st.data())
@settings(few, max_examples=40)
def test_pad(oracle, shape, data):
    opset = data.draw(opsets)
    axes = list(range(len(shape)))
    if opset >= 18:
        axes = data.draw(st.lists(st.sampled_from(axes), unique=True, min_size=1))
    pads = [data.draw(st.integers(-1, 3)) for _ in range(2 * len(axes))]
    value = data.draw(st.none() | st.just(1.5))
    if opset < 11:
        extra = {} if value is None else {"value": value}
        return oracle.agree("Pad", [normal(*shape)], opset, pads=pads, **extra)
    inputs = [normal(*shape), int64(*pads), None if value is None else np.float32(value)]
    inputs[2] = inputs[2] if value is None else np.array(inputs[2])
    if opset >= 18:
        inputs.append(int64(*axes))
    oracle.agree("Pad", inputs, opset, constant=(1, 2, 3), mode="constant")


@pytest.mark.parametrize("opset", [7, 10, 12, 13, 22])
@pytest.mark.parametrize("mask", [False, True])
def test_dropout(oracle, opset, mask):
    x = normal(3, 4)
    outputs = 1 + mask
    if opset < 12:
        # ONNX Runtime's older Dropout has a boolean mask where the text has x's dtype.
        oracle.save("Dropout", [x], opset, outputs=outputs, ratio=0.3)
        oracle.declare([x] * outputs)
        y, *masks = oracle.ours(x)
        assert (y == x).all() and all(m.all() and m.shape == x.shape for m in masks)
        return
    ratio, training = np.array(0.3, np.float32), np.array(False)
    oracle.agree("Dropout", [x, ratio, training], opset, constant=(1, 2), outputs=outputs, seed=3)


@pytest.mark.parametrize(
    "attributes",
    [
        {"value_float": 1.5}, {"value_floats": [1.5, 2.0]}, {"value_int": 3},
        {"value_ints": [3, 4]}, {"value": np.array([[1.5]], np.float64)},
        {"value": np.array([True, False])},
    ],
)  # fmt: skip
def test_constant(oracle, attributes):
    if "value" in attributes:
        attributes = {"value": onnx.numpy_helper.from_array(attributes["value"])}
    oracle.agree("Constant", [], 13, **attributes)


def test_integers_and_float64(oracle):
    a, b = int64(1, -2, 3), int64(4, 5, 6)
    for op_type in ("Add", "Mul", "Sub", "Max"):
        oracle.agree(op_type, [a, b], 13)
    x = np.random.default_rng(0).standard_normal((3, 4))
    oracle.agree("Gemm", [x, x, x[:, :3]], 13, transB=1, alpha=1.5)
    oracle.agree("Clip", [a, np.array(-1), np.array(2)], 13, constant=(1, 2))
