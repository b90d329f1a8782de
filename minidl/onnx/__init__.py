"""ONNX files: `export` writes a model of minidl, `load` reads one as a Module.

Needs the onnx package: ``pip install -e '.[onnx]'``.
"""

try:
    import onnx  # noqa: F401
except ImportError as error:
    raise ImportError("minidl.onnx needs the onnx package: pip install -e '.[onnx]'") from error

from minidl.onnx.common import OnnxError
from minidl.onnx.exporter import export
from minidl.onnx.loader import load
from minidl.onnx.module import OnnxModule

__all__ = ["OnnxError", "OnnxModule", "export", "load"]
