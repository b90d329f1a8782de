"""The order of a sum is written out: code that was just compiled and the same code from the cache,
which Numba may compile differently, give the same bits."""

import os
import pkgutil
import subprocess
import sys
from importlib import import_module

from numba.core.registry import CPUDispatcher

from kernels import cpu

# The kernels whose sums no library or tile makes, on sizes with a rest in every loop.
_RESULTS = """
import zlib
import numpy as np
from kernels import cpu

def show(*results):
    for result in results:
        print(zlib.crc32(np.ascontiguousarray(result)))

draw = np.random.default_rng(0)

def normal(*shape):
    return draw.standard_normal(shape).astype(np.float32)

x, dy, gamma = normal(3, 4, 71, 73) + 3, normal(3, 4, 71, 73), normal(4)
y, mean, var, inv_std = cpu.batchnorm_train(x, gamma, gamma, 1e-5, None, True)
show(y, mean, var, inv_std, *cpu.batchnorm_statistics(x))
show(*cpu.batchnorm_backward(dy, x, gamma, mean, inv_std))
show(*cpu.batchnorm_backward(dy, x, gamma, mean, inv_std, y))
show(cpu.channel_sums(x), cpu.global_avg_pool2d(x), *cpu.bias_relu_backward(dy, y))

logits, weights, grad = normal(41, 135), normal(41, 135) ** 2, normal(41)
for target in (weights.argmax(axis=1), weights):
    for smoothing in (0.0, 0.1):
        show(cpu.softmax_cross_entropy(logits, target, "none", smoothing))
        show(cpu.softmax_cross_entropy_backward(grad, logits, target, "none", smoothing))

weight, settings = normal(4, 1, 3, 3), ((1, 1), (1, 1, 1, 1), (1, 1), 4)
show(cpu.conv2d(x, weight, gamma, *settings))
show(cpu.conv2d_weight_grad(dy, x, (3, 3), *settings))
"""


def test_code_from_the_cache_gives_the_bits_of_new_code(tmp_path):
    def results():
        done = subprocess.run(
            [sys.executable, "-c", _RESULTS], env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    def cached():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}

    fresh, compiled = results(), cached()
    assert compiled
    assert results() == fresh
    assert cached() == compiled  # the second process found all it needed


def test_no_kernel_lets_the_compiler_reorder_sums():
    for info in pkgutil.iter_modules(cpu.__path__, "kernels.cpu."):
        for name, function in vars(import_module(info.name)).items():
            if isinstance(function, CPUDispatcher):
                flags = function.targetoptions.get("fastmath")
                assert not flags, f"{info.name}.{name} is compiled with fastmath={flags}"
