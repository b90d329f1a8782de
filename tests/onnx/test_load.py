"""Loading: what is refused and how, and what a loaded module can do."""

import copy

import numpy as np
import pytest

from minidl import Tensor, manual_seed, nn, ops, optim

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from minidl.onnx import OnnxError, export, load  # noqa: E402


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def info(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes, inputs, outputs, **arrays):
    """A graph; keyword arguments are its initializers."""
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    return helper.make_graph(nodes, "g", inputs, outputs, initializers)


IMAGE = normal(1, 2, 6, 6)
KERNEL = normal(3, 2, 3, 3)
SCALE = normal(2)


@pytest.mark.parametrize(
    ("op_type", "inputs", "settings", "words"),
    [
        ("Shape", [IMAGE], {}, "operator Shape is not supported"),
        ("LSTM", [IMAGE], {}, "operator LSTM is not supported"),
        ("Relu", [IMAGE], {"domain": "com.example"}, "domain 'com.example' is not supported"),
        ("Relu", [IMAGE], {"opset": 6}, "opset 6 is not supported, only 7 to"),
        ("Relu", [IMAGE], {"opset": 99}, "opset 99 is not supported"),
        ("Relu", [IMAGE], {"alpha": 1.0}, "alpha"),
        ("Relu", [IMAGE.astype(np.float16)], {}, "input 'x0'.*FLOAT16.*convert the file"),
        ("Relu", [IMAGE, IMAGE], {}, "not a valid graph"),
        ("Cast", [IMAGE], {"to": TensorProto.FLOAT16}, "'to'.*FLOAT16 is not supported"),
        ("Cast", [IMAGE], {"to": 1234}, "'to'.*1234 is not supported"),
        ("Conv", [IMAGE, KERNEL], {"auto_pad": "SOME"}, "auto_pad must be one of"),
        ("Conv", [IMAGE, KERNEL], {"strides": [1]}, r"strides \[1\] is that of 1 spatial axes"),
        ("Conv", [IMAGE, KERNEL], {"pads": [1] * 6}, r"pads .* is that of 3 spatial axes"),
        ("Conv", [IMAGE, KERNEL], {"pads": [-1, 0, 0, 0]}, "pads must be at least 0"),
        ("Conv", [IMAGE, KERNEL], {"dilations": [0, 1]}, "dilations must be at least 1"),
        ("Conv", [IMAGE, KERNEL], {"pads": [1] * 4, "auto_pad": "VALID"}, "exclude each other"),
        ("Conv", [IMAGE, KERNEL], {"strides": 2}, "strides"),
        ("MaxPool", [IMAGE], {"kernel_shape": [2, 2, 2]}, "of 3 spatial axes"),
        ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "ceil_mode": 2}, "ceil_mode must be 0 or 1"),
        ("AveragePool", [IMAGE], {"kernel_shape": [2]}, "of 1 spatial axes"),
        ("AveragePool", [IMAGE], {"kernel_shape": [2, 3], "pads": [0, 0, 2, 0]}, "below kernel"),
        ("BatchNormalization", [IMAGE] + [SCALE] * 4, {"training_mode": 1}, "training_mode"),
        ("BatchNormalization", [IMAGE] + [SCALE] * 4, {"spatial": 0, "opset": 7}, "spatial = 0"),
        ("BatchNormalization", [IMAGE] + [SCALE] * 4, {"outputs": 5, "opset": 9},
         "output 'y1' is not supported"),
        ("LRN", [IMAGE], {"size": 0}, "size must be positive"),
        ("Pad", [IMAGE, np.arange(8)], {"mode": "reflect"}, "mode 'reflect' is not supported"),
        ("Pad", [IMAGE], {"mode": "edge", "pads": [0] * 8, "opset": 7}, "mode 'edge'"),
        ("Dropout", [IMAGE], {"ratio": 1.5, "opset": 7}, "ratio must be in"),
        ("Constant", [], {"value_string": "a"}, r"attributes \['value_string'\] are not supported"),
    ],
)  # fmt: skip
def test_refused_by_name(oracle, op_type, inputs, settings, words):
    oracle.save(op_type, inputs, **settings)
    outputs = settings.get("outputs", 1)
    oracle.declare([np.zeros(1, np.float32)] * outputs)
    with pytest.raises(OnnxError, match=words) as caught:
        load(oracle.path)
    assert str(oracle.path) in str(caught.value)
    if "input 'x0'" not in str(caught.value) and "opset" not in words:
        assert op_type in str(caught.value)


