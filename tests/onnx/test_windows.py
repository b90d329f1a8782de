"""Operators on windows and channels, each against ONNX Runtime over its attributes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minidl.testing import conv2d_parameters

onnx = pytest.importorskip("onnx")
few = settings(max_examples=40, deadline=None)
AUTO_PADS = ("SAME_UPPER", "SAME_LOWER", "VALID")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def onnx_pads(padding):
    top, bottom, left, right = padding
    return [top, left, bottom, right]


@given(conv2d_parameters(), st.sampled_from(("NOTSET", *AUTO_PADS)), st.data())
@few
def test_conv(oracle, p, auto_pad, data):
    x, w = normal(*p.x_shape), normal(*p.weight_shape, seed=1)
    bias = data.draw(st.sampled_from([(), (normal(w.shape[0], seed=2),)]))
    if auto_pad == "NOTSET":
        pads = {"pads": onnx_pads(p.padding)}
    else:
        reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], p.dilation, strict=True)]
        if auto_pad == "VALID":
            assume(all(n >= r for n, r in zip(x.shape[2:], reach, strict=True)))
        else:
            assume(p.dilation == (1, 1))  # ONNX Runtime has no others
        pads = {"auto_pad": auto_pad}
    if data.draw(st.booleans()):
        pads["kernel_shape"] = p.weight_shape[2:]
    oracle.agree(
        "Conv", [x, w, *bias], data.draw(st.sampled_from((7, 11, 22))),
        constant=data.draw(st.sampled_from([(), (1, 2)])),
        strides=p.stride, dilations=p.dilation, group=p.groups, **pads,
    )  # fmt: skip


@given(conv2d_parameters(), st.sampled_from(("NOTSET", *AUTO_PADS)), st.data())
@few
def test_conv_transpose(oracle, p, auto_pad, data):
    # The weight of a convolution from p.x_shape is that of the transpose to it.
    x, w = normal(*p.y_shape), normal(*p.weight_shape, seed=1)
    bias = data.draw(st.sampled_from([(), (normal(p.x_shape[1], seed=2),)]))
    reach = np.array([(k - 1) * d + 1 for k, d in zip(w.shape[2:], p.dilation, strict=True)])
    strides, size = np.array(p.stride), np.array(x.shape[2:])
    natural = (strides * (size - 1) + reach).tolist()
    pads = {"auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        extra = [data.draw(st.integers(0, n - 1)) for n in p.stride]
        by_shape = data.draw(st.booleans())
        if by_shape:
            limits = zip(natural, p.stride, strict=True)
            asked = [data.draw(st.integers(max(1, n - 3), n + s - 1)) for n, s in limits]
            pads = {"output_shape": asked}
        else:
            pads = {"pads": onnx_pads(p.padding), "output_padding": extra}
            sums = np.array(p.padding).reshape(2, 2).sum(axis=1)
            assume((np.array(natural) + extra - sums >= 1).all())
    elif auto_pad != "VALID":
        assume((natural >= strides * size).all())  # ONNX Runtime breaks the rule of SAME there
    oracle.agree(
        "ConvTranspose", [x, w, *bias], data.draw(st.sampled_from((7, 11, 22))), constant=(1,),
        strides=p.stride, dilations=p.dilation, group=p.groups, **pads,
    )  # fmt: skip


@st.composite
def poolings(draw, dilated):
    """(plane, attributes) of a pooling; pads may be up to the kernel's size less one."""
    kernel, strides = ([draw(st.integers(1, 3)), draw(st.integers(1, 3))] for _ in range(2))
    dilations = [draw(st.integers(1, 2)) if dilated else 1 for _ in range(2)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    plane = [draw(st.integers(max(r, 2), r + 4)) for r in reach]
    attributes = {"kernel_shape": kernel, "strides": strides}
    if dilations != [1, 1]:
        attributes["dilations"] = dilations
    # Dilated SAME pools are left out: ONNX Runtime computes their padding without the dilation.
    # Nor has it those whose windows leave gaps: it computes negative paddings.
    auto_pad = draw(st.sampled_from(("NOTSET", "NOTSET", "VALID", *AUTO_PADS)))
    gaps = any(s > k for s, k in zip(strides, kernel, strict=True))
    if auto_pad == "NOTSET" or "dilations" in attributes or gaps:
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    else:
        attributes["auto_pad"] = auto_pad
    return plane, attributes


@given(poolings(dilated=True), st.booleans(), st.data())
@settings(few, max_examples=80)
def test_max_pool(oracle, pooling, indices, data):
    plane, attributes = pooling
    x = np.random.default_rng(0).permutation(6 * plane[0] * plane[1]).astype(np.float32)
    if indices:
        attributes["storage_order"] = data.draw(st.integers(0, 1))
    oracle.agree(
        "MaxPool", [x.reshape(2, 3, *plane)], data.draw(st.sampled_from((10, 12, 22))),
        outputs=1 + indices, **attributes,
    )  # fmt: skip


@given(poolings(dilated=False), st.integers(0, 1))
@settings(few, max_examples=60)
def test_average_pool(oracle, pooling, include_pad):
    plane, attributes = pooling
    x = normal(2, 3, *plane)
    oracle.agree("AveragePool", [x], 10, count_include_pad=include_pad, **attributes)


@given(poolings(dilated=True), st.integers(0, 1))
@few
def test_dilated_average_pool(oracle, pooling, include_pad):
    plane, attributes = pooling
    x = normal(2, 3, *plane)
    oracle.agree("AveragePool", [x], 19, count_include_pad=include_pad, **attributes)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "Conv"])
