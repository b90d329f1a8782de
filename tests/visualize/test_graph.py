"""The graph of models and expressions: what it holds, as text, and as a picture."""

import sys

import numpy as np
import pytest

import minidl
from minidl import Function, Tensor, grad, nn, no_grad, ops, random
from minidl.visualize import graph_picture
from minidl.visualize.graph import capture, render, text


def leaf(*shape, dtype=np.float64):
    return Tensor(np.full(shape, 0.5, dtype), requires_grad=True)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.norm(self.conv(x)).relu())


def network():
    return nn.Sequential({"block": Residual(), "flat": nn.Flatten(), "head": nn.Linear(32, 3)})


IMAGES = np.random.default_rng(0).random((2, 2, 4, 4), np.float32)


def operation(graph, name):
    (node,) = [node for node in graph.operations if node.name == name]
    return node


def test_a_model_with_its_modules_and_parameters():
    model = network()
    graph = capture(model, IMAGES)
    names = [node.name for node in graph.operations]
    assert names == [
        "Conv2d", "BatchNormTrain", "ReLU", "Dropout", "Add", "Reshape", "Linear",
    ]  # fmt: skip
    assert [node.module for node in graph.operations] == [
        "block.conv", "block.norm", "block", "block.drop", "block", "flat", "head",
    ]  # fmt: skip
    leaves = {node.name: node.kind for node in graph.nodes if node.kind != "operation"}
    assert leaves == {"input": "input"} | {n: "parameter" for n, _ in model.named_parameters()}
    add = operation(graph, "Add")
    assert [graph.nodes[number].name for number, _ in add.sources] == ["input", "Dropout"]
    assert graph.outputs == {"output": (operation(graph, "Linear").number, 0)}
    assert graph.parameters == sum(p.size for p in model.parameters())
    assert graph.parameter_bytes == 4 * graph.parameters


def test_every_source_stands_before_its_reader():
    graph = capture(network(), IMAGES, backward=True)
    for node in graph.nodes:
        assert graph.nodes[node.number] is node
        assert all(number < node.number for number, _ in node.sources)


def test_saved_memory_is_counted_once():
    x = leaf(3, 4)
    y = x.exp()
    z = y * y.tanh()
    graph = capture(z)
    by_name = {node.name: node for node in graph.operations}
    assert [s.what for s in by_name["Exp"].saved] == ["output 0"]
    assert by_name["Exp"].saved_bytes == 96
    mul = by_name["Mul"]
    assert [s.owner for s in mul.saved] == [by_name["Exp"].number, by_name["Tanh"].number]
    assert mul.saved_bytes == 0
    assert graph.saved_bytes == 2 * 96
    assert "input 0 (see #1)" in graph.text()


