"""Every CUDA source through NVIDIA's compiler, for four generations of GPUs; needs no GPU."""

import numpy as np
import pytest

from kernels.cuda import runtime
from kernels.study.gpu_code import text

pytest.importorskip("cupy_backends", reason="needs CuPy: pip install -e '.[nvrtc]'")
nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
core = pytest.importorskip("cupy._core.core")

SOURCES = sorted(path.stem for path in runtime.SOURCES.glob("*.cu"))


def compile_source(code, dtype, architecture, *more, get=nvrtc.getCUBIN):
    """The machine code; AssertionError with the compiler's messages where it refuses."""
    try:
        supported = nvrtc.getSupportedArchs()
    except RuntimeError as error:  # CuPy without the compiler's library
        pytest.skip(f"needs NVRTC: pip install -e '.[nvrtc]' ({error})")
    if int(architecture.removeprefix("sm_")) not in supported:
        pytest.skip(f"this NVRTC no longer compiles for {architecture}")
    # As cupy.RawModule compiles: with headers of CuPy's own before ours, among others.
    try:
        options = core.assemble_cupy_compiler_options(runtime.compiler_options(dtype))
    except RuntimeError as error:  # CuPy without CUDA's headers
        pytest.skip(f"needs CUDA's headers: pip install -e '.[nvrtc]' ({error})")
    options += *more, "-ftz=true", f"-arch={architecture}", "--device-as-default-execution-space"
    program = nvrtc.createProgram(code, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        return get(program)
    except nvrtc.NVRTCError:
        raise AssertionError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("source", SOURCES)
def test_source_compiles(source, dtype, architecture):
    code = (runtime.SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    assert compile_source(code, dtype, architecture)


def test_products_of_hopper_compile():
    """With both targets, CuPy's last, as the launcher and CuPy give them."""
    if nvrtc.getVersion() < runtime._TAKES_TWO_TARGETS:
        pytest.skip("this NVRTC refuses two targets, and runtime asks it for none")
    for source in runtime.HOPPER_SOURCES:
        code = (runtime.SOURCES / f"{source}.cu").read_text(encoding="utf-8")
        own = f"-arch=sm_{runtime.HOPPER}a"
        assert compile_source(code, np.float32, "sm_90", own)
        ptx = compile_source(code, np.float32, "sm_90", own, get=ptx_of)
        assert ".target sm_90a" in ptx and ptx.count("wgmma.mma_async") >= 8
        assert "wgmma" not in compile_source(code, np.float32, "sm_90", get=ptx_of)


def ptx_of(program):
    return text(nvrtc.getPTX(program))


def test_an_error_is_reported_with_its_line():
    with pytest.raises(AssertionError, match=r"kernel.cu\(2\).*\"nothing\" is undefined"):
        compile_source("\n__global__ void broken() { nothing; }", np.float32, "sm_80")
