"""Exported files against ONNX Runtime and against themselves, loaded again."""

import subprocess
import sys

import numpy as np
import pytest

from architectures import lenet
from minidl import Function, Tensor, manual_seed, nn, ops, random
from minidl.tensor import no_grad

onnx = pytest.importorskip("onnx")
from minidl.onnx import OnnxError, emitters, export, load  # noqa: E402
from minidl.onnx.trace import evaluating, trace  # noqa: E402


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Lambda(nn.Module):
    """A model of one function, with parameters or submodules to go with it."""

    def __init__(self, function, **state):
        super().__init__()
        self.function = function
        for name, value in state.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, np.ndarray) else value)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def batch_norm(channels):
    layer = nn.BatchNorm2d(channels)
    for i, t in enumerate((layer.weight, layer.bias, layer.running_mean)):
        t.copy_(normal(channels, seed=i))
    layer.running_var.copy_(np.abs(normal(channels, seed=3)) + 0.5)
    return layer


class Inception(nn.Module):
    """Branches joined; in training an auxiliary head as well, as in GoogLeNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.4))
        self.one = nn.Conv2d(4, 3, 1)
        self.three = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 5, 3, padding=1))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 2, 1))
        self.reduce = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Sequential(nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(10, 4))
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))

    def forward(self, x):
        x = self.stem(x)
        y = ops.concatenate([branch(x) for branch in (self.one, self.three, self.pooled)], axis=1)
        logits = self.head(self.reduce(ops.relu(y)))
        return (logits, self.auxiliary(x)) if self.training else logits


class Residual(nn.Module):
    """An identity shortcut, then one of option A: every second pixel, new channels of zeros."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, 3, 3, 1, 1, bias=False), nn.Conv2d(3, 7, 3, 2, 1, bias=False)]
        )
        self.norms = nn.ModuleList([batch_norm(3), batch_norm(7)])

    def forward(self, x):
        x = ops.relu(self.norms[0](self.convs[0](x)) + x)
        shortcut = ops.pad(x[:, :, ::2, ::2], ((0, 0), (2, 2), (0, 0), (0, 0)))
        return ops.relu(self.norms[1](self.convs[1](x)) + shortcut)


