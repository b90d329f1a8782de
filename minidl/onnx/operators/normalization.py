"""Batch normalisation with stored statistics, and local response normalisation."""

from minidl import ops
from minidl.onnx.operators.registry import operator


def _on_planes(function, x):
    """`function` of x (N, C, ...) with all further axes as one plane; the shape stays."""
    if x.ndim < 2:
        raise ValueError(f"the input must have shape (N, C, ...), got {x.shape}")
    if x.ndim == 4:
        return function(x)
    return function(x.reshape(*x.shape[:2], -1, 1)).reshape(x.shape)


@operator("BatchNormalization", untrained=(3, 4))
def batch_normalization(node):
    """Normalisation by the stored mean and variance, in training too."""
    epsilon = node.float("epsilon", 1e-5)
    node.float("momentum", 0.9)  # of the training that is refused
    if node.opset >= 14 and node.flag("training_mode"):
        raise node.error("training_mode is not supported")
    if node.opset < 9 and not node.flag("spatial", True):
        raise node.error("spatial = 0 is not supported")
    node.refuse_outputs(1)

    def run(x, weight, bias, mean, var):
        return _on_planes(
            lambda planes: ops.batch_norm(planes, weight, bias, mean, var, False, eps=epsilon), x
        )

    return run


@operator("LRN")
def lrn(node):
    """x / (bias + alpha / size * sum of squares over neighbouring channels) ** beta."""
    size = node.int("size")
    settings = (size, node.float("alpha", 1e-4), node.float("beta", 0.75), node.float("bias", 1.0))
    if size is None or size < 1:
        raise node.error(f"size must be positive, got {size}")

    def normalize(x):
        if size % 2:
            return ops.local_response_norm(x, *settings)
        # ONNX takes the greater half of an even window's neighbours after a channel, minidl before.
        return ops.local_response_norm(x[:, ::-1], *settings)[:, ::-1]

    return lambda x: _on_planes(normalize, x)
