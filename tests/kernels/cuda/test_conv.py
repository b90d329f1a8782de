"""Convolutions and matrix products of the GPU against their definitions, emulated and on a GPU."""

import ctypes
import sys
import types
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
from tests.emulator.stand_in import stand_in
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


def test_more_rows_than_a_grid_is_high(device, monkeypatch):
    """The grid of a product, whose y axis ends at 65535."""
    grids = []
    monkeypatch.setattr(runtime, "launch", lambda s, k, d, grid, *rest: grids.append(grid))
    a = device.put(np.zeros((1, 1), np.float32))
    tall = mock.Mock(shape=(70_000 * TILE, 1), dtype=a.dtype, flags=a.flags)
    with dispatch.products("own"), mock.patch.object(runtime, "empty", return_value=a):
        cuda.matmul(tall, a)
    assert grids == [(70_000, 1)]


class Cublas:
    """A stand-in for cuBLAS, which is not here: notes math modes, and multiplies by its own rules.

    gemmStridedBatchedEx makes column-major C (m, n) = A (m, k) B (k, n), of float16 operands, in
    float32, and others that lie `stride` elements further.
    """

    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 68, -1

    def __init__(self):
        self.modes = [0]

    def getMathMode(self, handle):
        return self.modes[-1]

    def setMathMode(self, handle, mode):
        self.modes.append(mode)

    def gemmStridedBatchedEx(self, handle, *arguments):
        (turn_a, turn_b, m, n, k, alpha, a, a_type, a_step, a_stride, b, b_type, b_step, b_stride,
         beta, c, c_type, c_step, c_stride, count, compute, _) = arguments  # fmt: skip
        assert (turn_a, turn_b, a_type, b_type, c_type, compute) == (0, 0, 2, 2, 0, 68)
        assert (columns(alpha, 1, 1, 1, np.float32), columns(beta, 1, 1, 1, np.float32)) == (1, 0)
        assert a_step >= m and b_step >= k and c_step >= m and (count == 1 or c_stride >= m * n)
        for i in range(count):
            left = columns(a + 2 * i * a_stride, m, k, a_step, np.float16).astype(np.float32)
            right = columns(b + 2 * i * b_stride, k, n, b_step, np.float16).astype(np.float32)
            columns(c + 4 * i * c_stride, m, n, c_step, np.float32)[...] = left @ right


def columns(address, height, width, step, dtype):
    """The column-major matrix at an address, its columns `step` elements apart."""
    size = np.dtype(dtype).itemsize * step * width
    memory = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype)
    return memory.reshape(width, step).T[:height]


@pytest.fixture
def cublas(monkeypatch):
    """cupy.cuda with the stand-in, for arrays of the stand-in for CuPy."""
    library = types.ModuleType("cupy.cuda")
    library.cublas, library.device = Cublas(), mock.Mock()
    library.runtime = mock.Mock(CUDA_R_16F=2, CUDA_R_32F=0)
    with stand_in():
        monkeypatch.setitem(sys.modules, "cupy.cuda", library)
        yield library.cublas


def test_tf32_sets_the_math_mode_of_cublas_for_its_products_alone(cublas, monkeypatch):
    seen = []
    arrays = mock.Mock()
    arrays.matmul = lambda a, b, out: seen.append(cublas.modes[-1])
    monkeypatch.setattr(runtime, "array_module", lambda: arrays)
    one, wide = np.ones((2, 2), np.float32), np.ones((2, 2))
    runtime.gemm(one, one, one)
    with dispatch.precision("tf32"):
        runtime.gemm(one, one, one)
        runtime.gemm(wide, wide, wide)
    runtime.gemm(one, one, one)
    assert seen == [0, runtime.CUBLAS_TF32_TENSOR_OP_MATH, 0, 0] and cublas.modes[-1] == 0


@pytest.mark.parametrize(
    "a_shape, b_shape",
    [((3, 4), (4, 5)), ((1, 2, 3, 4), (6, 2, 4, 5)), ((2, 3, 0), (2, 0, 5)), ((6, 3, 4), (4, 5)),
     ((3, 1, 2, 3, 4), (5, 1, 4, 5)), ((2, 3, 4), (7, 1, 4, 5)), ((0, 3, 4), (4, 5))],
)  # fmt: skip
def test_float16_products_are_summed_in_float32(cublas, a_shape, b_shape):
    import cupy

    a, b = draw(0, a_shape, b_shape, dtype=np.float32)
    rounded = [x.astype(np.float16).astype(np.float32) for x in (a, b)]
    turned = cupy.asarray(np.ascontiguousarray(a.swapaxes(-1, -2))).swapaxes(-1, -2)
    for left in (cupy.asarray(a), turned):
        out = cupy.empty(np.matmul(a, b).shape, np.float32)
        with dispatch.precision("float16"):
            runtime.gemm(left, cupy.asarray(b), out)
        np.testing.assert_allclose(out.get(), np.matmul(*rounded), rtol=1e-5, atol=1e-6)


SIDE = 256
PRODUCTS_OF_CUBLAS = {  # shapes, and CuPy's way to cuBLAS
    "two matrices": ((SIDE, SIDE), (SIDE, SIDE)),  # gemmEx
    "stacks": ((2, SIDE, SIDE), (2, SIDE, SIDE)),  # gemmStridedBatchedEx
    "stacks that broadcast": ((1, SIDE, SIDE), (2, SIDE, SIDE)),  # sgemmBatched
}


@pytest.mark.parametrize("way", PRODUCTS_OF_CUBLAS)
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
def test_precisions_of_cublas(device, way, precision):
    """What a GPU alone can show: float32 products are exact by default, and the others round."""
    if device.name != "gpu":
        pytest.skip("needs cuBLAS")
    import cupy

    a_shape, b_shape = PRODUCTS_OF_CUBLAS[way]
    a = np.full(a_shape, 1 + 2.0**-12, np.float32)  # one to float16 and to TF32
    b = np.ones(b_shape, np.float32)
    expected = np.matmul(a, b)
    ampere = int(cupy.cuda.Device().compute_capability) >= 80
    if precision == "float16" or precision == "tf32" and ampere:
        expected = np.full_like(expected, SIDE)
    for turned in (False, True):
        left = device.put(a).swapaxes(-1, -2) if turned else device.put(a)
        out = cupy.zeros(expected.shape, np.float32)
        with dispatch.precision(precision):
            runtime.gemm(left, device.put(b), out)
        np.testing.assert_array_equal(device.get(out), expected)


def test_bad_choices():
    with pytest.raises(ValueError, match="products must be one of .* got 'cudnn'"):
        dispatch.products("cudnn")
    with pytest.raises(ValueError, match="precision must be one of .* got 'bfloat16'"):
        dispatch.precision("bfloat16")
