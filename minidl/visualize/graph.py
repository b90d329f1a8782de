"""The computation graph of a model or an expression, as plain data, as text and as a picture.

    graph = capture(model, images)          # or capture(loss), or capture(lambda a, b: a * b, x, y)
    print(graph.text())
    render(graph, "graph.svg")              # needs Graphviz

It is the graph that backward walks: what needs no gradient is not in it, unless an operation keeps
it. Graphs of gradients (``create_graph=True``) are graphs like any other.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minidl import random
from minidl.graph import _topological_order, grad
from minidl.nn.module import Module
from minidl.profiler import profile
from minidl.profiler.memory import kept_arrays
from minidl.table import format_bytes, format_table
from minidl.tensor import Tensor, as_tensor, enable_grad, listening

LEAVES = ("parameter", "input", "buffer", "leaf", "constant")


@dataclass(frozen=True)
class Saved:
    """An array that a node keeps for backward.

    `what` names it, as in "input 0", "output 1" or "buffer scale". `bytes`: of the memory that is
    kept by it, which for a view is the whole array, and 0 where the memory has been counted: the
    first that keeps it in the graph's order does, in the node `owner`.
    """

    what: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    owner: int


@dataclass(frozen=True)
class Node:
    """An operation, or one of LEAVES. `number` is its place in the graph's `nodes`.

    `sources`: (number of a node, index of its output) for every input. `outputs`: (shape, dtype) of
    each. `module`: dotted name of the module that ran it, "" where none did or that is unknown;
    `call`: how many calls of that module had ended by then. `backward`: True where it ran in a walk
    back through the graph.
    """

    number: int
    kind: str
    name: str
    sources: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[tuple[int, ...], str], ...]
    saved: tuple[Saved, ...] = ()
    module: str = ""
    call: int = 0
    backward: bool = False

    @property
    def saved_bytes(self) -> int:
        """Bytes that this node owns of what it keeps."""
        return sum(s.bytes for s in self.saved)


@dataclass(frozen=True)
class Graph:
    """Nodes, inputs before what reads them. `outputs`: name -> (node's number, output's index).

    `parameters`, `parameter_bytes`: numbers and bytes in the parameters that the graph reaches.
    """

    nodes: tuple[Node, ...]
    outputs: dict[str, tuple[int, int]]
    parameters: int
    parameter_bytes: int

    @property
    def operations(self) -> list[Node]:
        """The nodes that are no leaves."""
        return [node for node in self.nodes if node.kind == "operation"]

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward, memory that several nodes keep counted once; no parameters."""
        return sum(node.saved_bytes for node in self.nodes)

    def text(self) -> str:
        """A table with a line for every operation, and the totals."""
        numbers = {node.number: f"#{i}" for i, node in enumerate(self.operations, 1)}
        header = ("", "operation", "module", "from", "output", "kept for backward", "bytes")
        rows = [
            (
                numbers[node.number], f"{node.name} (backward)" if node.backward else node.name,
                node.module, ", ".join(self._source(s, numbers) for s in node.sources),
                ", ".join(array_text(*output) for output in node.outputs),
                ", ".join(_saved_text(s, node, numbers) for s in node.saved),
                format_bytes(node.saved_bytes) if node.saved_bytes else "",
            )
            for node in self.operations
        ]  # fmt: skip
        arrays = sum(s.bytes > 0 for node in self.nodes for s in node.saved)
        outputs = [f"{name} is {self._source(s, numbers)}" for name, s in self.outputs.items()]
        table = format_table(header, rows, left=6)
        totals = [
            textwrap.fill(f"outputs            {', '.join(outputs)}", 100,
                          subsequent_indent=" " * 19),
            f"operations         {len(rows)}",
            f"parameters         {self.parameters:,}, {format_bytes(self.parameter_bytes)}",
            f"kept for backward  {format_bytes(self.saved_bytes)} in {arrays} "
            f"array{'s' * (arrays != 1)}",
        ]  # fmt: skip
        return "\n".join([*table, table[1], *totals])

    def _source(self, source, numbers):
        number, index = source
        node = self.nodes[number]
        name = numbers.get(number, node.name)
        return f"{name}[{index}]" if len(node.outputs) > 1 else name


def array_text(shape, dtype) -> str:
    """As in "64x1x28x28 float32"; a single number has the shape ()."""
    return f"{'x'.join(map(str, shape)) or '()'} {dtype}"


def _saved_text(saved, node, numbers):
    if saved.owner == node.number:
        return saved.what
    return f"{saved.what} (see {numbers[saved.owner]})"


