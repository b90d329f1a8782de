"""Errors planted in copies of the kernels: the emulator, or the reference beside it, sees each."""

import re
from unittest import mock

import numpy as np
import pytest

from kernels import cuda, dispatch, reference
from kernels.cuda import conv, runtime
from tests.emulator import HAS_COMPILER, NO_COMPILER, EmulationError, emulated
from tests.emulator.compiler import read_source
from tests.kernels.agreement import assert_agree
from tests.kernels.cuda.cuts import cut_into

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)

draw = np.random.default_rng(0)
X, DY = draw.standard_normal((2, 2, 3, 70, 63)).astype(np.float32)
LONG, MANY = X.repeat(8, axis=0), X[:, :, :20, :9].reshape(2, 60, 3, 3)
GAMMA = draw.standard_normal(3).astype(np.float32)
LOGITS, TARGET = draw.standard_normal((2, 5, 40)).astype(np.float32)


def complete(source):
    """A source with its headers written in, so that these can be edited too."""
    text, included = read_source(source), set()
    while match := re.search(r'#include "(\w+\.cuh)"\n', text):
        header = (runtime.SOURCES / match[1]).read_text(encoding="utf-8")
        header = "" if match[1] in included else header.replace("#pragma once\n", "")
        included.add(match[1])
        text = text[: match.start()] + header + text[match.end() :]
    return text


def pooled():
    settings = (3, 3), (2, 2), (1, 1, 1, 1)
    y, switches = cuda.max_pool2d(X, *settings)
    back = cuda.max_unpool2d(y, switches, X.shape[2:])
    gathered = cuda.max_pool2d_backward(y, switches, X.shape, *settings)
    assert_agree("max_pool2d", reference.max_pool2d(X, *settings), (y, switches), True)
    assert_agree("max_unpool2d", reference.max_unpool2d(y, switches, X.shape[2:]), back, True)
    assert_agree("max_pool2d_backward", back, gathered, True)


def convolved(way):
    """Every pass, the way over columns in several stretches."""
    x, weight = X[:, :, :9, :8], X[0, 0, :15, :9].reshape(5, 3, 3, 3)
    settings = (2, 3), (1, 2, 1, 1), (1, 2)
    with dispatch.products(way), mock.patch.object(conv, "WORKSPACE_BYTES", 1000):
        y = cuda.conv2d(x, weight, None, *settings)
        agrees("conv2d", x, weight, None, *settings)
        agrees("conv2d_input_grad", y, weight, x.shape, *settings)
        agrees("conv2d_weight_grad", y, x, (3, 3), *settings)


def agrees(name, *arguments):
    assert_agree(name, getattr(reference, name)(*arguments), getattr(cuda, name)(*arguments))


def agrees_by_own_products(name, *arguments):
    with dispatch.products("own"):
        agrees(name, *arguments)


def stepped():
    """A parameter of several blocks between small ones."""
    rows = [np.repeat(LOGITS.reshape(-1), n)[: n * 199] for n in (1, 11, 2)]
    here, there = ([(x.copy(), x, x.copy()) for x in rows] for _ in range(2))
    reference.optim.sgd_steps(here, 0.1, 0.9)
    cuda.optim.sgd_steps(there, 0.1, 0.9)
    for expected, actual in zip(here, there, strict=True):
        for a, b in zip(expected, actual, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-6, err_msg="equal")


def by_tensor_cores(shape):
    """A convolution of several tiles along every axis, by blocks of one shape."""
    x = draw.integers(-4, 5, (2, 32, 9, 8)).astype(np.float32)
    weight = draw.integers(-4, 5, (130, 32, 3, 3)).astype(np.float32)
    with dispatch.precision("tf32"), cut_into(shape):
        agrees("conv2d", x, weight, None, (1, 1), (1, 1, 1, 1))


