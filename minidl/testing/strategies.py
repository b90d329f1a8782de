"""Hypothesis strategies for the inputs of gradient tests."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from kernels.geometry import conv_output_size, pool_output_size
from minidl.tensor import Tensor


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 1, max_side: int = 4):
    """Shapes, small enough for full Jacobians."""
    return st.lists(
        st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims
    ).map(tuple)


@st.composite
def tensors(draw, shape=None, low=-2.0, high=2.0, dtype=np.float64, requires_grad=True):
    """Tensors with values uniform in [low, high). `shape`: a tuple or a strategy of tuples.

    Values come from a drawn seed, not one by one: shrinking them would teach nothing.
    """
    shape = _resolve(draw, shape)
    values = _generator(draw).uniform(low, high, shape).astype(dtype)
    return Tensor(values, requires_grad=requires_grad)


@st.composite
def away_from_kinks(draw, shape=None, kinks=(0.0,), gap=0.05, low=-2.0, high=2.0):
    """Float64 tensors none of whose values lies within `gap` of any of the `kinks`."""
    shape = _resolve(draw, shape)
    generator = _generator(draw)
    values = generator.uniform(low, high, shape)
    while True:
        near = np.zeros(shape, bool)
        for kink in kinks:
            near |= np.abs(values - kink) < gap
        if not near.any():
            return Tensor(values, requires_grad=True)
        values = np.where(near, generator.uniform(low, high, shape), values)


@st.composite
def distinct_values(draw, shape=None, gap=0.1):
    """Float64 tensors whose values differ pairwise by `gap` or more: no ties for max to meet."""
    shape = _resolve(draw, shape)
    size = int(np.prod(shape))
    values = (_generator(draw).permutation(size) - size / 2) * gap
    return Tensor(values.reshape(shape), requires_grad=True)


@st.composite
def broadcastable_shapes(draw, count: int = 2, max_dims: int = 3, max_side: int = 3):
    """`count` shapes that broadcast together by NumPy's rules."""
    result = draw(shapes(0, max_dims, 1, max_side))
    drawn = []
    for _ in range(count):
        kept = result[draw(st.integers(0, len(result))) :]
        drawn.append(tuple(1 if draw(st.booleans()) else n for n in kept))
    return tuple(drawn)


@dataclass(frozen=True)
class Conv2dParameters:
    """A valid convolution: shapes of x and weight, and the settings."""

    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def settings(self) -> tuple:
        """(stride, padding, dilation, groups), in the order the functions take them."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """The output's shape."""
        n, _, h, w = self.x_shape
        kernel_size = self.weight_shape[2:]
        size = conv_output_size(h, w, kernel_size, self.stride, self.padding, self.dilation)
        return (n, self.weight_shape[0], *size)


@st.composite
def conv2d_parameters(draw, max_batch=2, min_batch=1, max_extra=4):
    """Convolutions with a non-empty output: groups (depthwise too), uneven padding, dilation."""
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = (
        (draw(st.integers(1, top)), draw(st.integers(1, top))) for top in (3, 3, 2)
    )
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    size = _plane(draw, kernel, padding, dilation, max_extra)
    channels = groups * draw(st.integers(1, 2))
    outputs = groups * draw(st.integers(1, 3))
    batch = draw(st.integers(min_batch, max_batch))
    return Conv2dParameters(
        (batch, channels, *size), (outputs, channels // groups, *kernel), stride, padding,
        dilation, groups,
    )  # fmt: skip


@dataclass(frozen=True)
class Pool2dParameters:
    """A valid pooling: the shape of x and the settings."""

    x_shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


@st.composite
def pool2d_parameters(
    draw, max_batch=2, min_batch=1, max_extra=4, dilated=True, max_kernel=3, max_stride=3
):
    """Poolings with a non-empty output: overlapping or not, uneven padding, ceil_mode, dilation."""
    kernel, stride = (
        tuple(draw(st.integers(1, largest)) for _ in range(2))
        for largest in (max_kernel, max_stride)
    )
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))) if dilated else (1, 1)
    padding = tuple(draw(st.integers(0, kernel[axis] // 2)) for axis in (0, 0, 1, 1))
    ceil_mode = draw(st.booleans())
    # Rounding up lets in one window that is up to stride - 1 larger than the padded plane.
    overhang = tuple(step - 1 if ceil_mode else 0 for step in stride)
    h, w = _plane(draw, kernel, padding, dilation, max_extra, overhang)
    # A plane at least as large as the dilation: no window may step over the whole image.
    h, w = max(h, dilation[0]), max(w, dilation[1])
    pool_output_size(h, w, kernel, stride, padding, dilation, ceil_mode)
    shape = (draw(st.integers(min_batch, max_batch)), draw(st.integers(1, 2)), h, w)
    return Pool2dParameters(shape, kernel, stride, padding, dilation, ceil_mode)


def _plane(draw, kernel, padding, dilation, max_extra, overhang=(0, 0)):
    """(H, W) that hold the dilated kernel once padded, less `overhang`, and a little more."""
    size = []
    for axis in (0, 1):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        room = reach - overhang[axis]
        least = max(1, room - padding[2 * axis] - padding[2 * axis + 1])
        size.append(draw(st.integers(least, least + max_extra)))
    return tuple(size)


def _resolve(draw, shape):
    if shape is None:
        return draw(shapes())
    return draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)


def _generator(draw):
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
