"""Where the tests of the CUDA kernels run: the emulator always, a GPU where there is one."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from kernels import cuda, reference
from kernels.cuda import runtime
from tests.emulator import HAS_COMPILER, NO_COMPILER, emulated
from tests.kernels.agreement import assert_agree


class Device:
    """Runs kernels of kernels.cuda on NumPy arrays, which `put` and `get` carry over and back."""

    name = "emulator"

    def put(self, array):
        return array

    def get(self, array):
        return array

    def run(self, kernel: str, *arguments):
        """The kernel's results as NumPy arrays; AssertionError where it changed an argument."""
        return self._gotten(self._run(kernel, arguments))

    def agree(self, kernel: str, *arguments, exact=False):
        """Run a kernel here and in the reference; the results must agree. Returns the latter's."""
        expected = getattr(reference, kernel)(*arguments)
        assert_agree(kernel, expected, self.run(kernel, *arguments), exact)
        return expected

    @contextmanager
    def counted(self):
        """The names of the kernels that are launched within."""
        launches, launch = [], runtime.launch

        def note(source, kernel, *args, **options):
            launches.append(kernel)
            launch(source, kernel, *args, **options)

        with mock.patch.object(runtime, "launch", note):
            yield launches

    def _run(self, kernel, arguments):
        placed = [self.put(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kept = [a.copy() if isinstance(a, np.ndarray) else None for a in arguments]
        result = getattr(cuda, kernel)(*placed)
        for before, after in zip(kept, placed, strict=True):
            if before is not None:
                np.testing.assert_array_equal(
                    before, self.get(after), err_msg=f"{kernel} changed its input"
                )
        return result

    def _gotten(self, result):
        if isinstance(result, tuple):
            return tuple(self.get(array) for array in result)
        return self.get(result)


class Gpu(Device):
    name = "gpu"

    def put(self, array):
        import cupy

        return cupy.asarray(array)

    def get(self, array):
        return array.get()


@pytest.fixture(scope="module", params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """A place to run the CUDA kernels; module-wide, so that Hypothesis can use it."""
    if request.param == "emulator":
        if not HAS_COMPILER:
            pytest.skip(NO_COMPILER)
        with emulated():
            yield Device()
    else:
        cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install -e '.[cuda12]'")
        if not cupy.is_available():
            pytest.skip("needs a CUDA device")
        # Memory of its own for each array: in CuPy's pool they are neighbours, and what is written
        # beside one of them would not be seen by compute-sanitizer.
        with cupy.cuda.using_allocator(None):
            yield Gpu()
