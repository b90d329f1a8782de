"""A node's attributes, read by name and type."""

from onnx import AttributeProto, NodeProto, helper

from minidl.onnx.common import OnnxError

_TYPES = {
    "int": AttributeProto.INT,
    "float": AttributeProto.FLOAT,
    "string": AttributeProto.STRING,
    "ints": AttributeProto.INTS,
}


class Node:
    """One node of a file. Attributes are read once each; what stays unread is refused.

    `wanted` are the names that the graph reads anywhere: other outputs become "".
    """

    def __init__(self, proto: NodeProto, index: int, opset: int, wanted: set[str]):
        self.proto = proto
        self.inputs = tuple(proto.input)
        self.outputs = tuple(name if name in wanted else "" for name in proto.output)
        self.opset = opset
        self.op_type = proto.op_type
        self.label = f"node {proto.name or index!r} ({proto.op_type})"
        self._unread = {a.name: a for a in proto.attribute}

    def int(self, name: str, default: int | None = None) -> int | None:
        """The attribute `name`, or `default`."""
        return self._read(name, "int", default)

    def float(self, name: str, default: float) -> float:
        """The attribute `name`, or `default`."""
        return self._read(name, "float", default)

    def flag(self, name: str, default: bool = False) -> bool:
        """The attribute `name`, 0 or 1, as a bool."""
        value = self.int(name, int(default))
        if value not in (0, 1):
            raise self.error(f"{name} must be 0 or 1, got {value}")
        return bool(value)

    def string(self, name: str, default: str) -> str:
        """The attribute `name`, or `default`."""
        value = self._read(name, "string", default)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def ints(self, name: str) -> tuple[int, ...] | None:
        """The attribute `name`, or None."""
        value = self._read(name, "ints", None)
        return None if value is None else tuple(value)

    def pair(self, name: str, default: int = 1, minimum: int = 1) -> tuple[int, int]:
        """The attribute `name` as two ints, one a spatial axis."""
        value = self.ints(name)
        return (default, default) if value is None else self.spatial(name, value, 2, minimum)

    def spatial(self, name, value, length, minimum):
        """`value` after checking that it is an attribute of an operator on two spatial axes."""
        if len(value) != length:
            raise self.error(
                f"{name} {list(value)} is that of {len(value) * 2 // length} spatial axes, "
                "only 2 are supported"
            )
        if min(value) < minimum:
            raise self.error(f"{name} must be at least {minimum}, got {list(value)}")
        return value

    def uses_output(self, index: int) -> bool:
        """Whether anything reads the output `index`."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def refuse_outputs(self, first: int) -> None:
        """OnnxError where anything reads an output from `first` on."""
        for name in filter(None, self.outputs[first:]):
            raise self.error(f"output {name!r} is not supported")

    def error(self, text: str) -> OnnxError:
        """An OnnxError naming this node."""
        return OnnxError(f"{self.label}: {text}")

    def check_all_read(self) -> None:
        """OnnxError where an attribute has not been asked for: it is not supported."""
        if self._unread:
            raise self.error(f"attribute {next(iter(self._unread))!r} is not supported")

    def _read(self, name, kind, default):
        attribute = self._unread.pop(name, None)
        if attribute is None:
            return default
        if attribute.type != _TYPES[kind]:
            raise self.error(f"attribute {name!r} must be of type {kind}")
        return helper.get_attribute_value(attribute)