ADAPTIVE = np.repeat(np.eye(3, dtype=np.float32), 2, axis=1) / 2
PICK = np.array([[2, 0], [1, 1], [0, 2]])
IMAGE = (3, 8, 8)
MODELS = {
    "lenet-modern": (lambda: lenet.build(variant="modern"), (1, 32, 32)),
    "lenet-1998": (lambda: lenet.build(variant="1998"), (1, 32, 32)),
    "inception": (Inception, IMAGE),
    "residual": (Residual, IMAGE),
    "nin": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(), nn.GlobalAvgPool2d(), nn.Flatten(),
        ), IMAGE,
    ),
    "lrn": (
        lambda: nn.Sequential(
            nn.LocalResponseNorm(5, 0.5, 0.75, 2.0), nn.LocalResponseNorm(3, 0.2, 0.5, 1.0, False)
        ), (7, 4, 4),
    ),
    "lrn-even": (
        lambda: nn.Sequential(
            nn.LocalResponseNorm(4, 0.5, 0.75, 2.0), nn.LocalResponseNorm(2, 0.2, 0.5, 1.0, False)
        ), (7, 4, 4),
    ),
    "max-pool": (
        lambda: Lambda(lambda m, x: (
            ops.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            ops.max_pool2d(x, (2, 3), (3, 2), (1, 0, 1, 1), ceil_mode=True),
            ops.max_pool2d(x, 3, 2, (1, 0, 0, 1), 2, ceil_mode=True),
        )), (3, 7, 10),
    ),
    "avg-pool": (
        lambda: Lambda(lambda m, x: tuple(
            ops.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad)
            for kernel, stride, padding in ((3, 2, 1), ((2, 3), (3, 2), (1, 0, 1, 1)), (2, None, 0))
            for ceil_mode in (False, True)
            for count_include_pad in (False, True)
        )), (3, 7, 10),
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=(2, 0, 1, 3), groups=2),
            nn.Conv2d(6, 6, (2, 3), stride=(1, 2), dilation=(2, 1), groups=6, bias=False),
        ), (4, 9, 9),
    ),
    "conv-transpose": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=3, padding=(1, 0), output_padding=(2, 1), groups=2),
            nn.ConvTranspose2d(6, 2, (2, 3), padding=(0, 1, 1, 0), dilation=2, bias=False),
        ), (4, 5, 4),
    ),
    "elementwise": (
        lambda: Lambda(
            lambda m, x: (
                ops.exp(-x) - ops.log(abs(x) + 1.0) / ops.sqrt(x * x + 0.5),
                ops.tanh(x) * ops.sigmoid(m.w) + (x * x + 1.0) ** m.w,
                (2.0 - x) ** 2 + (x * x + 0.1) ** -0.5,
                ops.maximum(x, m.w) - ops.minimum(x, 0.3),
                ops.clip(x, -0.5, 0.7) + ops.clip(x, min=0.1) + ops.clip(x, max=0.2),
                ops.bias_relu(x, m.b) + x.astype(np.float64).astype(np.float32),
            ), w=normal(3, 1, 1), b=normal(3, seed=1),
        ), (3, 4, 5),
    ),
    "softmax": (
        lambda: Lambda(lambda m, x: (ops.softmax(x, 1), ops.log_softmax(x))), (3, 4, 5),
    ),
    "reductions": (
        lambda: Lambda(lambda m, x: (
            x.sum(axis=(1, 3)), x.mean(axis=2, keepdims=True), x.max(axis=(2, 3)), x.sum(axis=0),
            x.logsumexp(axis=1), x.var(axis=(2, 3)), x.max(), x.max(axis=-1, keepdims=True),
        )), (3, 4, 5),
    ),
    "products": (
        lambda: Lambda(
            lambda m, x: (
                ops.matmul(ops.matmul(Tensor(ADAPTIVE), x), Tensor(ADAPTIVE.T)),
                ops.linear(x, m.w, m.b), x @ m.v, ops.linear(x.flatten(1), m.u),
                x @ x.transpose(0, 1, 3, 2), ops.linear(x, m.v.reshape(1, 6)),
            ),
            w=normal(5, 6), b=normal(5, seed=1), v=normal(6, seed=2), u=normal(4, 108, seed=3),
        ), (3, 6, 6),
    ),
    "shapes": (
        lambda: Lambda(
            lambda m, x: (
                x.reshape(x.shape[0], 1, -1), x.reshape(-1, 5), x.reshape(3, -1), x.flatten(2),
                x.reshape(x.shape[0] * 3, 4, 5), x.reshape(1, x.shape[0], 60),
                x.transpose(0, 2, 3, 1), ops.stack([x, x], 1),
                ops.broadcast_to(x[:, :1], x.shape), ops.broadcast_to(m.w, (3, 2, 4)),
                ops.pad(x, ((0, 0), (0, 1), (2, 0), (1, 1)), 1.5),
            ), w=normal(2, 1),
        ), (3, 4, 5),
    ),
    "indices": (
        lambda: Lambda(
            lambda m, x: (
                x[:, 1], x[:, -1, ..., None, 2:], x[..., ::-1], x[:, :, 3:0:-2, -3:-1],
                x[:, None, :, 1, None], x[0], x[-1:], x[1:], x[:, PICK], x[:], x[:, :, [3, 0]],
                m.w[PICK] * x[:, :1, :3, :2], x[::-1],
            ), w=normal(3),
        ), (3, 4, 5),
    ),
    "two-inputs": (
        lambda: Lambda(lambda m, a, b: ops.concatenate([a * 2.0, b], 1) @ m.w, w=normal(5, 2)),
        [(3,), (2,)],
    ),
    "identity": (lambda: Lambda(lambda m, x: (x, x, x + 1.0, m.w * 2.0), w=normal(2)), (3,)),
}  # fmt: skip


def model_of(name):
    build, shape = MODELS[name]
    manual_seed(0)
    model = build().eval()
    return model, shape, shape if isinstance(shape, list) else [shape]


def outputs_of(model, *arrays):
    with no_grad():
        result = model(*map(Tensor, arrays))
    return [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_onnx_runtime(oracle, name):
    model, shape, shapes = model_of(name)
    export(model, oracle.path, shape)
    loaded = load(oracle.path)
    # Batches that the export has not seen, and one that it has.
    for batch in (1, 3, 5):
        if name == "indices" and batch == 1:
            continue  # x[1:] is empty there
        arrays = [normal(batch, *s, seed=batch) for s in shapes]
        expected = outputs_of(model, *arrays)
        theirs = oracle.theirs(*arrays)
        ours = outputs_of(loaded, *arrays)
        assert len(expected) == len(theirs) == len(ours)
        for a, b, c in zip(expected, theirs, ours, strict=True):
            assert a.dtype == b.dtype == c.dtype and a.shape == b.shape == c.shape
            np.testing.assert_allclose(b, a, 1e-4, 1e-4)
            np.testing.assert_allclose(c, a, 1e-5, 1e-5)


def test_every_emitter_is_covered():
    used = set()
    for name in MODELS:
        model, _, shapes = model_of(name)
        with evaluating(model):
            run = trace(model, tuple(Tensor(normal(2, *s)) for s in shapes))
        used |= {type(call.function) for call in run.calls}
    assert used >= set(emitters.EMITTERS)


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 21, 24, onnx.defs.onnx_opset_version()])
@pytest.mark.parametrize("name", ["inception", "reductions", "shapes", "residual"])
def test_opsets(oracle, name, opset):
    model, shape, shapes = model_of(name)
    export(model, oracle.path, shape, opset=opset)
    assert onnx.load(oracle.path).opset_import[0].version == opset
    x = normal(3, *shapes[0])
    for a, b, c in zip(
        outputs_of(model, x), oracle.theirs(x), outputs_of(load(oracle.path), x), strict=True
    ):
        np.testing.assert_allclose(b, a, 1e-4, 1e-4)
        np.testing.assert_allclose(c, a, 1e-5, 1e-5)


