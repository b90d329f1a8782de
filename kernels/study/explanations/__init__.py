"""What `python -m kernels explain` can explain: one module a kernel, imported on first use.

Such a module has OPTIONS, its click options, and explain(**options), which runs the reference
kernels on a small input and returns a model.Explanation of what they did.
"""

from importlib import import_module
from types import ModuleType

# Explanation, which is also the name of its module -> the kernels that it shows.
EXPLANATIONS = {
    "im2col": ("im2col",),
    "col2im": ("col2im",),
    "conv2d": ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"),
    "grouped_conv2d": (),
    "conv_transpose2d": ("conv_transpose2d",),
    "conv2d_winograd": ("conv2d_winograd",),
    "max_pool2d": ("max_pool2d", "max_unpool2d"),
    "avg_pool2d": ("avg_pool2d", "avg_pool2d_backward"),
    "lrn": ("lrn", "lrn_backward"),
    "batchnorm": ("batchnorm_train", "batchnorm_statistics", "batchnorm_backward"),
    "relu": ("relu", "relu_backward", "bias_relu", "bias_relu_backward", "channel_sums"),
    "dropout": ("dropout", "dropout_mask"),
    "matmul": ("matmul",),
}


def of_kernel(name: str) -> str | None:
    """The explanation of this name, or else the one that shows the kernel of this name, or None."""
    if name in EXPLANATIONS:
        return name
    return next((known for known, shown in EXPLANATIONS.items() if name in shown), None)


def module(name: str) -> ModuleType:
    """The module of an explanation. KeyError for an unknown one."""
    if name not in EXPLANATIONS:
        raise KeyError(name)
    return import_module(f"kernels.study.explanations.{name}")


def explanation(name: str, **options):
    """The Explanation of this name, with the defaults for options that are not given.

    KeyError for an unknown one; ValueError or TypeError, naming the option, for values that do not
    fit.
    """
    found = module(name)
    defaults = {option.name: option.default for option in found.OPTIONS}
    return found.explain(**{**defaults, **options})