def test_leaves_that_require_grad_are_not_counted_but_data_is():
    weight, data = leaf(4, 2), Tensor(np.ones((3, 4)))
    graph = capture(data @ weight)
    assert graph.saved_bytes == data.data.nbytes
    assert [(node.kind, node.name) for node in graph.nodes[:2]] == [
        ("constant", "constant"), ("leaf", "leaf 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "expression",
    [
        lambda y, w: y * y,  # kept twice by one node
        lambda y, w: (y[:1] * y[:1]).sum() + (y * y).sum(),  # views and what they are views of
        lambda y, w: (y * y).sum() + (y[:1] * y[:1]).sum(),
        lambda y, w: y[:1] * y[5:6],  # a view keeps all of its array
        lambda y, w: ops.broadcast_to(y, (9, 9, 10, 10)) ** 2,
        lambda y, w: y @ w.transpose(),  # not the weight, nor a view of it
    ],
)
def test_views_are_counted_as_the_memory_that_they_keep(expression):
    x, weight = leaf(10, 10), leaf(4, 10)
    with minidl.profile() as profile:
        y = x + x  # keeps nothing
        z = expression(y, weight)
        assert profile.peak_saved_bytes == 800
    assert capture(z).saved_bytes == 800


def test_buffers_of_nodes():
    x = Tensor(IMAGES, requires_grad=True)
    graph = capture(ops.local_response_norm(x, 3))
    assert [s.what for s in graph.operations[0].saved] == ["buffer scale"]
    assert graph.saved_bytes == IMAGES.nbytes
    graph = capture(nn.BatchNorm2d(2), x)
    kept = ["buffer mean", "buffer inv_std"]
    assert [s.what for s in graph.operations[0].saved] == kept and graph.saved_bytes == 2 * 2 * 4


def test_a_shared_node_appears_once():
    x = leaf(2)
    y = x * x
    graph = capture([y + y, y.exp()])
    assert [node.name for node in graph.operations].count("Mul") == 1
    assert set(graph.outputs) == {"output 0", "output 1"}
    assert operation(graph, "Mul").sources == ((0, 0), (0, 0))


def test_gradients_are_graphs_too():
    x = leaf(3)
    (dx,) = grad((x**3).sum(), x, create_graph=True)
    graph = capture(dx)
    assert len(graph.operations) >= 2
    (dxx,) = grad(dx.sum(), x, create_graph=True)
    assert len(capture(dxx).operations) > 1


def test_backward_of_a_model():
    model = network()
    labels = np.array([0, 2])
    graph = capture(model, IMAGES, loss=lambda out: ops.cross_entropy(out, labels), backward=True)
    gradients = {f"gradient of {name}" for name, _ in model.named_parameters()}
    assert set(graph.outputs) == {"loss"} | gradients
    for name, parameter in model.named_parameters():
        number, index = graph.outputs[f"gradient of {name}"]
        assert graph.nodes[number].backward
        assert graph.nodes[number].outputs[index] == (parameter.shape, "float32")
    weights = [n for n in graph.operations if n.name == "Conv2dWeightGrad"]
    assert [node.module for node in weights] == ["block.conv"]
    forward = [node.backward for node in graph.operations if node.name != "Add"]
    assert forward == sorted(forward)


def test_what_forward_kept_is_found_again_in_backward():
    x = Tensor(IMAGES, requires_grad=True)
    graph = capture(lambda t: ops.max_pool2d(t, 2) ** 2, x, backward=True)
    pool, unpool = operation(graph, "MaxPool2d"), operation(graph, "MaxPool2dTranspose")
    assert unpool.sources[1] == (pool.number, 1)


def test_a_function_of_tensors():
    a, b = leaf(2, 3), leaf(3)
    graph = capture(lambda a, b: (a * b).sum(), a, b)
    names = [node.name for node in graph.nodes if node.kind == "input"]
    assert names == ["input 0", "input 1"]
    graph = capture(lambda a, b: (a * b).sum(), a, b, backward=True)
    assert set(graph.outputs) == {"output", "gradient of input 0", "gradient of input 1"}


def test_parameters_are_named_where_the_model_is_given():
    model = nn.Linear(3, 2)
    out = model(Tensor(np.ones((1, 3), np.float32)))
    names = {node.name for node in capture(out, model=model).nodes}
    assert {"weight", "bias"} <= names
    assert {"leaf 1", "leaf 2"} <= {node.name for node in capture(out).nodes}


def test_numbers_are_shown():
    assert "0.5" in {node.name for node in capture(leaf(2) * 0.5).nodes}


def test_the_model_is_left_as_it_was():
    model = network()
    before = {name: value.copy() for name, value in model.state_dict().items()}
    state = random.get_state()
    capture(model, IMAGES, backward=True)
    assert random.get_state() == state
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_that_is_called_twice():
    layer = nn.Linear(2, 2)
    graph = capture(nn.Sequential(layer, nn.ReLU(), layer), np.ones((1, 2), np.float32))
    linear = [node for node in graph.operations if node.name == "Linear"]
    assert [(node.module, node.call) for node in linear] == [("0", 0), ("0", 1)]
    assert sum(node.kind == "parameter" for node in graph.nodes) == 2


class Split(Function):
    def forward(self, x):
        return x[:1].copy(), x[1:].copy()


def test_outputs_are_told_apart():
    first, second = Split()(leaf(4))
    graph = capture(second * 2.0)
    assert graph.operations[-1].sources[0] == (graph.operations[0].number, 1)
    assert "#1[1]" in graph.text()


def test_text():
    lines = text(network(), IMAGES).splitlines()
    assert lines[0].split()[:4] == ["operation", "module", "from", "output"]
    assert lines[2].split()[:3] == ["#1", "Conv2d", "block.conv"]
    assert "block.conv.weight" in lines[2] and "2x2x4x4 float32" in lines[2]
    assert lines[-1].startswith("kept for backward") and "KiB" in lines[-1]


def test_a_graph_of_ten_thousand_nodes_has_a_text():
    y = leaf()
    for _ in range(10_000):
        y = y + 1.0
    assert "operations         10000" in text(y)


def test_a_leaf_alone():
    graph = capture(leaf(2, 3))
    assert [(n.kind, n.outputs) for n in graph.nodes] == [("leaf", (((2, 3), "float64"),))]
    assert "output is leaf 1" in graph.text() and not graph.operations


def test_mistakes():
    x = leaf(2)
    with pytest.raises(ValueError, match="no recorded operation"):
        capture(Tensor([1.0]))
    with no_grad():
        with pytest.raises(ValueError, match="no recorded operation"):
            capture(x * 2)
        assert capture(lambda t: t * 2, x).operations  # a callable is run with a graph
    with pytest.raises(ValueError, match="callable"):
        capture(x * 2, backward=True)
    with pytest.raises(TypeError, match="of must be"):
        capture(3)
    with pytest.raises(TypeError, match="results must be Tensors"):
        capture(lambda t: "text", x)
    with pytest.raises(ValueError, match="requires grad, got none"):
        capture(lambda t: t * leaf(2), Tensor([1.0, 2.0]), backward=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="freed"):
        capture(y)


# -- pictures --------------------------------------------------------------------------------------


def test_source_has_nodes_edges_and_frames():
    pytest.importorskip("graphviz")
    source = graph_picture.graph_source(capture(network(), IMAGES, backward=True)).source
    assert "cluster_block" in source and "cluster_gradients" in source
    assert "block.conv.weight" in source and "keeps 256 B" in source
    assert "gradient of head.bias" in source


@pytest.mark.parametrize(
    "suffix, start", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_pictures(tmp_path, suffix, start):
    graphviz = pytest.importorskip("graphviz")
    try:
        graphviz.version()
    except graphviz.ExecutableNotFound:
        pytest.skip("dot is not installed")
    path = tmp_path / "new" / f"graph.{suffix}"
    render(network(), IMAGES, path=path)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_source_needs_no_dot(tmp_path, monkeypatch):
    pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = capture(leaf(2) * 2.0)
    render(graph, path=tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text().startswith("digraph")
    with pytest.raises(RuntimeError, match="apt install graphviz"):
        render(graph, path=tmp_path / "graph.svg")
    assert not (tmp_path / "graph.svg").exists()


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphviz", None)
    graph = capture(leaf(2) * 2.0)
    assert graph.text()
    with pytest.raises(ImportError, match=r"\.\[graph\]"):
        render(graph, path=tmp_path / "graph.svg")


def test_wrong_ending(tmp_path):
    pytest.importorskip("graphviz")
    with pytest.raises(ValueError, match=r"\.jpg"):
        render(leaf(2) * 2.0, path=tmp_path / "graph.jpg")
