"""A graph under construction: nodes, constants and fresh names for them."""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from minidl.function import Function

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """One operation as an emitter sees it.

    `inputs` are names in the graph. `other_inputs` and `other_outputs` are the shapes in a second
    run with another batch size: the sizes that differ there follow the batch.
    """

    function: Function
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    other_inputs: tuple[Shape, ...]
    other_output: Shape
    dtype: np.dtype


class Graph:
    """Nodes in the order of their emission, and the constants that they read."""

    def __init__(self, opset: int, taken):
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._taken = set(taken)
        self._counts = {}

    def fresh(self, stem: str) -> str:
        """A name that nothing in the graph has yet."""
        while True:
            count = self._counts[stem] = self._counts.get(stem, -1) + 1
            name = f"{stem}_{count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def node(self, op_type: str, inputs, **attributes) -> str:
        """Append a node of one output and return the output's name."""
        name = self.fresh(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def constant(self, array) -> str:
        """The name of a new constant."""
        name = self.fresh("constant")
        self.constants[name] = np.asarray(array)
        return name

    def ints(self, values) -> str:
        """The name of a new constant of int64s."""
        return self.constant(np.array(values, np.int64))

    def rename(self, old: str, new: str) -> None:
        """Give the value `old`, which a node makes, another name."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