def text(of, *inputs, **settings) -> str:
    """`Graph.text` of what `capture` finds with these arguments, or of a Graph."""
    return _as_graph(of, inputs, settings).text()


def render(of, *inputs, path, **settings) -> None:
    """Draw what `capture` finds, or a Graph, to `path`: .svg, .png, .pdf or the source as .dot.

    Boxes are operations with their outputs and what they own of the memory kept for backward,
    ellipses leaves, frames modules. Written atomically. Raises ImportError without the package
    graphviz, RuntimeError without the program dot, ValueError for another ending.
    """
    from minidl.visualize import graph_picture

    graph_picture.save(graph_picture.graph_source(_as_graph(of, inputs, settings)), path)


def _as_graph(of, inputs, settings):
    return of if isinstance(of, Graph) else capture(of, *inputs, **settings)


def capture(
    of, *inputs, loss: Callable | None = None, backward: bool = False, model: Module | None = None
) -> Graph:
    """The graph of `of`: a Tensor, a sequence of them, or a callable to run on `inputs`.

    A callable (a Module as it stands, or any function of Tensors) runs once; the random state and
    a Module's buffers are then as before. ``loss(outputs)`` follows it if given. With `backward`
    the graph is that of the gradients of the sum of the results, by all parameters and inputs that
    require grad. `model` names the parameters where `of` is no Module.

    Raises ValueError where nothing that requires grad leads to the results or arguments exclude
    each other, TypeError for results that are no Tensors, RuntimeError for a graph that was freed,
    or within a profile.
    """
    model = of if isinstance(of, Module) and model is None else model
    if isinstance(of, (Tensor, list, tuple)):
        if inputs or loss is not None or backward:
            raise ValueError("inputs, loss and backward go with a callable, not with Tensors")
        return _Collector(model, ()).graph(_named("output", of))
    if not callable(of):
        raise TypeError(f"of must be a Tensor, several or a callable, got {type(of).__name__}")
    tensors = [as_tensor(value) for value in inputs]
    read = {}  # a node -> the inputs that need no gradient: the graph does not lead to them

    def listen(function, inputs, outputs):
        if function.edges:
            read[function] = [None if t._requires_grad else t for t in inputs]

    with _restoring(model), enable_grad(), listening(listen), profile() as running:
        results = of(*tensors)
        if loss is not None:
            results = loss(results)
        named = _named("output" if loss is None else "loss", results)
        if backward:
            named |= _gradients(named, model, tensors)
        return _Collector(model, tensors, running, read).graph(named)


def _named(name, results):
    results = list(results) if isinstance(results, Sequence) else [results]
    for result in results:
        if not isinstance(result, Tensor):
            raise TypeError(f"results must be Tensors, got {type(result).__name__}")
    if len(results) == 1:
        return {name: results[0]}
    return {f"{name} {i}": result for i, result in enumerate(results)}


def _gradients(named, model, inputs):
    wanted = dict(model.named_parameters()) if model is not None else {}
    wanted |= _input_names(inputs)
    wanted = {name: t for name, t in wanted.items() if t.requires_grad}
    if not wanted:
        raise ValueError("backward needs a parameter or an input that requires grad, got none")
    total = sum(result.sum() for result in named.values())
    grads = grad(total, list(wanted.values()), create_graph=True, allow_unused=True)
    return {
        f"gradient of {name}": g for name, g in zip(wanted, grads, strict=True) if g is not None
    }


def _input_names(inputs):
    names = ["input"] if len(inputs) == 1 else [f"input {i}" for i in range(len(inputs))]
    return dict(zip(names, inputs, strict=True))


class _restoring:
    """Afterwards the random state and the buffers of `model`, if there is one, are as before."""

    def __init__(self, model):
        buffers = model.buffers() if model is not None else ()
        self._values = [(buffer, buffer._array.copy()) for buffer in buffers]
        self._state = random.get_state()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        random.set_state(self._state)
        for buffer, values in self._values:
            buffer.copy_(values)


