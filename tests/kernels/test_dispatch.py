"""Which kernels an array gets, and what is said where the GPU's cannot run."""

import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from kernels import cpu, dispatch, reference
from kernels.cuda import runtime


def test_numpy_arrays_get_the_chosen_kernels():
    array = np.zeros(2)
    for name, module in (("auto", cpu), ("cpu", cpu), ("reference", reference)):
        with dispatch.use(name):
            assert dispatch.kernels_for(array) is module
    with pytest.raises(TypeError, match="NumPy or CuPy array, got list"):
        dispatch.kernels_for([1.0])


def test_cupy_arrays_get_the_cuda_kernels():
    cupy = mock.Mock(ndarray=type("ndarray", (), {}))
    with mock.patch.dict(sys.modules, {"cupy": cupy}):
        for name in ("auto", "cpu", "reference"):
            with dispatch.use(name):
                assert dispatch.kernels_for(cupy.ndarray()).__name__ == "kernels.cuda"


def test_without_cupy():
    before = dispatch.backend()
    with mock.patch.dict(sys.modules, {"cupy": None}):
        with pytest.raises(RuntimeError, match=r"CuPy: pip install -e '\.\[cuda12\]' .*cuda13"):
            dispatch.use("cuda")
    assert dispatch.backend() == before


def test_without_a_device():
    cupy = mock.Mock(is_available=lambda: False)
    with mock.patch.dict(sys.modules, {"cupy": cupy}):
        with pytest.raises(RuntimeError, match="CUDA device.*pip install") as raised:
            runtime.require()
        assert "\n" not in str(raised.value)


def device(capability):
    """A CuPy that finds a GPU of this compute capability."""
    cupy = mock.Mock(is_available=lambda: True)
    cupy.cuda.Device().compute_capability = capability
    return cupy


def test_a_device_that_is_too_old():
    with mock.patch.dict(sys.modules, {"cupy": device("61")}):
        with pytest.raises(RuntimeError, match="capability 7.0 .* got 6.1"):
            runtime.require()
    with mock.patch.dict(sys.modules, {"cupy": device("120")}):
        runtime.require()


@pytest.mark.parametrize(
    "capability, compiler, expected",
    [("80", (12, 9), False), ("90", (12, 8), False), ("90", (12, 9), True), ("90", (13, 0), True),
     ("100", (13, 0), False), ("120", (13, 0), False)],
)  # fmt: skip
def test_products_that_hopper_alone_has(capability, compiler, expected):
    """Older compilers refuse the target that they need beside the one which CuPy names."""
    cupy = device(capability)
    cupy.cuda.nvrtc.getVersion.return_value = compiler
    for forget in (runtime.multiplies_by_groups.cache_clear, runtime._module.cache_clear):
        forget()
    try:
        with mock.patch.dict(sys.modules, {"cupy": cupy}):
            assert runtime.multiplies_by_groups() is expected
            for source in ("conv_tf32", "matmul_tf32"):
                runtime._module(source, "f")
                told = "-arch=sm_90a" in cupy.RawModule.call_args.kwargs["options"]
                assert told is (expected and source == "conv_tf32")
    finally:
        runtime.multiplies_by_groups.cache_clear()
        runtime._module.cache_clear()


def test_with_a_device():
    cupy = device("70")
    with mock.patch.dict(sys.modules, {"cupy": cupy}):
        with dispatch.use("cuda"):
            assert dispatch.backend() == "cuda"
            assert dispatch.kernels_for(np.zeros(2)) is cpu


def test_the_launchers_need_no_cupy():
    code = (
        "import sys; sys.modules['cupy'] = None; import kernels.cuda; "
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_launch_takes_no_numpy_arrays():
    with pytest.raises(TypeError, match="activation.relu takes arrays on the device"):
        runtime.launch("activation", "relu", np.float32, 1, 1, (np.zeros(1), np.zeros(1), 1))
