"""Graphs of one operator, and ONNX Runtime to compare them with."""

import numpy as np
import pytest

from minidl import Tensor


class Oracle:
    """Builds a graph, and runs it with minidl and with ONNX Runtime."""

    def __init__(self, folder):
        self.path = folder / "model.onnx"

    def save(
        self, op_type, inputs, opset=17, outputs=1, constant=(), domain="", **attributes
    ):
        """Write the graph of one node to `path`, and return the path.

        `inputs`: arrays, None for one left out; those at the positions `constant` are initializers.
        `outputs`: how many, or their names.
        """
        from onnx import helper, numpy_helper

        names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
        if isinstance(outputs, int):
            outputs = [f"y{i}" for i in range(outputs)]
        node = helper.make_node(
            op_type, names, outputs, name="node0", domain=domain, **attributes
        )
        given = [(i, n, a) for i, (n, a) in enumerate(zip(names, inputs, strict=True)) if n]
        # Before opset 9 files list initializers among the inputs.
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for i, n, a in given
            if i not in constant or opset < 9
        ]
        initializers = [numpy_helper.from_array(a, n) for i, n, a in given if i in constant]
        results = [helper.make_empty_tensor_value_info(name) for name in outputs if name]
        return self.write(helper.make_graph([node], "g", infos, results, initializers), opset)

    def write(self, graph, opset=17):
        """Write a graph to `path`, and return the path."""
        from onnx import helper

        opsets = [helper.make_opsetid("", opset)]
        ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        self.path.write_bytes(proto.SerializeToString())
        return self.path

    def declare(self, results):
        """Declare the types of the outputs, which ONNX Runtime found out and `load` must know."""
        import onnx

        proto = onnx.load(self.path)
        for info, array in zip(proto.graph.output, results, strict=True):
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, array.shape))
        self.path.write_bytes(proto.SerializeToString())

    def ours(self, *arrays):
        """What minidl makes of the file, as a list of arrays."""
        from minidl import onnx

        result = onnx.load(self.path)(*map(Tensor, arrays))
        outputs = result if isinstance(result, tuple) else (result,)
        return [t.detach().numpy() for t in outputs]

    def theirs(self, *arrays, path=None):
        """What ONNX Runtime makes of it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(path or self.path), options, providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]
        return session.run(None, dict(zip(names, arrays, strict=True)))

    def agree(self, op_type, inputs, opset=17, constant=(), **settings):
        """Assert that both give the same for a graph of one operator."""
        self.save(op_type, inputs, opset, constant=constant, **settings)
        arrays = [a for i, a in enumerate(inputs) if a is not None and i not in constant]
        expected = self.theirs(*arrays)
        self.declare(expected)
        for ours, theirs in zip(self.ours(*arrays), expected, strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    """See `Oracle`."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return Oracle(tmp_path_factory.mktemp("onnx"))
