"""The stand-in for CuPy: as strict as promised, and with no name that CuPy has not."""

import inspect
import re

import numpy as np
import pytest

from kernels.cuda import runtime
from tests.emulator import HAS_COMPILER, NO_COMPILER, EmulationError, stand_in
from tests.emulator.stand_in import DeviceArray

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)


@pytest.fixture
def cupy():
    with stand_in.stand_in():
        import cupy

        yield cupy


def test_it_has_no_names_that_cupy_has_not():
    real = pytest.importorskip("cupy", reason="needs CuPy: pip install -e '.[nvrtc]'")
    import cupyx

    for name in (*stand_in.FUNCTIONS, "RawModule", "asarray", "empty", "is_available", "ndarray"):
        assert hasattr(real, name), name
    assert hasattr(real.RawKernel, "max_dynamic_shared_size_bytes")
    assert hasattr(real.cuda.Device, "compute_capability")
    assert hasattr(real.cuda.device, "get_cublas_handle")
    assert hasattr(real.cuda.nvrtc, "getVersion")
    assert hasattr(real, "get_default_memory_pool") and hasattr(real.cuda, "using_allocator")
    assert real.cuda.runtime.streamCaptureModeRelaxed == stand_in.RELAXED
    for name in ("Graph", "MemoryPool", "Stream"):
        for method in [m for m, value in vars(getattr(stand_in, name)).items() if callable(value)]:
            assert hasattr(getattr(real.cuda, name), method), method
    own = [name for name in vars(DeviceArray) if not name.startswith("_")]
    for name in (*stand_in.METHODS, *own):
        assert hasattr(real.ndarray, name), name
    assert hasattr(cupyx, "scatter_add")
    for name, keywords in stand_in.KEYWORDS.items():
        function = getattr(real if name in stand_in.FUNCTIONS else real.ndarray, name)
        try:
            known = set(inspect.signature(function).parameters)
        except ValueError:  # not Python's: the signature is the first line of its documentation
            known = set(re.findall(r"\w+", function.__doc__.strip().splitlines()[0]))
        assert keywords <= known, name


def test_arrays_of_two_kinds_do_not_mix(cupy):
    here, there = np.ones(3), cupy.asarray(np.ones(3))
    for number, mix in enumerate((
        lambda: here + there, lambda: there + here, lambda: there == here,
        lambda: np.exp(there), lambda: np.sum(there), lambda: np.asarray(there),
        lambda: np.concatenate([there, there]), lambda: np.add.at(here, [0], there),
        lambda: cupy.maximum(there, here), lambda: there[np.array([0])],
        lambda: there.__setitem__(slice(None), here), lambda: here.__setitem__(slice(None), there),
        lambda: there.__iadd__(here), lambda: np.array([there]),
    )):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            pytest.fail(f"number {number} passes: {mix()!r}")
    assert isinstance(np.float64(2) * there, DeviceArray)
    assert there.sum().get() == 3 and not hasattr(cupy, "errstate")


def test_what_is_captured_runs_when_it_is_launched(cupy):
    """Then, and each time, with what the arrays hold by then."""
    x, total = cupy.asarray(np.ones(3)), cupy.zeros((3,), np.float64)
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
    y, view = x * 2 + x[:1], x.reshape(3, 1)
    total += y
    for wait in (x.get, x.item, x.tolist, lambda: bool(x), lambda: int(x), lambda: x[x > 0]):
        with pytest.raises(RuntimeError, match="the current stream is capturing"):
            wait()
    with pytest.raises(RuntimeError, match="the current stream is capturing"):
        cupy.asarray(np.ones(3))
    graph = stream.end_capture()
    assert total.tolist() == [0, 0, 0] and np.isnan(y.get()).all() and view.sum().get() == 3
    graph.launch()
    x.fill(5)
    graph.launch()
    assert y.tolist() == [15, 15, 15] and total.tolist() == [18, 18, 18]


def test_keywords_that_numpy_alone_knows(cupy):
    x = cupy.zeros((2, 3), np.float32)
    assert x.sum(axis=0, keepdims=True).shape == (1, 3)
    for call in (
        lambda: x.max(initial=0), lambda: x.sum(where=x > 0), lambda: cupy.exp(x, where=x > 0),
        lambda: x.copy(order="F"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="takes no (initial|where|order)"):
            call()


def relu(*args, grid=1, **options):
    runtime.launch("activation", "relu", np.float32, grid, 32, args, **options)


def test_launches_that_cupy_would_let_pass(cupy):
    """They would read numbers of another width, or run with other sizes than were meant."""
    x, y = cupy.asarray(np.float32([-1, 2])), cupy.zeros(2, np.float32)
    relu(x, y, 2)
    assert y.tolist() == [0, 2]
    relu(x, y, 2, grid=(1, 0))  # which launches nothing
    with pytest.raises(EmulationError, match="`size` must be int64, got int32"):
        relu(x, y, np.int32(2))
    with pytest.raises(EmulationError, match="`x` must be float32, got float64"):
        relu(x.astype(np.float64), y, 2)
    kernel = cupy.RawModule(
        code=(runtime.SOURCES / "activation.cu").read_text(), options=runtime.compiler_options("f")
    ).get_function("relu")
    for grid, size, options, message in (
        ((1,), 2, {}, "an argument of int"),
        ((1, 0), np.int64(2), {}, r"a grid or block of \(1, 0\)"),
        ((1,), np.int64(2), {"shared_mem": 50_000}, "50000 bytes of shared memory, unasked for"),
        ((1, 70_000), np.int64(2), {}, "no GPU runs a grid of"),
    ):
        with pytest.raises(EmulationError, match=message):
            kernel(grid, (32,), (x, y, size), **options)
    relu(x, y, 2, shared=50_000)
    with pytest.raises(EmulationError, match="kernel reelu of activation.cu does not exist"):
        runtime.launch("activation", "reelu", np.float32, 1, 32, (x, y, 2))
    with pytest.raises(TypeError, match="options must be a tuple"):
        cupy.RawModule(code="", options=["-DREAL=float"])


def test_views_know_their_owner(cupy):
    whole = cupy.zeros((2, 3), np.float32)
    assert whole.base is None and (whole + 1).base is None and whole.copy().base is None
    for view in (whole.T, whole[1:].reshape(3), whole[0, 0], whole[0][2]):
        assert view.base is whole
    whole[1:] += 1
    assert whole.sum().item() == 3


def test_it_leaves_no_trace():
    import sys

    before = sys.modules.get("cupy")
    with stand_in.stand_in():
        assert sys.modules["cupy"].is_available()
    assert sys.modules.get("cupy") is before
