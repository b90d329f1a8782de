"""What `python -m kernels explain` can explain: one module a kernel, imported on first use.

Such a module has OPTIONS, its click options, and explain(**options), which runs the reference
kernels on a small input and returns a model.Explanation of what they did.
"""

from importlib import import_module
from types import ModuleType

# Kernel -> the module that explains it.
EXPLANATIONS = {
    "im2col": "im2col",
    "col2im": "col2im",
    "conv2d": "conv2d",
    "grouped_conv2d": "grouped_conv2d",
    "conv2d_winograd": "winograd",
    "max_pool2d": "max_pool2d",
    "avg_pool2d": "avg_pool2d",
    "lrn": "lrn",
    "batchnorm": "batchnorm",
    "dropout": "dropout",
    "matmul": "matmul",
}


def module(name: str) -> ModuleType:
    """The module that explains this kernel. KeyError for a kernel without an explanation."""
    return import_module(f"kernels.study.explanations.{EXPLANATIONS[name]}")


def explanation(name: str, **options):
    """The Explanation of a kernel, with the defaults for options that are not given.

    KeyError for a kernel without an explanation; ValueError or TypeError, naming the option, for
    values that do not fit.
    """
    found = module(name)
    defaults = {option.name: option.default for option in found.OPTIONS}
    return found.explain(**{**defaults, **options})
