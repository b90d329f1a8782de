"""Export: the model runs on two random inputs, and the operations of both runs become the graph.

One run would do, were it not for what it cannot tell: whether a size follows the batch, and whether
a constant was computed from the input behind the operations' back. So the graph is emitted from
either run, each looking at the other for the sizes that differ, and both graphs must be the same.

Operations that neither an input nor a parameter reaches are not emitted: their results become
constants.
"""

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

from minidl.array_module import to_device
from minidl.files import atomic_path
from minidl.nn.module import Module
from minidl.onnx.common import FLOATS, MAX_OPSET, MIN_EXPORT_OPSET, OnnxError
from minidl.onnx.emitters import EMITTERS
from minidl.onnx.graph import Graph, Site
from minidl.onnx.trace import Trace, evaluating, trace
from minidl.tensor import Tensor

# Under this key a file lists those of its constants that are no parameters of the model.
UNTRAINED_KEY = "minidl.untrained"


def export(
    model: Module,
    path,
    input_shape,
    *,
    opset: int = 17,
    batch="dynamic",
    input_names=None,
    output_names=None,
) -> None:
    """Write `model` in evaluation mode to `path` as an ONNX file, atomically.

    `input_shape`: the shape of one example, (C, H, W) say, without the batch axis; for a model of
    several inputs a sequence of such shapes. Inputs have the dtype of the model's parameters
    (float32 without any). `batch`: "dynamic", for a graph that takes any batch size, or an int.
    Names default to "input" and "output", numbered from 0 where there are several. `opset`: from 13
    to 28, as far as the installed onnx goes. Parameters and buffers become initializers under their
    state_dict names. The model's modes and the random state stay as they were.

    Raises OnnxError, a ValueError, for an operation that has no ONNX form, a value computed outside
    minidl's operations, or a size that cannot follow the batch; ValueError for arguments that do
    not fit; TypeError for a model that is no Module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    _check_opset(opset)
    sizes = _batch_sizes(batch)
    shapes = _example_shapes(input_shape)
    input_names = _names("input_names", input_names, "input", len(shapes))
    with evaluating(model):
        runs = [_run(model, shapes, n, seed) for seed, n in enumerate(sizes)]
        output_names = _names("output_names", output_names, "output", len(runs[0].outputs))
        reserved = _check_distinct(input_names + output_names, model)
        graph, other = (
            _Emission(model, run, twin, input_names, output_names, opset, reserved).graph
            for run, twin in (runs, runs[::-1])
        )
    _check_same(graph, other)
    content = _serialized(model, graph, runs, input_names, output_names)
    _check_valid(content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


# -- arguments -------------------------------------------------------------------------------------


def _check_opset(opset):
    newest = min(MAX_OPSET, onnx.defs.onnx_opset_version())
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise ValueError(f"opset must be an int, got {opset!r}")
    if not MIN_EXPORT_OPSET <= opset <= newest:
        raise ValueError(f"opset must be from {MIN_EXPORT_OPSET} to {newest}, got {opset}")


def _batch_sizes(batch):
    """The batch sizes of the two runs."""
    if batch == "dynamic":
        return 2, 3
    if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
        raise ValueError(f"batch must be 'dynamic' or a positive int, got {batch!r}")
    return int(batch), int(batch)


def _example_shapes(input_shape):
    several = isinstance(input_shape, (tuple, list)) and any(
        isinstance(s, (tuple, list)) for s in input_shape
    )
    shapes = tuple(input_shape) if several else (input_shape,)
    for shape in shapes:
        if not isinstance(shape, (tuple, list)) or not all(
            isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in shape
        ):
            raise ValueError(
                f"input_shape must be a tuple of positive ints or several such, got {input_shape!r}"
            )
    return [tuple(int(n) for n in shape) for shape in shapes]


def _names(argument, names, stem, count):
    if names is None:
        return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
    names = list(names) if isinstance(names, (tuple, list)) else [names]
    if len(names) != count or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{argument} must be {count} non-empty strings, got {names!r}")
    return names


def _check_distinct(names, model):
    """All names that are taken; ValueError where two of them are the same."""
    reserved = [*names, *model._state()]
    for name in names:
        if reserved.count(name) > 1:
            raise ValueError(
                f"input_names and output_names must differ from each other and from the "
                f"state_dict's names, but {name!r} is taken"
            )
    return reserved


def _run(model, shapes, batch, seed) -> Trace:
    """One run on standard normal inputs."""
    state = [t for t in model._state().values() if t.dtype.kind == "f"]
    dtype, device = (state[0].dtype, state[0].device) if state else (np.dtype(np.float32), "cpu")
    if dtype not in FLOATS:
        raise OnnxError(f"the model must be float32 or float64, got {dtype}")
    draw = np.random.default_rng(seed)
    inputs = tuple(
        Tensor(to_device(draw.standard_normal((batch, *shape)).astype(dtype), device))
        for shape in shapes
    )
    try:
        return trace(model, inputs)
    except OnnxError:
        raise
    except Exception as error:
        raise ValueError(
            f"input_shape: the model does not run on {[t.shape for t in inputs]}: {error}"
        ) from error


# -- from a trace to a graph -----------------------------------------------------------------------


class _Emission:
    """Emits the operations of `run` that lead from its inputs to its outputs.

    A tensor is known by its array, so that `detach()`, which shares it, is seen through; the trace
    keeps the arrays alive.
    """

    def __init__(self, model, run, twin, input_names, output_names, opset, reserved):
        self.graph = Graph(opset, reserved)
        self._names = {id(t._array): n for t, n in zip(run.inputs, input_names, strict=True)}
        self._parameters = {id(t._array) for _, t in model._named("_parameters", once=True)}
        self._state = {}
        for name, t in model._state().items():
            self._state.setdefault(id(t._array), name)
        if [c.name for c in run.calls] != [c.name for c in twin.calls]:
            raise OnnxError("the model runs other operations on another input or batch size")
        for call, other in self._needed(run, twin):
            self._emit(call, other)
        for t, name in zip(run.outputs, output_names, strict=True):
            self._name_output(t, name, input_names + output_names)

    def _needed(self, run, twin):
        """The pairs of calls that depend on inputs or parameters and that lead to an output."""
        live = {*self._names, *self._parameters}
        pairs = []
        for call, other in zip(run.calls, twin.calls, strict=True):
            if any(id(t._array) in live for t in call.inputs):
                live.update(id(t._array) for t in call.outputs)
                pairs.append((call, other))
        wanted = {id(t._array) for t in run.outputs}
        needed = []
        for call, other in reversed(pairs):
            if any(id(t._array) in wanted for t in call.outputs):
                wanted.update(id(t._array) for t in call.inputs)
                needed.append((call, other))
        return needed[::-1]

    def _emit(self, call, other):
        emitter = EMITTERS.get(type(call.function))
        if emitter is None:
            raise OnnxError(f"{call.name} has no ONNX form here")
        call.check_unmodified()
        if len({t.dtype for t in call.inputs}) > 1:
            dtypes = ", ".join(str(t.dtype) for t in call.inputs)
            raise OnnxError(f"{call.name}: its operands must have one dtype, got {dtypes}")
        site = Site(
            call.function,
            tuple(self._name(t, call.name) for t in call.inputs),
            tuple(t.shape for t in call.inputs),
            call.outputs[0].shape,
            tuple(t.shape for t in other.inputs),
            other.outputs[0].shape,
            call.outputs[0].dtype,
        )
        self._names[id(call.outputs[0]._array)] = emitter(self.graph, site)
        for t in call.outputs[1:]:
            self._names[id(t._array)] = None

    def _name(self, t: Tensor, reader: str) -> str:
        """The name of a tensor; one that no node makes is registered as a constant."""
        key = id(t._array)
        if key not in self._names:
            array = to_device(t._array, "cpu")
            if key in self._state:
                self._names[key] = self._state[key]
                self.graph.constants[self._state[key]] = array
            else:
                self._names[key] = self.graph.constant(array)
        if self._names[key] is None:
            raise OnnxError(f"{reader} reads the switches of a MaxPool2d, which are not exported")
        return self._names[key]

    def _name_output(self, t, name, taken):
        current = self._name(t, "an output")
        if current in taken or current in self.graph.constants:
            self.graph.nodes.append(helper.make_node("Identity", [current], [name], name))
        else:
            self.graph.rename(current, name)
            self._names[id(t._array)] = name


def _check_same(graph: Graph, other: Graph):
    for name, array in graph.constants.items():
        twin = other.constants.get(name)
        if twin is None or array.shape != twin.shape:
            raise OnnxError(
                f"a constant of shape {array.shape} changes its shape with the batch; "
                "export with batch=N"
            )
        if array is not twin and not np.array_equal(array, twin, equal_nan=array.dtype.kind == "f"):
            raise OnnxError(
                f"a constant of shape {array.shape} changes with the input: it must be computed by "
                "minidl's operations alone, and, for a dynamic batch, not from the batch's size"
            )
    for node, twin in zip(graph.nodes, other.nodes, strict=False):
        if node != twin:
            raise OnnxError(f"a setting of {node.op_type} changes with the input or batch size")


# -- the file --------------------------------------------------------------------------------------


def _serialized(model, graph: Graph, runs, input_names, output_names) -> bytes:
    """The content of the file. OnnxError where it would be too large."""
    run, other = runs
    parameters = dict(model._named("_parameters", once=False))
    untrained = [name for name in graph.constants if name not in parameters]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            _value_infos(input_names, run.inputs, other.inputs),
            _value_infos(output_names, run.outputs, other.outputs),
        ),
        producer_name="minidl",
        opset_imports=[helper.make_opsetid("", graph.opset)],
    )
    # One by one: `make_graph` and `make_model` would each copy all of them.
    for name, array in graph.constants.items():
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        proto.graph.initializer.append(tensor)
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    helper.set_model_props(proto, {UNTRAINED_KEY: json.dumps(untrained)})
    try:
        return proto.SerializeToString()
    except Exception as error:  # protobuf's own error, whose type depends on its version
        raise OnnxError(f"the model exceeds the 2 GB of one file: {error}") from error


def _value_infos(names, tensors, others):
    """Types of inputs or outputs; a size that follows the batch is "batch", or else unknown."""
    infos = []
    for name, t, other in zip(names, tensors, others, strict=True):
        pairs = zip(t.shape, other.shape, strict=True)
        sizes = [a if a == b else "batch" if (a, b) == (2, 3) else None for a, b in pairs]
        kind = helper.np_dtype_to_tensor_dtype(t.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, sizes))
    return infos


def _check_valid(content: bytes):
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxError(f"the model gives no valid graph: {error}") from error
