"""Initialisers: fill a tensor in place with draws from `minidl.random`'s generator.

For weights (out, in) and (out, in, kh, kw): fan_in = in kh kw and fan_out = out kh kw.
"""

import math

from minidl import random
from minidl.array_module import to_device
from minidl.tensor import Tensor


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight; ValueError for fewer than two axes."""
    if tensor.ndim < 2:
        raise ValueError(f"fans need a weight of two axes or more, got shape {tensor.shape}")
    area = math.prod(tensor.shape[2:])
    return tensor.shape[1] * area, tensor.shape[0] * area


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill with one value."""
    return tensor.copy_(value)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw from U[low, high). ValueError unless low <= high."""
    if low > high:
        raise ValueError(f"low must not exceed high, got {low} > {high}")
    draws = random.generator().random(tensor.shape, dtype=tensor.dtype)
    draws *= high - low
    draws += low
    return tensor.copy_(to_device(draws, tensor.device))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Draw from N(mean, std^2). ValueError for a negative std."""
    if std < 0:
        raise ValueError(f"std must not be negative, got {std}")
    draws = random.generator().standard_normal(tensor.shape, dtype=tensor.dtype)
    draws *= std
    draws += mean
    return tensor.copy_(to_device(draws, tensor.device))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(+-gain sqrt(6 / (fan_in + fan_out))): Glorot and Bengio 2010, equation 16."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, 2 gain^2 / (fan_in + fan_out)): Glorot and Bengio 2010, section 4.2.1."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))))


def he_uniform_(tensor: Tensor, mode: str = "fan_in", negative_slope: float = 0.0) -> Tensor:
    """U(+-sqrt(3) std) with the std of `he_normal_`."""
    bound = math.sqrt(3) * _he_std(tensor, mode, negative_slope)
    return uniform_(tensor, -bound, bound)


def he_normal_(tensor: Tensor, mode: str = "fan_in", negative_slope: float = 0.0) -> Tensor:
    """N(0, 2 / ((1 + a^2) fan)) for ReLU, or slope a below 0: He et al. 2015, equation 15."""
    return normal_(tensor, 0.0, _he_std(tensor, mode, negative_slope))


def _he_std(tensor, mode, negative_slope):
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = fans(tensor)[mode == "fan_out"]
    return math.sqrt(2 / ((1 + negative_slope**2) * fan))


def lecun_uniform_(tensor: Tensor) -> Tensor:
    """U(+-sqrt(3 / fan_in)), of variance 1 / fan_in."""
    bound = math.sqrt(3 / fans(tensor)[0])
    return uniform_(tensor, -bound, bound)


def lecun_normal_(tensor: Tensor) -> Tensor:
    """N(0, 1 / fan_in): LeCun, Bottou, Orr and Mueller, "Efficient BackProp" 1998, equation 16."""
    return normal_(tensor, 0.0, math.sqrt(1 / fans(tensor)[0]))
