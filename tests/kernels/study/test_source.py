"""Functions cut out of Python and CUDA sources."""

from kernels.study.source import cuda_functions, kernel_file, lines, python_definitions

CUDA = """#include "common.cuh"

__device__ inline real damp(real scale, real beta)
{
    return pow(scale, -beta);
}

struct Window {
    int first;
    __device__ Window(int i) { first = i; }
};

extern "C" __global__ void lrn(
    const real *x, real *y, long long size)
{
    if (size) {
        y[0] = x[0];
    }
}

template <class Left>
__global__ void __launch_bounds__(256) later(Left a) { }
"""


def test_cuda_functions_are_found_with_all_their_lines():
    found = cuda_functions(CUDA)
    assert found == {"damp": (3, 6), "lrn": (13, 19), "later": (21, 22)}
    assert lines(CUDA, *found["lrn"]).startswith('extern "C" __global__ void lrn(')
    assert lines(CUDA, *found["lrn"]).endswith("\n}")


def test_python_definitions_keep_their_decorators():
    text = "import x\n\n@x.njit\n@x.more\ndef f(a):\n    return a\n\nclass C:\n    b = 1\n"
    assert python_definitions(text) == {"f": (3, 6), "C": (8, 9)}


def test_kernel_files():
    assert kernel_file("reference", "lrn").exists() and kernel_file("cpu", "lrn").exists()
    assert kernel_file("cuda", "lrn").name == "lrn.cu"