@pytest.mark.parametrize(
    ("op_type", "inputs", "settings", "kind", "words"),
    [
        ("Conv", [IMAGE[0], KERNEL], {}, ValueError, "4 axes .* got rank 3"),
        ("ConvTranspose", [IMAGE[0], KERNEL], {}, ValueError, "got rank 3"),
        ("Conv", [IMAGE, KERNEL], {"kernel_shape": [2, 2]}, ValueError, "kernel_shape is"),
        ("Conv", [IMAGE, KERNEL], {"group": 2}, ValueError, "groups"),
        ("GlobalAveragePool", [IMAGE[0]], {}, ValueError, "got rank 3"),
        ("MaxPool", [IMAGE[0]], {"kernel_shape": [2, 2]}, ValueError, "got rank 3"),
        ("AveragePool", [IMAGE[0]], {"kernel_shape": [2, 2]}, ValueError, "got rank 3"),
        ("MatMul", [normal(2, 3), normal(2, 3)], {}, ValueError, "do not fit"),
        ("Add", [normal(2), normal(2).astype(np.float64)], {}, TypeError, "one dtype"),
        ("Div", [np.arange(3), np.arange(3)], {}, TypeError, "not of int64"),
        ("Pow", [np.arange(3), np.arange(3)], {}, TypeError, "not of int64"),
        ("Gemm", [normal(2, 2), normal(2, 2), normal(3, 2, 2)], {}, ValueError, "C of shape"),
        ("Gemm", [IMAGE, IMAGE], {}, ValueError, "must be matrices"),
        ("Concat", [normal(2, 3), normal(3, 2)], {"axis": 0}, ValueError, "dimension"),
        ("Flatten", [normal(2, 3)], {"axis": 3}, ValueError, "axis must lie"),
        ("Reshape", [normal(2, 3), np.array([4, 2])], {}, ValueError, "shape must hold 6"),
        ("Reshape", [normal(2), np.array([2, 0])], {}, ValueError, "keeps axis 1"),
        ("Squeeze", [normal(2, 3), np.array([0])], {}, ValueError, "must have size 1"),
        ("Unsqueeze", [normal(2), np.array([0, 0])], {}, ValueError, "axes must be distinct"),
        ("Gather", [normal(2), np.array([5])], {}, IndexError, "out of bounds"),
        ("Gather", [normal(2), np.array([0])], {"axis": 2}, ValueError, "axis one of"),
        ("Slice", [normal(2), *(np.array([v]) for v in (0, 1, 3))], {}, ValueError, "axes must"),
        ("Pad", [normal(2), np.array([1, 1, 1])], {}, ValueError, "two widths"),
        ("Pad", [normal(2), np.array([-2, -1])], {}, ValueError, "crop more"),
        ("Clip", [normal(2), normal(3)], {}, ValueError, "min must be a scalar"),
        ("Dropout", [normal(2), np.float32(0.5) + normal(1) * 0, np.array([True])], {},
         OnnxError, "training_mode is not supported"),
    ],
)  # fmt: skip
def test_errors_at_the_call_name_the_node(oracle, op_type, inputs, settings, kind, words):
    oracle.save(op_type, inputs, **settings)
    oracle.declare([normal(1)])
    with pytest.raises(kind, match=rf"node 'node0' \({op_type}\): .*{words}"):
        oracle.ours(*inputs)


def test_inputs_are_checked(oracle):
    node = helper.make_node("Add", ["a", "b"], ["y"])
    oracle.write(graph([node], [info("a", "n", 3), info("b", "n", 3)], [info("y", "n", 3)]))
    model = load(oracle.path)
    a = Tensor(normal(2, 3))
    assert model.input_names == ("a", "b") and model.output_names == ("y",)
    assert "nodes=1" in repr(model)
    cases = [
        ((a,), ValueError, "takes 2 inputs"),
        ((a, normal(2, 3)), TypeError, "input 'b' must be a Tensor, got ndarray"),
        ((a.astype(np.float64), a), TypeError, "input 'a' must be float32, got float64"),
        ((a, a[0]), ValueError, r"input 'b' must have 2 axes of sizes \('\?', 3\), got \(3,\)"),
        ((a, a[:, :2]), ValueError, "must have 2 axes"),
    ]
    for inputs, kind, words in cases:
        with pytest.raises(kind, match=words):
            model(*inputs)
    np.testing.assert_array_equal(model(a, a).numpy(), 2 * a.numpy())


def small_net(oracle):
    """Conv with a computed weight, batch norm, Clip, Dropout, Gemm; names that need care."""
    nodes = [
        helper.make_node("Mul", ["forward", "training"], ["w"]),
        helper.make_node("Conv", ["x", "w", "conv/bias:0"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "bn.scale", "bn.b", "mean", "var"], ["b"]),
        helper.make_node("Clip", ["b", "low", "high"], ["c"]),
        helper.make_node("Dropout", ["c", "ratio"], ["d", "unread_mask"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "fc"], ["y"], transB=1),
        helper.make_node("Softmax", ["y"], ["p"]),
    ]
    arrays = {
        "forward": KERNEL, "training": normal(3, 1, 1, 1, seed=1), "conv/bias:0": normal(3),
        "bn.scale": normal(3, seed=2), "bn.b": normal(3, seed=3), "mean": normal(3, seed=4),
        "var": np.abs(normal(3, seed=5)) + 1, "low": np.float32(-3), "high": np.float32(3),
        "ratio": np.float32(0.5), "fc": normal(4, 48, seed=6) * 0.1, "never_read": normal(2),
    }  # fmt: skip
    outputs = [info("p", "n", 4), info("y", "n", 4)]
    oracle.write(graph(nodes, [info("x", "n", 2, 6, 6)], outputs, **arrays))
    return load(oracle.path)


