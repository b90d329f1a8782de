"""Published networks, whose graphs come with the onnx package, with random weights: both ways."""

from pathlib import Path

import numpy as np
import pytest

from minidl import Tensor
from minidl.tensor import no_grad

onnx = pytest.importorskip("onnx")
from minidl.onnx import export, load  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
OTHERS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
    "zfnet512",
)  # fmt: skip


def with_weights(path):
    """The network of a light file, its ConstantOfShape nodes replaced by random initializers."""
    proto = onnx.load(path)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = list(proto.graph.node)
    variances = {n.input[4] for n in nodes if n.op_type == "BatchNormalization"}
    draw = np.random.default_rng(0)
    for node in nodes:
        if node.op_type == "ConstantOfShape":
            shape = shapes[node.input[0]]
            array = draw.standard_normal(shape) * np.sqrt(2 / max(1, np.prod(shape[1:])))
            array = np.abs(array) + 0.5 if node.output[0] in variances else array
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), node.output[0])
            proto.graph.initializer.append(tensor)
    del proto.graph.node[:]
    proto.graph.node.extend(n for n in nodes if n.op_type != "ConstantOfShape")
    proto.ir_version = 4  # before, initializers had to be inputs
    return proto


@pytest.mark.parametrize(
    "name", ["squeezenet", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_published_network(oracle, name):
    path = LIGHT / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("this version of onnx comes without the network")
    oracle.path.write_bytes(with_weights(path).SerializeToString())
    model = load(oracle.path)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with no_grad():
        ours = model(Tensor(x)).numpy()
    (theirs,) = oracle.theirs(x)
    scale = np.abs(theirs).max()  # without trained statistics anything from 1e-3 to 1e6
    np.testing.assert_allclose(ours / scale, theirs / scale, 1e-4, 1e-5)
    export(model, oracle.path, (3, 224, 224), batch=1)
    np.testing.assert_allclose(oracle.theirs(x)[0] / scale, theirs / scale, 1e-4, 1e-5)