@pytest.mark.parametrize("name", ["lenet-1998", "inception", "residual"])
def test_parameters_and_buffers_keep_their_names(tmp_path, name):
    model, shape, shapes = model_of(name)
    export(model, tmp_path / "a.onnx", shape)
    loaded = load(tmp_path / "a.onnx")
    used = {n: p for n, p in model.named_parameters() if not n.startswith("auxiliary")}
    assert dict(loaded.named_parameters()).keys() == used.keys()
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("auxiliary") and not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(state[key], value)
    # Both learn alike: the gradients are the same.
    x = normal(3, *shapes[0])
    for m in (model, loaded):
        (m(Tensor(x)) ** 2).mean().backward()
    for key, p in loaded.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), used[key].grad.numpy(), 1e-4, 1e-4)
    export(loaded, tmp_path / "b.onnx", shape)
    again = load(tmp_path / "b.onnx")
    assert dict(again.named_parameters()).keys() == used.keys()
    np.testing.assert_array_equal(*(outputs_of(m, x)[0] for m in (loaded, again)))


def test_float64(oracle):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(np.float64)
    export(model, oracle.path, (4,))
    x = normal(3, 4).astype(np.float64)
    expected = outputs_of(model, x)[0]
    assert expected.dtype == np.float64
    np.testing.assert_allclose(oracle.theirs(x)[0], expected, 1e-12)
    np.testing.assert_array_equal(outputs_of(load(oracle.path), x)[0], expected)


def test_names_and_declared_shapes(tmp_path):
    model, shape, _ = model_of("two-inputs")
    path = tmp_path / "deep" / "model.onnx"
    export(model, path, shape, input_names=["a", "b"], output_names="c")
    graph = onnx.load(path).graph
    sizes = [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*graph.input, *graph.output)
    ]
    assert sizes == [("a", ["batch", 3]), ("b", ["batch", 2]), ("c", ["batch", 2])]
    assert load(path).input_names == ("a", "b")
    export(model, path, shape, batch=4)
    graph = onnx.load(path).graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["input_0", "input_1", "output"]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    with pytest.raises(ValueError, match=r"input 'input_0' must have 2 axes of sizes \(4, 3\)"):
        load(path)(Tensor(normal(2, 3)), Tensor(normal(2, 2)))


def test_model_and_random_state_stay_as_they_were(tmp_path):
    model = Inception()
    model.stem.eval()
    modes = [m.training for m in model.modules()]
    values = {name: a.copy() for name, a in model.state_dict().items()}
    state = random.get_state()
    export(model, tmp_path / "model.onnx", IMAGE)
    with pytest.raises(ValueError, match="does not run"):
        export(model, tmp_path / "model.onnx", (4, 8, 8))
    assert [m.training for m in model.modules()] == modes
    assert random.get_state() == state
    assert all((a == values[name]).all() for name, a in model.state_dict().items())


def test_dead_ends_are_left_out(tmp_path):
    def function(m, x):
        ops.where(x.numpy() > 0, x, 0.0)  # no ONNX form, but not needed either
        return ops.tanh(x).detach() * 2.0

    export(Lambda(function, w=normal(2)), tmp_path / "model.onnx", (3,))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [n.op_type for n in graph.node] == ["Tanh", "Mul"] and len(graph.initializer) == 1


class Cube(Function):
    def forward(self, x):
        return x**3

    def backward(self, grad):
        return grad * 3.0 * self.inputs[0] ** 2


def modified(m, x):
    y = x * 2.0
    y.copy_(y * 3.0)
    return y + 1.0


def through_switches(m, x):
    y, switches = ops.max_pool2d(x, 2, return_switches=True)
    return ops.max_unpool2d(y, switches, x.shape[2:])


def unlike(m, x):
    return x * 2.0 if x.numpy().sum() > 0 else ops.tanh(x)


def rows(x):
    """A constant as long as the batch."""
    return Tensor(np.zeros((x.shape[0], 1, 4, 4), np.float32))