def test_a_loaded_model_learns(oracle):
    model = small_net(oracle)
    x = normal(8, 2, 6, 6, seed=7)
    labels = np.arange(8) % 4
    for ours, theirs in zip(oracle.ours(x), oracle.theirs(x), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5)
    trained = {name.rstrip("_") for name, _ in model.named_parameters()}
    assert trained == {"forward", "training", "conv_bias_0", "bn.scale", "bn.b", "fc"}
    assert {name for name, _ in model.named_buffers()} == {"mean", "var", "low", "high", "ratio"}
    assert model.training is False
    optimizer = optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(20):
        loss = ops.cross_entropy(model(Tensor(x))[1], labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach().numpy()))
    assert losses[-1] < losses[0] / 2
    other = small_net(oracle)
    assert (other(Tensor(x))[1].detach().numpy() != model(Tensor(x))[1].detach().numpy()).any()
    other.load_state_dict(model.state_dict())
    clone = copy.deepcopy(model)
    for twin in (other, clone):
        np.testing.assert_array_equal(
            twin(Tensor(x))[1].detach().numpy(), model(Tensor(x))[1].detach().numpy()
        )


def test_dropout_follows_the_mode(oracle):
    model = small_net(oracle)
    x = Tensor(normal(4, 2, 6, 6))
    still = model(x)[1].detach().numpy()
    model.train()
    manual_seed(1)
    dropped = model(x)[1].detach().numpy()
    assert (dropped != still).any() and (model(x)[1].detach().numpy() != dropped).any()
    manual_seed(1)
    np.testing.assert_array_equal(model(x)[1].detach().numpy(), dropped)
    model.eval()
    np.testing.assert_array_equal(model(x)[1].detach().numpy(), still)


def test_a_mask_that_is_read(oracle):
    x = normal(2, 3)
    oracle.save("Dropout", [x], 13, outputs=2)
    oracle.declare([x, x > 9])
    model = load(oracle.path)
    assert model(Tensor(x))[1].numpy().all()
    with pytest.raises(OnnxError, match="its mask is read"):
        model.train()(Tensor(x))


def test_another_dtype(oracle):
    model = small_net(oracle).to(np.float64)
    x = normal(2, 2, 6, 6)
    with pytest.raises(TypeError, match="input 'x' must be float64, got float32"):
        model(Tensor(x))
    y = model(Tensor(x.astype(np.float64)))[1]
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.detach().numpy(), oracle.theirs(x)[1], 1e-4, 1e-4)


def test_inputs_and_initializers_as_outputs(oracle):
    node = helper.make_node("Relu", ["x"], ["y"])
    outputs = [info("x", 2), info("k", 3), info("y", 2)]
    oracle.write(graph([node], [info("x", 2)], outputs, k=normal(3)))
    x = normal(2)
    for ours, expected in zip(oracle.ours(x), (x, normal(3), np.maximum(x, 0)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_names_that_nothing_makes(oracle):
    node = helper.make_node("Relu", ["z"], ["y"], name="late")
    oracle.write(graph([node], [info("x", 2)], [info("y", 2)]))
    with pytest.raises(OnnxError, match="z"):
        load(oracle.path)
    node = helper.make_node("Relu", ["x"], ["z"])
    oracle.write(graph([node], [info("x", 2)], [info("y", 2)]))
    with pytest.raises(OnnxError, match="output 'y'"):
        load(oracle.path)


def test_tensors_that_are_refused(oracle, tmp_path):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ends = [info("x", 2)], [info("y", 2)]
    oracle.write(graph([node], *ends, w=normal(2).astype(np.float16)))
    with pytest.raises(OnnxError, match="initializer 'w'.*FLOAT16"):
        load(oracle.path)
    proto = onnx.load(oracle.write(graph([node], *ends, w=normal(2000))))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    with pytest.raises(OnnxError, match="'w' lies in another file: external data"):
        load(tmp_path / "m.onnx")
    proto = onnx.load(oracle.write(graph([node], *ends, w=normal(2))))
    proto.graph.initializer[0].raw_data = b"abc"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError, match="w"):
        load(tmp_path / "m.onnx")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(normal(1), "w"), numpy_helper.from_array(np.array([0])), [2]
    )
    proto = onnx.load(oracle.write(graph([node], *ends)))
    proto.graph.sparse_initializer.append(sparse)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(OnnxError, match="'w': sparse"):
        load(tmp_path / "m.onnx")
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
    oracle.write(graph([node], [sequence], ends[1], w=normal(2)))
    with pytest.raises(OnnxError, match="input 'x': sequence_type is not supported"):
        load(oracle.path)


def test_damaged_files(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(path)
    for content in (b"", b"not a model", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(OnnxError, match="damaged, or not an ONNX file"):
            load(path)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    export(model, path, (1, 6, 6))
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        with pytest.raises(OnnxError):
            load(path)
    draw = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for position in draw.integers(0, len(content), 3):
            damaged[position] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load(path)  # a weight may have changed, which nothing can tell
        except OnnxError as error:
            assert str(path) in str(error)
