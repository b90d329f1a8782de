"""One pool of threads: Numba's. BLAS runs on the thread that calls it.

Two pools on the same cores wait for each other actively and slow each other down by an order of
magnitude, so importing the CPU kernels confines BLAS to one thread, and the kernels split their
matrix products over Numba's threads themselves.
"""

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
