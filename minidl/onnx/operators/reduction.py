"""Reductions over axes."""

from minidl import ops
from minidl.onnx.operators.registry import integers, operator

# The opset that made the axes an input.
_AXES_ARE_INPUT = {"ReduceSum": 13, "ReduceMean": 18, "ReduceMax": 18, "ReduceLogSumExp": 18}
_FUNCTIONS = {
    "ReduceSum": ops.sum, "ReduceMean": ops.mean, "ReduceMax": ops.max,
    "ReduceLogSumExp": ops.logsumexp,
}  # fmt: skip


@operator(*_FUNCTIONS)
def reduction(node):
    """Without axes, over all of them, or over none with noop_with_empty_axes."""
    function = _FUNCTIONS[node.op_type]
    keepdims = node.flag("keepdims", True)
    fixed, no_op = None, False
    if node.opset < _AXES_ARE_INPUT[node.op_type]:
        fixed = node.ints("axes")
    else:
        no_op = node.flag("noop_with_empty_axes")

    def run(x, axes=None):
        axes = fixed if axes is None else integers("axes", axes)
        if axes:
            return function(x, axes, keepdims)
        return x if no_op else function(x, None, keepdims)

    return run
