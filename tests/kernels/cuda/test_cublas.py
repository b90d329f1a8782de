"""Products by cuBLAS: what is asked of it, by a stand-in for it, and what it makes, on a GPU."""

import types
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import dispatch
from kernels.cuda import cublas, runtime
from tests.emulator.cublas import tf32
from tests.emulator.stand_in import stand_in
from tests.kernels.agreement import dtypes

few = settings(max_examples=150, deadline=None)


@st.composite
def factors(draw, shape, sides):
    """An array of a stack's shape, of which axes may be of size 1 or missing, in some layout."""
    shape = tuple(draw(st.sampled_from([size, 1])) for size in shape)
    shape = shape[draw(st.integers(0, len(shape))) :] + sides
    layout = draw(st.permutations(range(len(shape))))
    step = draw(st.sampled_from([1, 2, -1]))
    return shape, tuple(layout), step


def laid_out(number, shape, layout, step, dtype):
    """(an array of the device, its values): axes lie in memory as `layout` orders them."""
    import cupy

    wide = [shape[axis] for axis in layout]
    wide[-1] *= abs(step)
    values = np.random.default_rng(number).standard_normal(wide).astype(dtype)
    back = np.argsort(layout)
    return cupy.asarray(values)[..., ::step].transpose(*back), values[..., ::step].transpose(back)


@given(st.data(), st.lists(st.integers(0, 3), max_size=3).map(tuple),
       st.tuples(*[st.integers(0, 4)] * 3), dtypes, st.sampled_from(dispatch.PRECISIONS))
@few
def test_products_of_cublas(data, stack, sides, dtype, precision):
    """Stacks that broadcast, views in any order: cuBLAS is asked for the right products."""
    m, k, n = sides
    of_a, of_b = data.draw(factors(stack, (m, k))), data.draw(factors(stack, (k, n)))
    with stand_in(), dispatch.precision(precision):
        import cupy

        a, a_values = laid_out(0, *of_a, dtype)
        b, b_values = laid_out(1, *of_b, dtype)
        kept = a.get(), b.get()
        out = cupy.empty(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (m, n), dtype)
        runtime.gemm(a, b, out)
        if dtype == np.float32 and precision != "float32":
            rounded = tf32 if precision == "tf32" else lambda x: x.astype(np.float16).astype(dtype)
            a_values, b_values = rounded(a_values), rounded(b_values)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(out.get(), a_values @ b_values, tolerance, tolerance)
        np.testing.assert_array_equal(a.get(), kept[0])
        np.testing.assert_array_equal(b.get(), kept[1])


@pytest.mark.parametrize(
    "a_shape, b_shape, calls",
    [((3, 4), (4, 5), 1), ((6, 3, 4), (6, 4, 5), 1), ((1, 3, 4), (6, 4, 5), 1),
     ((6, 3, 4), (4, 5), 1), ((2, 3, 4, 4), (2, 3, 4, 4), 1), ((1, 2, 3, 4), (6, 2, 4, 5), 2),
     ((0, 3, 4), (4, 5), 0)],
)  # fmt: skip
def test_a_stack_is_one_call(a_shape, b_shape, calls):
    """And two matrices for all of a stack are two."""
    with stand_in():
        import cupy

        library = cublas._library(cupy)
        a, b = cupy.zeros(a_shape, np.float32), cupy.zeros(b_shape, np.float32)
        out = cupy.empty(np.matmul(a.get(), b.get()).shape, np.float32)
        runtime.gemm(a, b, out)
        assert library.calls == calls


def test_old_gpus_have_no_tf32(monkeypatch):
    asked = []
    monkeypatch.setattr(cublas, "gemm", lambda *arguments: asked.append(arguments[-1]))
    single, double = np.zeros((1, 1), np.float32), np.zeros((1, 1))
    with dispatch.precision("tf32"):
        for can in (True, False):
            monkeypatch.setattr(runtime, "multiplies_tf32", lambda can=can: can)
            runtime.gemm(single, single, single)
            runtime.gemm(double, double, double)
    assert asked == ["tf32", "float64", "float32", "float64"]


def test_errors_of_cublas():
    with stand_in():
        import cupy

        one = cupy.zeros((1, 1), np.float32)
        cublas._library(cupy).cublasGemmEx = lambda *arguments: 13
        with pytest.raises(RuntimeError, match="cuBLAS failed with status 13"):
            runtime.gemm(one, one, one)
        tall = types.SimpleNamespace(shape=(2**31, 1), strides=(4, 4), itemsize=4)
        out = mock.Mock(shape=(2**31, 1), ndim=2, size=2**31, dtype=np.dtype(np.float32))
        with pytest.raises(OverflowError, match="cuBLAS multiplies no"):
            runtime.gemm(tall, one, out)


SIDE = 256
PRODUCTS_OF_CUBLAS = {  # shapes
    "two matrices": ((SIDE, SIDE), (SIDE, SIDE)),
    "stacks": ((2, SIDE, SIDE), (2, SIDE, SIDE)),
    "stacks that broadcast": ((1, SIDE, SIDE), (2, SIDE, SIDE)),
}


@pytest.mark.parametrize("way", PRODUCTS_OF_CUBLAS)
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.gpu
def test_precisions_of_cublas(way, precision):
    """What a GPU alone can show: float32 products are exact by default, and the others round."""
    cupy = real_cupy()
    a_shape, b_shape = PRODUCTS_OF_CUBLAS[way]
    a = np.full(a_shape, 1 + 2.0**-12, np.float32)  # one to float16 and to TF32
    b = np.ones(b_shape, np.float32)
    expected = np.matmul(a, b)
    ampere = int(cupy.cuda.Device().compute_capability) >= 80
    if precision == "float16" or precision == "tf32" and ampere:
        expected = np.full_like(expected, SIDE)
    for turned in (False, True):
        left = cupy.asarray(a).swapaxes(-1, -2) if turned else cupy.asarray(a)
        out = cupy.zeros(expected.shape, np.float32)
        with dispatch.precision(precision):
            runtime.gemm(left, cupy.asarray(b), out)
        np.testing.assert_array_equal(out.get(), expected)


def real_cupy():
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install -e '.[cuda12]'")
    if not cupy.is_available():
        pytest.skip("needs a CUDA device")
    return cupy


@pytest.mark.gpu
@given(shapes=st.data(), dtype=dtypes)
@settings(few, max_examples=30)
def test_products_on_a_gpu(shapes, dtype):
    cupy = real_cupy()
    stack, (m, k, n) = (2, 3), (4, 5, 6)
    a, a_values = laid_out(0, *shapes.draw(factors(stack, (m, k))), dtype)
    b, b_values = laid_out(1, *shapes.draw(factors(stack, (k, n))), dtype)
    out = cupy.empty(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (m, n), dtype)
    runtime.gemm(a, b, out)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(out.get(), a_values @ b_values, tolerance, tolerance)


@pytest.mark.gpu
def test_products_are_captured():
    """CuPy's own calls of cuBLAS refuse to be."""
    cupy = real_cupy()
    a = cupy.full((8, 8), 2, np.float32)
    out = cupy.zeros((8, 8), np.float32)
    runtime.gemm(a, a, out)  # cuBLAS starts outside of a capture
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        runtime.gemm(a, a, out)
        graph = stream.end_capture()
        a[...] = 3
        graph.launch()
        stream.synchronize()
    np.testing.assert_array_equal(out.get(), np.full((8, 8), 72))
