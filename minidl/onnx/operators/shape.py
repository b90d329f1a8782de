"""Operators that move elements. Shapes, axes and widths are attributes or integer inputs."""

import numpy as np

from minidl import ops
from minidl.onnx.operators.elementwise import matrix_shape
from minidl.onnx.operators.registry import check_one_dtype, integers, operator, scalar


@operator("Concat")
def concat(node):
    """Tensors joined along an axis."""
    axis = node.int("axis")

    def run(*tensors):
        check_one_dtype(*tensors)
        return ops.concatenate(tensors, axis)

    return run


@operator("Flatten")
def flatten(node):
    """A matrix: the axes before `axis`, and the others."""
    axis = node.int("axis", 1)
    return lambda x: ops.reshape(x, *matrix_shape(x.shape, axis))


@operator("Reshape")
def reshape(node):
    """Another shape: 0 keeps a size (unless allowzero), -1 takes what remains."""
    allow_zero = node.opset >= 14 and node.flag("allowzero")

    def run(x, shape):
        sizes = list(integers("shape", shape))
        for i, size in enumerate(sizes):
            if size == 0 and not allow_zero:
                if i >= x.ndim:
                    raise ValueError(f"shape {sizes} keeps axis {i}, which {x.shape} does not have")
                sizes[i] = x.shape[i]
        return ops.reshape(x, *sizes)

    return run


@operator("Transpose")
def transpose(node):
    """The axes permuted, reversed by default."""
    perm = node.ints("perm") or ()
    return lambda x: ops.transpose(x, *perm)


@operator("Expand")
def expand(node):
    """x and a tensor of this shape broadcast together."""
    return lambda x, shape: ops.broadcast_to(
        x, np.broadcast_shapes(x.shape, integers("shape", shape))
    )


def _read_axes(node):
    """A function from the axes' input to a tuple or None: an attribute before opset 13."""
    fixed = node.ints("axes") if node.opset < 13 else None
    return lambda axes: fixed if axes is None else integers("axes", axes)


def _places(axes, ndim):
    """Axes counted from the front; ValueError where they repeat or lie outside."""
    if not all(-ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) < len(axes):
        raise ValueError(f"axes must be distinct and in [{-ndim}, {ndim}), got {axes}")
    return {a % ndim for a in axes}


@operator("Squeeze")
def squeeze(node):
    """Without the given axes of size 1; without all such by default."""
    read = _read_axes(node)

    def run(x, axes=None):
        axes = read(axes)
        if axes is None:
            axes = tuple(i for i, n in enumerate(x.shape) if n == 1)
        places = _places(axes, x.ndim)
        if any(x.shape[a] != 1 for a in places):
            raise ValueError(f"axes {axes} must have size 1, got shape {x.shape}")
        return ops.reshape(x, *(n for i, n in enumerate(x.shape) if i not in places))

    return run


@operator("Unsqueeze")
def unsqueeze(node):
    """With new axes of size 1 at these places of the result."""
    read = _read_axes(node)

    def run(x, axes=None):
        axes = read(axes)
        ndim = x.ndim + len(axes)
        places = _places(axes, ndim)
        sizes = iter(x.shape)
        return ops.reshape(x, *(1 if i in places else next(sizes) for i in range(ndim)))

    return run


@operator("Slice")
def slice_(node):
    """x[start:end:step] along the given axes, or the first ones."""
    fixed = (None, None, None)
    if node.opset < 10:
        fixed = (node.ints("starts"), node.ints("ends"), node.ints("axes"))

    def run(x, *inputs):
        names = ("starts", "ends", "axes", "steps")
        given = [
            None if t is None else integers(name, t) for name, t in zip(names, inputs, strict=False)
        ] or list(fixed)
        starts, ends, axes, steps = given + [None] * (4 - len(given))
        axes = range(len(starts)) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        key = [slice(None)] * x.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(f"axes must lie in [{-x.ndim}, {x.ndim}), got {axes}")
            # Unlike Python's, a backward slice from before the front takes the first element.
            first = max(start, -x.shape[axis]) if step < 0 else start
            key[axis] = slice(first, end, step)
        return x[tuple(key)]

    return run


@operator("Gather")
def gather(node):
    """The entries of x at these indices along an axis, which the indices' axes replace."""
    axis = node.int("axis", 0)

    def run(x, indices):
        if indices.dtype.kind not in "iu" or not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"indices must be integers and axis one of {x.ndim}, got {indices.dtype}, {axis}"
            )
        return x[(slice(None),) * (axis % x.ndim) + (indices,)]

    return run


@operator("Pad", untrained=(2,))
def pad(node):
    """A constant around x; a negative width crops."""
    mode = node.string("mode", "constant")
    if mode != "constant":
        raise node.error(f"mode {mode!r} is not supported, only 'constant'")
    fixed_pads, fixed_value = None, 0.0
    if node.opset < 11:
        fixed_pads, fixed_value = node.ints("pads"), node.float("value", 0.0)

    def run(x, pads=None, value=None, axes=None):
        widths = fixed_pads if pads is None else integers("pads", pads)
        axes = range(x.ndim) if axes is None else integers("axes", axes)
        if len(widths) != 2 * len(axes) or not all(-x.ndim <= a < x.ndim for a in axes):
            raise ValueError(
                f"pads must be two widths for each of axes {list(axes)} of {x.shape}, got {widths}"
            )
        sides = [(0, 0)] * x.ndim
        for axis, before, after in zip(axes, widths, widths[len(axes) :], strict=False):
            sides[axis] = (before, after)
        if any(side < 0 for pair in sides for side in pair):
            x = _cropped(x, sides)
            sides = [(max(before, 0), max(after, 0)) for before, after in sides]
        value = fixed_value if value is None else scalar("constant_value", value)
        return ops.pad(x, sides, value)

    return run


def _cropped(x, sides):
    """x without what negative widths take away."""
    bounds = [
        (max(-before, 0), n - max(-after, 0))
        for n, (before, after) in zip(x.shape, sides, strict=True)
    ]
    if any(stop < start for start, stop in bounds):
        raise ValueError(f"pads {sides} crop more than there is of shape {x.shape}")
    return x[tuple(slice(start, stop) for start, stop in bounds)]