REFUSED = [
    (lambda m, x: Cube()(x), "Cube has no ONNX form"),
    (lambda m, x: ops.where(x.numpy() > 0, x, 0.0), "Where has no ONNX form"),
    (lambda m, x: ops.dropout(x, 0.5), "Dropout has no ONNX form"),
    (through_switches, "MaxUnpool2d has no ONNX form"),
    (lambda m, x: ops.max_pool2d(x, 2, return_switches=True)[1] + 1, "switches"),
    (lambda m, x: ops.batch_norm(x, m.w, m.w, Tensor(m.w.data), Tensor(m.w.data), True),
     "BatchNormTrain has no ONNX form"),
    (modified, "modified in place"),
    (lambda m, x: x * float(x.numpy().mean()), "changes with the input"),
    (lambda m, x: Tensor(x.numpy() * 2) + x, "changes its shape with the batch"),
    (lambda m, x: ops.concatenate([x, rows(x)], 1), "changes its shape with the batch"),
    (lambda m, x: x.mean(axis=0), "changes with the input"),
    (lambda m, x: x.transpose(1, 0, 2, 3)[0, : x.shape[0] - 1], "changes with the input"),
    (lambda m, x: ops.softmax(x, x.shape[0] - 1), "a setting of Softmax changes"),
    (lambda m, x: ops.broadcast_to(x[:1], x.shape), "axis 0 is repeated"),
    (lambda m, x: x.reshape({2: 4, 3: 12}[x.shape[0]], -1), "more than one of its sizes"),
    (lambda m, x: x[True], "boolean index"),
    (lambda m, x: x[:, np.array([True, False])], "boolean index"),
    (lambda m, x: x[:, [0, 1], [1, 2]], "only beside whole slices"),
    (lambda m, x: x[:, [0, 1], 1], "only beside whole slices"),
    (lambda m, x: x[:, 1:1], "selects nothing"),
    (lambda m, x: x.astype(np.float64) * m.w[0], "one dtype, got float64, float32"),
    (unlike, "other operations"),
    (lambda m, x: {"y": x}, "must return a Tensor or a tuple of them, got dict"),
    (lambda m, x: (), "must return a Tensor"),
    (lambda m, x: x @ m.w, "input_shape: the model does not run on"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "words"), REFUSED)
def test_refused(tmp_path, function, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=words):
        export(Lambda(function, w=normal(2)), path, (2, 4, 4))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_fixed_batch_may_show(oracle):
    model = Lambda(
        lambda m, x: ops.concatenate([x.mean(axis=0) + x, rows(x)], 1)[: x.shape[0] - 1]
    )
    export(model, oracle.path, (2, 4, 4), batch=4)
    x = normal(4, 2, 4, 4)
    expected = outputs_of(model, x)[0]
    np.testing.assert_allclose(oracle.theirs(x)[0], expected, 1e-5, 1e-5)
    np.testing.assert_allclose(outputs_of(load(oracle.path), x)[0], expected, 1e-5, 1e-5)


def test_arguments(tmp_path):
    path = tmp_path / "model.onnx"
    model = nn.Linear(3, 2)
    cases = [
        (lambda: export(len, path, (3,)), TypeError, "model must be a Module"),
        (lambda: export(model, path, 3), ValueError, "input_shape must be"),
        (lambda: export(model, path, (-3,)), ValueError, "input_shape must be"),
        (lambda: export(model, path, ("a",)), ValueError, "input_shape must be"),
        (lambda: export(model, path, (4,)), ValueError, "input_shape: .* does not run"),
        (lambda: export(model, path, [(3,), (3,)]), ValueError, "input_shape: .* does not run"),
        (lambda: export(model, path, (3,), opset=12), ValueError, "opset must be from 13"),
        (lambda: export(model, path, (3,), opset=99), ValueError, "opset must be from 13"),
        (lambda: export(model, path, (3,), opset="17"), ValueError, "opset must be an int"),
        (lambda: export(model, path, (3,), batch=0), ValueError, "batch must be"),
        (lambda: export(model, path, (3,), batch="all"), ValueError, "batch must be"),
        (lambda: export(model, path, (3,), input_names=[]), ValueError, "input_names must be 1"),
        (lambda: export(model, path, (3,), output_names=["a", "b"]), ValueError, "output_names"),
        (lambda: export(model, path, (3,), input_names="weight"), ValueError, "'weight' is taken"),
        (lambda: export(model, path, (3,), output_names="input"), ValueError, "'input' is taken"),
        (lambda: export(nn.Linear(3, 2).to(np.float16), path, (3,)), OnnxError, "float16"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()
    assert not path.exists()


def test_absence_of_onnx_is_one_line():
    code = "import sys; sys.modules['onnx'] = None; import minidl; import minidl.onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last == (
        "ImportError: minidl.onnx needs the onnx package: pip install -e '.[onnx]'"
    )
