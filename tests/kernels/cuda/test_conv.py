"""Convolutions and matrix products of the GPU against their definitions, emulated and on a GPU."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cuda, dispatch, reference
from kernels.cuda import conv, runtime
from kernels.cuda.matmul import TILE
from kernels.geometry import conv_output_size
from minidl.testing import conv2d_parameters
from tests.emulator import run
from tests.kernels.agreement import dtypes

few = settings(max_examples=15, deadline=None)
ways = pytest.mark.parametrize("way", ["own", "cublas"])
seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def agree_on_all(device, x, weight, bias, dy, settings_):
    device.agree("conv2d", x, weight, bias, *settings_)
    if bias is not None:
        device.agree("conv2d_affine", x, weight, bias, bias, dy, True, *settings_)
        device.agree("conv2d_affine", x, weight, None, bias, None, False, *settings_)
    device.agree("conv2d_input_grad", dy, weight, x.shape, *settings_)
    device.agree("conv2d_weight_grad", dy, x, weight.shape[2:], *settings_)


@ways
@given(p=conv2d_parameters(max_batch=3, min_batch=0, max_extra=8), seed=seeds, dtype=dtypes)
@few
def test_convolution(device, way, p, seed, dtype):
    shapes = p.x_shape, p.weight_shape, p.weight_shape[:1], p.y_shape
    x, weight, bias, dy = draw(seed, *shapes, dtype=dtype)
    with dispatch.products(way):
        agree_on_all(device, x, weight, bias if seed % 2 else None, dy, p.settings)


@given(p=conv2d_parameters(max_batch=3, min_batch=0, max_extra=8), seed=seeds, dtype=dtypes)
@few
def test_columns(device, p, seed, dtype):
    (x,) = draw(seed, p.x_shape, dtype=dtype)
    columns = device.agree("im2col", x, p.weight_shape[2:], *p.settings[:3], exact=True)
    device.agree("col2im", columns, p.x_shape, p.weight_shape[2:], *p.settings[:3])


@ways
@given(
    p=conv2d_parameters(min_batch=0), seed=seeds, dtype=dtypes,
    extra=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)  # fmt: skip
@few
def test_conv_transpose2d(device, way, p, seed, dtype, extra):
    extra = tuple(e % s for e, s in zip(extra, p.stride, strict=True))
    outputs = p.weight_shape[1] * p.groups
    x, weight, bias = draw(seed, p.y_shape, p.weight_shape, (outputs,), dtype=dtype)
    arguments = (x, weight, bias, p.stride, p.padding, extra, p.dilation, p.groups)
    with dispatch.products(way):
        try:
            reference.conv_transpose2d(*arguments)
        except ValueError:
            with pytest.raises(ValueError):
                device.run("conv_transpose2d", *arguments)
            return
        device.agree("conv_transpose2d", *arguments)


LARGER = (  # tiles that are full and tiles that are not, along every axis
    ((2, 9, 9, 8), (70, 9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((3, 70, 5, 6), (66, 70, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 6, 20, 19), (12, 3, 5, 4), (3, 2), (2, 1, 0, 3), (1, 2), 2),
    ((1, 5, 13, 12), (5, 1, 3, 3), (4, 3), (0, 1, 2, 0), (2, 3), 5),
)  # fmt: skip


def draw_larger(x_shape, weight_shape, settings_):
    size = conv_output_size(*x_shape[2:], weight_shape[2:], *settings_[:3])
    y_shape = (x_shape[0], weight_shape[0], *size)
    return draw(0, x_shape, weight_shape, weight_shape[:1], y_shape)


@ways
@pytest.mark.parametrize("case", LARGER)
def test_several_tiles(device, way, case):
    with dispatch.products(way), mock.patch.object(run, "RUNS", run.RUNS[:1]):
        agree_on_all(device, *draw_larger(*case[:2], case[2:]), case[2:])


@pytest.mark.parametrize("case", LARGER)
def test_many_stretches_and_parts(device, case):
    """A workspace for some of an image's positions at a time, and several parts of a sum."""
    small = {
        "WORKSPACE_BYTES": 20_000, "MOST_POSITIONS": 40, "FEWEST_POSITIONS": 20,
    }  # fmt: skip
    arrays = draw_larger(*case[:2], case[2:])
    for way in ("own", "cublas"):
        with dispatch.products(way), mock.patch.multiple(conv, **small):
            with mock.patch.object(run, "RUNS", run.RUNS[:1]):
                agree_on_all(device, *arrays, case[2:])


def test_which_products_a_convolution_takes(device):
    """cuBLAS where a product is thick enough; a pointwise one without columns."""
    x, thick, thin = draw(0, (1, 32, 3, 3), (32, 32, 1, 1), (31, 32, 1, 1))
    for weight, forced, expected in (
        (thick, "auto", True), (thin, "auto", False), (thin, "cublas", True), (thick, "own", False)
    ):  # fmt: skip
        with dispatch.products(forced):
            with mock.patch.object(runtime, "gemm", wraps=runtime.gemm) as gemm:
                device.run("conv2d", x, weight)
        assert gemm.called is expected


@ways
@given(
    sides=st.tuples(*(st.integers(0, 5) | st.integers(60, 70) for _ in range(3))),
    turned=st.tuples(st.booleans(), st.booleans()), seed=seeds, dtype=dtypes,
)  # fmt: skip
@few
def test_matmul(device, way, sides, turned, seed, dtype):
    m, k, n = sides
    shapes = (k, m) if turned[0] else (m, k), (n, k) if turned[1] else (k, n)
    a, b = draw(seed, *shapes, dtype=dtype)
    with dispatch.products(way):
        device.agree("matmul", a.T if turned[0] else a, b.T if turned[1] else b)


@ways
def test_matmul_of_stacks(device, way):
    for stacks in (((2,), ()), ((), (3,)), ((2, 1), (3,)), ((0,), (0,))):
        a, b = draw(0, (*stacks[0], 3, 4), (*stacks[1], 4, 2))
        with dispatch.products(way):
            device.agree("matmul", a, b)


def test_more_rows_than_a_grid_is_high(device, monkeypatch):
    """The grid of a product, whose y axis ends at 65535."""
    grids = []
    monkeypatch.setattr(runtime, "launch", lambda s, k, d, grid, *rest: grids.append(grid))
    a = device.put(np.zeros((1, 1), np.float32))
    tall = mock.Mock(shape=(70_000 * TILE, 1), dtype=a.dtype, flags=a.flags)
    with dispatch.products("own"), mock.patch.object(runtime, "empty", return_value=a):
        cuda.matmul(tall, a)
    assert grids == [(70_000, 1)]


def test_bad_choices():
    with pytest.raises(ValueError, match="products must be one of .* got 'cudnn'"):
        dispatch.products("cudnn")
    with pytest.raises(ValueError, match="precision must be one of .* got 'bfloat16'"):
        dispatch.precision("bfloat16")
