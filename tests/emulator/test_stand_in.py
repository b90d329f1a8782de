"""The stand-in for CuPy: as strict as promised, and with no name that CuPy has not."""

import numpy as np
import pytest

from tests.emulator import HAS_COMPILER, NO_COMPILER, stand_in
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

    for name in (*stand_in.FUNCTIONS, "asarray", "empty", "is_available", "ndarray"):
        assert hasattr(real, name), name
    own = [name for name in vars(DeviceArray) if not name.startswith("_")]
    for name in (*stand_in.METHODS, *own):
        assert hasattr(real.ndarray, name), name
    assert hasattr(cupyx, "scatter_add")


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