class _Collector:
    """Turns live nodes into a Graph."""

    def __init__(self, model, inputs, running=None, read=None):
        self._read = read or {}
        self._events = _Events(running, model)
        self._known = {id(t): ("input", name) for name, t in _input_names(inputs).items()}
        if model is not None:
            self._known |= {id(t): ("parameter", n) for n, t in model.named_parameters()}
            self._known |= {id(t): ("buffer", n) for n, t in model.named_buffers()}
        self._nodes = []
        self._numbers = {}  # a function, or the id of a leaf -> its node's number
        self._leaves = []  # holding them keeps their ids valid
        self._made = {}  # (id of kept memory, shape) -> the output that it is
        self._owners = {}  # id of kept memory -> number of the node that counts it
        self._trained = set()  # ids of the storages of leaves that require grad

    def graph(self, named) -> Graph:
        """The graph below the tensors `named`."""
        roots = [t._node for t in named.values() if t._node is not None]
        if not roots and not any(t._requires_grad for t in named.values()):
            raise ValueError(
                "no recorded operation leads to the results: a parameter or an input must require "
                "grad, outside no_grad"
            )
        functions = self._events.in_order(_topological_order(roots))
        edges = (edge for function in functions for edge in function.edges if edge is not None)
        self._trained = {id(leaf._storage) for leaf, _ in edges if isinstance(leaf, Tensor)}
        for function in functions:
            self._operation(function)
        outputs = {
            name: (self._leaf(t) if t._node is None else self._numbers[t._node], t._index)
            for name, t in named.items()
        }
        trained = [t for t in self._leaves if self._known.get(id(t), ("",))[0] == "parameter"]
        return Graph(
            tuple(self._nodes), outputs, sum(t.size for t in trained),
            sum(t._array.nbytes for t in trained),
        )  # fmt: skip

    def _operation(self, function):
        sources = []
        for i, edge in enumerate(function.edges):
            if edge is None:
                sources.append(self._constant(function, i))
            elif isinstance(edge[0], Tensor):
                sources.append((self._leaf(edge[0]), 0))
            else:
                sources.append((self._numbers[edge[0]], edge[1]))
        number = self._numbers[function] = len(self._nodes)
        saved = tuple(self._saved(kept, number) for kept in kept_arrays(function, self._trained))
        for index, kept in enumerate(function._outputs or ()):
            if kept is not None:
                array, storage = kept
                self._made.setdefault((id(storage), array.shape), (number, index))
        outputs = tuple((shape, str(dtype)) for shape, dtype in function.output_meta)
        self._nodes.append(
            Node(number, "operation", type(function).__name__, tuple(sources), outputs,
                 saved, **self._events.place(function))
        )  # fmt: skip

    def _saved(self, kept, number):
        counted = kept.key in self._owners
        owner = self._owners.setdefault(kept.key, number)
        return Saved(
            kept.what, kept.array.shape, str(kept.array.dtype), 0 if counted else kept.bytes, owner
        )

    def _constant(self, function, i):
        """(number, output's index) of what an input that needs no gradient comes from."""
        known = self._read.get(function) or function._inputs
        if not known or known[i] is None:
            return self._add_leaf("constant", "constant", *function.input_meta[i]), 0
        made = self._made.get((id(known[i]._storage), known[i].shape))
        return (self._leaf(known[i]), 0) if made is None else made

    def _leaf(self, tensor):
        if id(tensor) not in self._numbers:
            self._leaves.append(tensor)
            if id(tensor) in self._known:
                kind, name = self._known[id(tensor)]
            elif tensor._requires_grad:
                kind, name = "leaf", f"leaf {sum(node.kind == 'leaf' for node in self._nodes) + 1}"
            else:
                kind, name = "constant", f"{tensor.item():g}" if tensor.size == 1 else "constant"
            self._numbers[id(tensor)] = self._add_leaf(kind, name, tensor.shape, tensor.dtype)
        return self._numbers[id(tensor)]

    def _add_leaf(self, kind, name, shape, dtype):
        number = len(self._nodes)
        module = name.rpartition(".")[0] if kind in ("parameter", "buffer") else ""
        outputs = ((tuple(shape), str(dtype)),)
        self._nodes.append(Node(number, kind, name, (), outputs, module=module))
        return number


class _Events:
    """Where in a model a running profile saw each node being made."""

    def __init__(self, running, model):
        self._running = running
        self._root = type(model).__name__ if model is not None else ""
        self._calls = []  # of every event: how many calls of its module had ended
        ended = {}
        for event in running.events if running is not None else ():
            self._calls.append(ended.get(event.module, 0))
            if event.phase == "span":
                ended[event.module] = ended.get(event.module, 0) + 1

    def in_order(self, functions) -> list:
        """`functions`, those that the profile saw in the order in which they ran."""
        if self._running is None:
            return functions
        places = [self._running.event_of(function) for function in functions]
        numbers = [-1 if place is None else place for place in places]
        ordered = sorted(zip(numbers, range(len(functions)), strict=True))
        return [functions[i] for _, i in ordered]

    def place(self, function) -> dict:
        """`module`, `call` and `backward` of the node of `function`."""
        index = self._running.event_of(function) if self._running is not None else None
        if index is None:
            return {}
        event = self._running.events[index]
        return {
            "module": "" if event.module == self._root else event.module,
            "call": self._calls[index],
            "backward": event.phase == "backward",
        }