def test_same_counts_the_dilation(oracle, op_type, auto_pad):
    """Kernel 2 x 4, dilations 2 and 1, stride 1: totals of 2 and 3 rows and columns."""
    x = normal(1, 2, 5, 6)
    left, right = (1, 2) if auto_pad == "SAME_UPPER" else (2, 1)
    weight = [normal(3, 2, 2, 4, seed=1)] if op_type == "Conv" else []
    common = {"kernel_shape": [2, 4], "dilations": [2, 1]}
    oracle.save(op_type, [x, *weight], 19, **common, pads=[1, left, 1, right])
    expected = oracle.theirs(x, *weight)
    oracle.save(op_type, [x, *weight], 19, **common, auto_pad=auto_pad)
    oracle.declare(expected)
    np.testing.assert_allclose(oracle.ours(x, *weight)[0], expected[0], 1e-5, 1e-5)


@pytest.mark.parametrize("opset", [7, 13, 22])
def test_global_average_pool(oracle, opset):
    oracle.agree("GlobalAveragePool", [normal(2, 3, 4, 5)], opset)


@given(
    st.sampled_from([(2, 5, 3, 4), (3, 4), (2, 3, 5), (2, 3, 2, 3, 2)]),
    st.sampled_from((7, 9, 14, 15)),
    st.floats(1e-6, 0.1),
)
@few
def test_batch_normalization(oracle, shape, opset, epsilon):
    scale, bias, mean = (normal(shape[1], seed=i) for i in (1, 2, 3))
    var = np.abs(normal(shape[1], seed=4)) + 0.1
    inputs = [normal(*shape), scale, bias, mean, var]
    oracle.agree(
        "BatchNormalization", inputs, opset, (1, 2, 3, 4), epsilon=epsilon, momentum=0.8
    )


@given(
    st.sampled_from([1, 3, 5, 7]), st.floats(1e-3, 2.0), st.floats(0.3, 1.0), st.floats(0.5, 2.0),
    st.sampled_from((7, 13)),
)  # fmt: skip
@few
def test_lrn(oracle, size, alpha, beta, bias, opset):
    oracle.agree("LRN", [normal(2, 4, 3, 2)], opset, size=size, alpha=alpha, beta=beta, bias=bias)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_lrn_of_even_size(oracle, size):
    """ONNX Runtime has none; the formula of the specification, channel by channel."""
    x = normal(2, 5, 2, 3)
    oracle.save("LRN", [x], 13, size=size, alpha=1.5, beta=0.6, bias=1.1)
    oracle.declare([x])
    scale = np.empty_like(x)
    for c in range(5):
        window = slice(max(0, c - (size - 1) // 2), min(4, c + size // 2) + 1)
        scale[:, c] = 1.1 + 1.5 / size * (x[:, window] ** 2).sum(axis=1)
    np.testing.assert_allclose(oracle.ours(x)[0], x / scale**0.6, 1e-5)
