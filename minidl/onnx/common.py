"""What both directions share: their error, and the opsets and dtypes that they know."""

import numpy as np

# Older opsets broadcast otherwise; newer ones are untested. Written files need 13 or later, where
# axes became inputs.
MIN_OPSET, MIN_EXPORT_OPSET, MAX_OPSET = 7, 13, 28
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class OnnxError(ValueError):
    """A model that cannot be written as ONNX, or a file that cannot be read as a model."""
