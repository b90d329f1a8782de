"""A convolution and what follows it, in one pass where nobody needs the steps.

In inference a batch normalisation multiplies each channel by one constant and adds another, and a
shortcut and ReLU are as simple: the kernel of the convolution does all of it to its sums before it
stores them (`minidl.ops.conv2d_affine`), which saves reading and writing the whole result up to
three times. The result is the same up to rounding.
"""

from minidl import ops
from minidl.nn.activation import ReLU
from minidl.nn.conv import Conv2d
from minidl.nn.norm import BatchNorm2d
from minidl.tensor import is_grad_enabled, is_traced


def conv_block(x, conv, norm=None, shortcut=None, rectify=False):
    """relu(norm(conv(x)) + shortcut), of whatever of that there is.

    `norm`: a module; `shortcut`: a Tensor of the result's shape. In one pass under `no_grad` with
    running statistics; step by step where a graph is recorded, where something listens to the
    operations, and where a module of another class, or one with hooks, takes part.
    """
    if not is_grad_enabled() and not is_traced() and _is_constant(conv, norm):
        scale, shift = norm.affine() if norm is not None else (None, None)
        return conv.affine(x, scale, shift, shortcut, rectify)
    y = conv(x)
    if norm is not None:
        y = norm(y)
    if shortcut is not None:
        y = y + shortcut
    return ops.relu(y, inplace=True) if rectify else y


def _is_constant(conv, norm) -> bool:
    if type(conv) is not Conv2d or conv.has_hooks:
        return False
    return norm is None or (
        type(norm) is BatchNorm2d and not norm.training and not norm.has_hooks
    )


def run(modules, x):
    """Apply modules one after the other; a convolution takes along what follows it, if it may."""
    modules = list(modules)
    at = 0
    while at < len(modules):
        conv, norm, rectify, count = _block(modules[at : at + 3])
        if count > 1:
            x = conv_block(x, conv, norm, None, rectify)
        else:
            x = modules[at](x)
        at += count
    return x


def _block(modules):
    """(convolution, batch normalisation or None, whether ReLU follows, modules in all)."""
    if type(modules[0]) is not Conv2d or is_grad_enabled() or is_traced():
        return None, None, False, 1
    conv, *after = modules
    norm = after.pop(0) if after and type(after[0]) is BatchNorm2d else None
    rectify = bool(after) and type(after[0]) is ReLU and not after[0].has_hooks
    return conv, norm, rectify, 1 + (norm is not None) + rectify
