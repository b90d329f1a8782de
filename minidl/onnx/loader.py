"""Load: an ONNX file is read, checked, and every node turned into a call of minidl's operations."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from minidl.onnx import operators
from minidl.onnx.common import MAX_OPSET, MIN_OPSET, OnnxError
from minidl.onnx.exporter import UNTRAINED_KEY
from minidl.onnx.module import GraphInput, OnnxModule, Step
from minidl.onnx.node import Node

_CONSTANT_FORMS = ("value", "value_float", "value_floats", "value_int", "value_ints")


def load(path) -> OnnxModule:
    """Read the ONNX file `path` as a Module, in evaluation mode.

    Floating-point initializers become Parameters under their names (characters other than letters,
    digits, "." and "_" replaced), so that the model can be trained further; what no gradient
    reaches (statistics, bounds), integers, Constant nodes, and what `export` marked as untrained
    become buffers. Files of opset 7 to 28 are read, of float32 and float64; float16 is refused.

    Raises FileNotFoundError where there is no file; OnnxError, a ValueError, where it is damaged,
    keeps tensors in other files, or asks for an operator, attribute, opset or dtype that is not
    supported, naming the node.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    proto = _read(path)
    try:
        return _build(proto)
    except UnicodeDecodeError as error:
        raise OnnxError(f"{path}: damaged: a name in it is no text: {error}") from error
    except OnnxError as error:
        raise OnnxError(f"{path}: {error}") from error


def _read(path):
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own error, whose type depends on its version
        raise OnnxError(f"{path}: damaged, or not an ONNX file: {error}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise OnnxError(f"{path}: damaged, or not an ONNX file: it holds no graph")
    return proto


def _build(proto) -> OnnxModule:
    opset = _opset(proto)
    outputs = [info.name for info in proto.graph.output]
    read = {name for node in proto.graph.node for name in node.input} | set(outputs)
    nodes = [Node(node, index, opset, read - {""}) for index, node in enumerate(proto.graph.node)]
    _check_supported(proto, nodes)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise OnnxError(f"not a valid graph: {error}") from error
    arrays = {t.name: _array(t, f"initializer {t.name!r}") for t in proto.graph.initializer}
    inputs = [_graph_input(info) for info in proto.graph.input if info.name not in arrays]
    constants = {n.proto.output[0]: _constant(n) for n in nodes if n.op_type == "Constant"}
    nodes = [n for n in nodes if n.op_type != "Constant"]
    _check_names(nodes, {i.name for i in inputs} | arrays.keys() | constants.keys(), outputs)
    parameters = {name: arrays[name] for name in _trained(nodes, arrays, proto)}
    buffers = {
        name: array
        for name, array in {**arrays, **constants}.items()
        if name in read and name not in parameters
    }
    return OnnxModule(inputs, outputs, parameters, buffers, _steps(nodes, outputs))


def _opset(proto):
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        domains = [o.domain for o in proto.opset_import]
        raise OnnxError(f"only ONNX's own operators are supported, not the domains {domains}")
    if not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise OnnxError(f"opset {versions[0]} is not supported, only {MIN_OPSET} to {MAX_OPSET}")
    return versions[0]


def _check_supported(proto, nodes):
    """OnnxError for what is valid ONNX but not supported, before the checker speaks of details."""
    for n in nodes:
        if n.proto.domain not in ("", "ai.onnx"):
            raise OnnxError(f"{n.label}: domain {n.proto.domain!r} is not supported")
        if n.op_type != "Constant" and n.op_type not in operators.OPERATORS:
            raise OnnxError(f"{n.label}: operator {n.op_type} is not supported")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise OnnxError(f"initializer {name!r}: sparse tensors are not supported")
    for t in proto.graph.initializer:
        if t.data_location == TensorProto.EXTERNAL:
            raise OnnxError(
                f"initializer {t.name!r} lies in another file: external data is not supported"
            )


def _dtype(data_type, what) -> np.dtype:
    try:
        return operators.element_type(data_type)
    except ValueError as error:
        raise OnnxError(f"{what}: {error}") from error


def _array(tensor, what):
    _dtype(tensor.data_type, what)
    if tensor.data_location == TensorProto.EXTERNAL:
        raise OnnxError(f"{what} lies in another file: external data is not supported")
    try:
        return np.array(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise OnnxError(f"{what}: damaged: {error}") from error


def _graph_input(info):
    what = f"input {info.name!r}"
    if not info.type.HasField("tensor_type"):
        raise OnnxError(f"{what}: {info.type.WhichOneof('value')} is not supported, only tensors")
    kind = info.type.tensor_type
    dtype = _dtype(kind.elem_type, what)
    if not kind.HasField("shape"):
        return GraphInput(info.name, dtype, None)
    sizes = (d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
    return GraphInput(info.name, dtype, tuple(sizes))


def _constant(node):
    given = [a for a in node.proto.attribute if a.name in _CONSTANT_FORMS]
    if len(given) != 1 or len(node.proto.attribute) != 1:
        names = [a.name for a in node.proto.attribute]
        raise OnnxError(
            f"{node.label}: attributes {names} are not supported, only one of {_CONSTANT_FORMS}"
        )
    value = helper.get_attribute_value(given[0])
    if given[0].name == "value":
        return _array(value, node.label)
    return np.array(value, np.float32 if "float" in given[0].name else np.int64)


def _check_names(nodes, known, outputs):
    """OnnxError where a node or the graph's end reads what nothing has made by then."""
    for n in nodes:
        for name in n.inputs:
            if name and name not in known:
                raise OnnxError(f"{n.label}: its input {name!r} is made by nothing before it")
        known.update(n.outputs)
    for name in outputs:
        if name not in known:
            raise OnnxError(f"output {name!r} is made by no node")


def _trained(nodes, arrays, proto):
    """The names of the floating initializers that a node reads where a gradient arrives."""
    reached = set()
    for n in nodes:
        fixed = operators.OPERATORS[n.op_type].untrained
        reached.update(name for i, name in enumerate(n.inputs) if i not in fixed)
    untrained = _marked_untrained(proto)
    return [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and name in reached and name not in untrained
    ]


def _marked_untrained(proto):
    for entry in proto.metadata_props:
        if entry.key == UNTRAINED_KEY:
            try:
                names = json.loads(entry.value)
            except ValueError as error:
                raise OnnxError(f"metadata {UNTRAINED_KEY!r} is damaged: {error}") from error
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise OnnxError(f"metadata {UNTRAINED_KEY!r} must list names, got {entry.value}")
            return set(names)
    return set()


def _steps(nodes, outputs):
    last_reader = {}
    for i, n in enumerate(nodes):
        for name in (*n.inputs, *n.outputs):
            last_reader[name] = i
    kept = {*outputs, ""}
    steps = []
    for i, n in enumerate(nodes):
        run = operators.OPERATORS[n.op_type].build(n)
        n.check_all_read()
        touched = dict.fromkeys((*n.inputs, *n.outputs))
        frees = tuple(name for name in touched if last_reader[name] == i and name not in kept)
        steps.append(Step(n.label, run, n.inputs, n.outputs, frees))
    return steps
