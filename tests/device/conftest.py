"""The device that minidl is tested on: a stand-in for CuPy always, a GPU where there is one."""

import pytest

from tests.emulator import HAS_COMPILER, NO_COMPILER
from tests.emulator.stand_in import stand_in


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request):
    """Within, ``to("cuda")`` works; the value is "stand-in" or "gpu"."""
    if request.param == "gpu":
        request.getfixturevalue("real_gpu")
        yield request.param
        return
    if not HAS_COMPILER:
        pytest.skip(NO_COMPILER)
    with stand_in():
        yield request.param


@pytest.fixture
def real_gpu():
    """CuPy, on a machine with a GPU."""
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install -e '.[cuda12]'")
    if not cupy.is_available():
        pytest.skip("needs a CUDA device")
    return cupy