RUNS = {
    "warps": lambda: by_tensor_cores("high"),
    "groups": lambda: by_tensor_cores("group_high"),
    "steps": stepped,
    "pool": pooled,
    "average": lambda: agrees("avg_pool2d_backward", DY[:, :, :35, :31], X.shape, (2, 3), (2, 2)),
    "reduce": lambda: agrees("channel_sums", LONG),
    "batchnorm": lambda: agrees("batchnorm_train", X, GAMMA, GAMMA, 1e-3),
    "short planes": lambda: agrees("batchnorm_train", X[:, :, :7, :9], GAMMA, GAMMA, 1e-3),
    "parts": lambda: agrees("batchnorm_train", LONG, GAMMA, GAMMA, 1e-3),
    "gradients": lambda: agrees("batchnorm_backward", DY[:, :, :7], X[:, :, :7], *[GAMMA] * 3),
    "gradients of parts": lambda: agrees("batchnorm_backward", LONG, LONG, *[GAMMA] * 3),
    "one part": lambda: agrees("channel_sums", X[:, :, :8, :9]),
    "bias": lambda: agrees("bias_relu_backward", DY, X),
    "add": lambda: agrees("add", X[0, 0], DY[0, 0]),
    "lrn": lambda: agrees("lrn", MANY, 30, 0.1, 0.75, 1.0),
    "dropout": lambda: agrees("dropout", X[0, 0, :, :61], 0.5, 1, 2),
    "loss": lambda: agrees("softmax_cross_entropy", LOGITS, TARGET),
    "conv": lambda: convolved("own"),
    "columns": lambda: convolved("cublas"),
    "matmul": lambda: agrees_by_own_products("matmul", X[0, 0], DY[0, 0].T),
}
# Of the loop over tiles: the barrier, and what is after it.
SHOW = "        product.show();\n"
BARRIER = "        __syncthreads();  // all have this stage, and are done with the one before\n"
START = "        product.start(memory + now * SIZE, sums);\n"
FETCH = """        if (step + STAGES - 1 < steps) {
            left.fetch(memory + then * SIZE);
            right.fetch(memory + then * SIZE + LEFT);
        }
"""
FINISH = "product.finish(memory + now * SIZE, sums);"
# run, source, what is there, what is planted (everywhere), and the message that tells of it
READ, WRITE = r"thread .* of block .* reads `{}\[", r"thread .* of block .* writes `{}\["
PLANTED = [
    ("warps", "conv_tf32", "wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();",
     "equal|no TF32 number|depends on the order"),
    ("warps", "conv_tf32", BARRIER + START + FETCH, FETCH + BARRIER + START,
     "equal|depends on the order"),
    ("warps", "conv_tf32", "return LEFT ? part % 2", "return !LEFT ? part % 2", "equal"),
    ("groups", "conv_tf32", SHOW + BARRIER, BARRIER + SHOW, "before open_products or show_copies"),
    ("groups", "conv_tf32", BARRIER + START + FETCH, FETCH + BARRIER + START,
     "equal|depends on the order|no TF32 number|before open_products"),
    ("groups", "conv_tf32", FINISH, f"if (step + 1 == steps) {FINISH}", "equal|no TF32 number"),
    ("groups", "conv_tf32", "(k / 4 ^ row", "(k / 4 ^ 0 * row", "equal"),
    ("groups", "conv_tf32", "aligned(memory)", "aligned(memory) + 32", "begins where none can"),
    ("groups", "conv_tf32", "sums.at[0], stage + a + k", "sums.at[0], stage + k", "equal"),
    ("steps", "optim", "at(k) < size", "at(k) <= size", "`table"),
    ("steps", "optim", "ends[middle] > ", "ends[middle] >= ", "equal|`table"),
    ("steps", "optim", "row ? ends[row - 1] : 0", "0", "equal"),
    ("pool", "pool", "winner = {x[first]", "winner = {x[first + h * w]", READ.format("x")),
    ("pool", "pool", "? x[r * w + c] :", "? x[r * w + c - 1] :", READ.format("x")),
    ("pool", "pool", "there = row <= rows.last && ", "there = ", READ.format("switches")),
    ("pool", "pool", "if (first.column + k < w)", "", WRITE.format("dx") + "|`dx`|equal"),
    ("pool", "pool", "switches[i] = winner", "switches[i + 1] = winner", WRITE.format("switches")),
    ("pool", "pool", "stop > extent", "false", READ.format("x")),
    ("pool", "pool", "p < pixels; p += WARP", "p <= pixels; p += WARP", "`x`|" + WRITE.format("x")),
    ("pool", "pool", "if (leads)", "if (pixel >= 0)", "depends on|equal"),
    ("average", "pool", "outputs - 1)", "outputs)", READ.format("dy")),
    ("reduce", "reduce", "value(turn, k) < count", "value(turn, k) <= count",
     READ.format("x") + "|equal"),
    ("reduce", "reduce", "here.whole && at_pack(x)", "true", "is no multiple"),
    ("reduce", "reduce", "here.whole && at_pack(x)", "at_pack(x)", "equal|is no multiple"),
    ("reduce", "reduce", "__syncthreads();\n    return", "return", "depends on the order"),
    ("reduce", "reduce", "sums[blockIdx.x] = total", "sums[blockIdx.x + 1] = total",
     WRITE.format("sums")),
    ("reduce", "reduce", "channel >= channels", "channel > channels", "`sums|`y"),
    ("one part", "reduce", "(number < count)", "(number <= count)", READ.format("x") + "|equal"),
    ("batchnorm", "batchnorm", "__syncthreads();  // an earlier", "// an earlier",
     "depends on the order"),
    ("batchnorm", "batchnorm", "? distance : (T)0", "? distance : (T)1", "equal"),
    ("short planes", "batchnorm", "deviation = batch.put", "batch.put", "equal"),
    ("parts", "batchnorm", "position = 0;\n        channel =", "channel =", "equal"),
    ("parts", "batchnorm", "(size - 1) / PACK - thread_number()", "thread_number() + 1",
     "equal"),
    ("gradients", "norm_grad", "__syncthreads();\n    InputGradient", "InputGradient",
     "depends on the order"),
    ("gradients", "norm_grad", "{centre, means[2]}", "{centre, 0}", "equal"),
    ("gradients of parts", "norm_grad", "blockIdx.x + plane", "blockIdx.x + 1",
     "equal|depends on the order"),
    ("bias", "activation", "y[offset(value(turn, k))]", "y[offset(value(turn, k)) + 1]",
     "`dx`|" + WRITE.format("dx")),
    ("add", "add", "k < count ? x[", "true ? x[", READ.format("[ab]")),
    ("lrn", "lrn", "tile.own(k) + after", "tile.own(k) + after + 1", "equal"),
    ("lrn", "lrn", "__syncthreads();  // the chunk", "// the chunk", "depends on the order"),
    ("lrn", "lrn", "return position < positions && ", "return ", READ.format("x") + "|equal"),
    ("dropout", "dropout", "&& first + k < size", "", READ.format("x")),
    ("dropout", "dropout", "0xD2511F53ull", "0xD2511F55ull", "equal"),
    ("loss", "loss", "step > 0; step /= 2) {", "step > 1; step /= 2) {", "equal"),
    ("loss", "loss", "c < sample.classes", "c <= sample.classes", READ.format("logits") + "|equal"),
    ("matmul", "matmul", "k < depth && other < others", "k < depth", READ.format("[ab]")),
    ("matmul", "matmul", "k < depth && other < others", "other < others", READ.format("[ab]")),
    ("matmul", "matmul", "__syncthreads();\n    }\n}", "}\n}", "depends on the order"),
    ("matmul", "matmul", "now = 1 - now;", "", "depends on the order|equal"),
    ("matmul", "matmul", "n < columns)", "n <= columns)", "`y`|" + WRITE.format("y")),
    ("conv", "conv", "row >= 0 && row < rows && ", "", READ.format("(x|dy)")),
    ("conv", "conv", "column >= 0 && ", "", READ.format("(x|dy)") + "|equal"),
    ("conv", "conv", "place.middle * stride_h - top", "place.middle * stride_h", "equal"),
    ("conv", "conv", "m < group_outputs)\n", "m <= group_outputs)\n", "`y`|" + WRITE.format("y")),
    ("conv", "conv", "back = tap_step * dilation / stride", "back = 1 + tap_step", "equal"),
    ("conv", "conv", "(first + before - tap * dilation)", "(first + before)", "equal"),
    ("conv", "conv", "left > 0 && c < channels", "left > 0", READ.format("weight") + "|equal"),
    ("conv", "conv", "walk.left > 0 && o < outputs", "o < outputs", READ.format("dy")),
    ("conv", "conv", "inside[r] = number < taps", "inside[r] = true", READ.format("x")),
    ("columns", "conv", "q >= 0 && q < count", "q < count", READ.format("cols") + "|equal"),
    ("columns", "conv", "(long long)channels * count", "(long long)channels * (count + 1)",
     READ.format("x") + "|" + WRITE.format("cols")),
    ("columns", "conv", "v % stride_h || ", "", "equal"),
    ("columns", "conv", "first < start ? *pixel", "false ? *pixel", "equal"),
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_seen_in_the_kernels_as_they_are(run):
    with emulated({source: complete(source) for source in {p[1] for p in PLANTED if p[0] == run}}):
        RUNS[run]()


@pytest.mark.parametrize("run, source, old, new, message", PLANTED)
def test_planted_errors_are_seen(run, source, old, new, message):
    text = complete(source)
    assert old in text
    with emulated({source: text.replace(old, new)}):
        with pytest.raises(AssertionError, match=message) as raised:
            RUNS[run]()
    if isinstance(raised.value, EmulationError):
        assert f"{source}.cu" in str(raised.value)
