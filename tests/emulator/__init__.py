"""CUDA kernels on the CPU: the sources and launchers of kernels.cuda on NumPy arrays.

    with emulated():
        y = kernels.cuda.relu(x)

runs the launcher as it stands; each launch compiles the source with g++ (see cuda.h) and runs its
threads three times, in different orders. Raises EmulationError, an AssertionError, where a kernel
reads or writes outside of its arrays, changes what it takes as const, depends on the order of its
threads, or does what hardware leaves undefined; and where a launch does not fit the kernel.
"""

from tests.emulator.compiler import HAS_COMPILER, NO_COMPILER
from tests.emulator.run import EmulationError, emulated, launch

__all__ = ["HAS_COMPILER", "NO_COMPILER", "EmulationError", "emulated", "launch"]
