"""A convolution and what follows it, in fewer passes where nobody needs the steps.

In inference a batch normalisation multiplies each channel by one constant and adds another, and a
shortcut and ReLU are as simple: the kernel of the convolution does all of it to its sums before it
stores them (`minidl.ops.conv2d_affine`), which saves reading and writing the whole result up to
three times. In training the batch normalisation, which has to wait for the sums, takes shortcut and
ReLU along (`minidl.ops.batch_norm`), and ReLU alone goes with the convolution (`minidl.ops.
conv2d_relu`). The results are the same up to rounding.
"""

from minidl import ops
from minidl.nn.activation import ReLU
from minidl.nn.conv import Conv2d
from minidl.nn.norm import BatchNorm2d
from minidl.tensor import is_grad_enabled, is_traced


def conv_block(x, conv, norm=None, shortcut=None, rectify=False):
    """relu(norm(conv(x)) + shortcut), of whatever of that there is.

    `norm`: a module; `shortcut`: a Tensor of the result's shape. Step by step where something
    listens to the operations (a picture of the graph, an export), and where a module of another
    class, or one with hooks, takes part.
    """
    if _is_constant(conv, norm):
        scale, shift = norm.affine() if norm is not None else (None, None)
        return conv.affine(x, scale, shift, shortcut, rectify)
    if norm is None and shortcut is None and rectify and _is_rectifiable(conv):
        return conv(x, True)
    y = conv(x)
    return _rest(y, shortcut, rectify) if norm is None else norm_block(y, norm, shortcut, rectify)


def norm_block(x, norm, shortcut=None, rectify=False):
    """relu(norm(x) + shortcut), of whatever of that there is; see `conv_block`."""
    if _is(norm, BatchNorm2d) and norm.training and not is_traced():
        return norm(x, shortcut, rectify)
    return _rest(norm(x), shortcut, rectify)


def run(modules, x):
    """Apply modules one after the other; some take along what follows them, if they may."""
    modules, at = list(modules), 0
    while at < len(modules):
        x, count = _step(modules[at : at + 3], x)
        at += count
    return x


def _step(modules, x):
    """What the first of the modules makes of x, with those it takes along; how many these are."""
    first, *after = modules
    if _is(first, Conv2d):
        norm = after.pop(0) if after and _is(after[0], BatchNorm2d) else None
        rectify = bool(after) and _is(after[0], ReLU)
        if norm is None and rectify and _is_rectifiable(first):
            return first(x, True), 2
        if (norm is not None or rectify) and _is_constant(first, norm):
            count = 1 + (norm is not None) + rectify
            return conv_block(x, first, norm, None, rectify), count
    if _is(first, BatchNorm2d) and after and _is(after[0], ReLU):
        return norm_block(x, first, None, True), 2
    return first(x), 1


def _rest(y, shortcut, rectify):
    """The steps after a module, whose result y nobody else has."""
    if shortcut is not None:
        y = y + shortcut
    return ops.relu(y, inplace=True) if rectify else y


def _is(module, kind) -> bool:
    """Whether it is just that, and nobody wants to see it being called."""
    return type(module) is kind and not module.has_hooks


def _is_rectifiable(conv) -> bool:
    """Whether ReLU may go with the convolution, of which nobody needs the plain result."""
    return _is(conv, Conv2d) and conv.bias is not None and not is_traced()


def _is_constant(conv, norm) -> bool:
    """Whether all the steps are products with constants that no graph needs."""
    if is_grad_enabled() or is_traced() or not _is(conv, Conv2d):
        return False
    return norm is None or (_is(norm, BatchNorm2d) and not norm.training)
