"""One pool of threads: Numba's. BLAS runs on the thread that calls it.

Two pools on the same cores wait for each other actively and slow each other down by an order of
magnitude, so importing the CPU kernels confines BLAS to one thread, and the kernels split their
matrix products over Numba's threads themselves.

A thread that waits for others spins for a moment, which is quicker than sleeping. GNU OpenMP's
default is to spin for milliseconds: where other programs use the same cores, that takes from the
very thread that is waited for, and a step lasts ten times as long. So the spinning is cut short
(to some tens of microseconds), unless the user has a wish of his own.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # Read once, when Numba loads the OpenMP library.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numba

# Numba's products call the BLAS that SciPy brings; it has to be loaded to be confined.
import scipy.linalg.cython_blas  # noqa: F401
from threadpoolctl import threadpool_limits

threadpool_limits(limits=1, user_api="blas")


def num_threads() -> int:
    """How many threads a kernel runs on."""
    return numba.get_num_threads()


def max_threads() -> int:
    """How many threads there are."""
    return numba.config.NUMBA_NUM_THREADS


def set_num_threads(n: int) -> None:
    """Run kernels on n threads from here on, 1 <= n <= `max_threads()`."""
    numba.set_num_threads(n)
