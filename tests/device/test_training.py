"""Whole networks on the device: a step of each as the CPU makes it, runs that are saved and go on.

In float64, where a difference of rounding cannot tip a maximum or a rectifier over.
"""

import gc
import json

import numpy as np
import pytest

from architectures import alexnet, googlenet, lenet, nin, resnet, vgg, zfnet
from minidl import Tensor, checkpoint, cli, data, manual_seed, nn, no_grad, ops, optim, weights
from minidl.amp import GradScaler, autocast
from minidl.evaluation import evaluate, probabilities
from minidl.gradcheck import move_biases
from minidl.summary import summary

# As small as the networks get with every layer alive: (build, channels, image side).
NETWORKS = {
    "lenet, modern": (lenet.lenet_modern, 1, 32),
    "lenet, 1998": (lenet.lenet_1998, 1, 32),
    "alexnet, two towers": (lambda: alexnet.AlexNet(10, width=1 / 16, grid=1), 3, 67),
    "alexnet, one tower": (lambda: alexnet.AlexNet(10, towers=1, width=1 / 16, grid=1), 3, 63),
    "zfnet": (lambda: zfnet.build(10, full=False), 3, 64),
    "vgg": (lambda: vgg.VGG("A-LRN", 10, width=1 / 16, grid=1), 3, 32),
    "vgg, normalised": (lambda: vgg.VGG("A", 10, True, width=1 / 16, grid=1), 3, 64),
    "googlenet": (lambda: googlenet.GoogLeNet(10, width=1 / 16, adaptive=True), 3, 48),
    "resnet": (lambda: resnet.ResNet(20, 10, width=1 / 4), 3, 16),
    "resnet, bottlenecks": (lambda: resnet.ResNet(50, 10, "1.5", width=1 / 16), 3, 32),
    "resnet, pre-activated": (lambda: resnet.ResNet(20, 10, "2", shortcut="A", width=1 / 4), 3, 16),
    "nin": (lambda: nin.NIN(10, width=1 / 16), 3, 32),
}
OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, 0.1, 0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda parameters: optim.AdamW(parameters, 0.01),
}


def take_steps(name, optimizer, device, count, dtype=np.float64):
    """(losses, the state after `count` steps) of a network on `device`."""
    build, channels, side = NETWORKS[name]
    manual_seed(0)
    model = build().to(dtype).to(device).train()
    move_biases(model)
    assert model.device == device
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, 2)
    losses = []
    for _ in range(count):
        images = Tensor(draw.standard_normal((2, channels, side, side)).astype(dtype)).to(device)
        optimizer.zero_grad()
        outputs = model(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(ops.cross_entropy(logits, labels) for logits in outputs)
        loss.backward()
        assert all(p.grad.device == device for p in model.parameters())
        optim.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        if name == "zfnet":
            zfnet.renormalize_filters(model, limit=0.05)
        losses.append(loss.item())
    first = next(p for p in model.parameters() if p.ndim == 4)
    assert abs(first.grad.cpu().numpy()).max() > 1e-9, "no gradient comes through"
    return losses, model.state_dict()


def assert_same_steps(name, optimizer, tolerance, **options):
    losses, state = take_steps(name, optimizer, "cpu", **options)
    losses_there, state_there = take_steps(name, optimizer, "cuda", **options)
    np.testing.assert_allclose(losses_there, losses, rtol=tolerance)
    for key, values in state.items():
        assert state_there[key].dtype == values.dtype
        np.testing.assert_allclose(state_there[key], values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_a_network(gpu, name):
    assert_same_steps(name, "sgd", 1e-8, count=1)


@pytest.mark.parametrize("name", ["vgg, normalised", "googlenet", "resnet"])
def test_inference_of_a_network(gpu, name):
    """Where convolutions take along what follows them."""
    build, channels, side = NETWORKS[name]
    manual_seed(0)
    model = build().to(np.float64).eval()
    images = Tensor(np.random.default_rng(0).standard_normal((2, channels, side, side)))
    with no_grad():
        expected = model(images).numpy()
        actual = model.to("cuda")(images.to("cuda"))
    assert actual.device == "cuda"
    np.testing.assert_allclose(actual.cpu().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer, tolerance", [("sgd", 1e-9), ("adamw", 1e-6)])
def test_steps_of_optimizers(gpu, optimizer, tolerance):
    """Adam divides by gradients, however small they are: hence its tolerance."""
    assert_same_steps("lenet, 1998", optimizer, tolerance, count=3)


def test_a_step_in_float32(gpu):
    assert_same_steps("lenet, modern", "sgd", 1e-5, count=2, dtype=np.float32)


def test_a_step_in_mixed_precision(gpu):
    """A last digit of float32 that differs may round to another float16: hence the tolerance."""
    with autocast():
        assert_same_steps("lenet, modern", "sgd", 2e-3, count=1, dtype=np.float32)


def test_the_scale_of_gradients_on_the_device(gpu):
    parameters = [Tensor(np.ones(2), requires_grad=True) for _ in range(2)]
    for parameter in parameters:
        parameter.data = parameter.to("cuda").detach()
    scaler = GradScaler(4.0)
    for value, usable in ((8.0, True), (np.inf, False), (np.nan, False)):
        for parameter, gradient in zip(parameters, (np.ones(2), np.full(2, value)), strict=True):
            parameter.grad = Tensor(gradient).to("cuda")
        assert scaler.unscale_(parameters) is usable
        if usable:
            assert parameters[1].grad.cpu().numpy().tolist() == [2, 2]
    assert scaler.factor == 1 and parameters[0].grad is None


# -- modules that move -----------------------------------------------------------------------------


def test_a_module_moves_with_its_state(gpu, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    kept = {name: values.copy() for name, values in model.state_dict().items()}
    parameters = list(model.parameters())
    assert model.device == "cpu" and nn.ReLU().device == "cpu"
    assert model.to("cuda") is model and model.device == "cuda"
    assert list(model.parameters()) == parameters
    assert all(t.device == "cuda" for t in (*model.parameters(), *model.buffers()))
    for name, values in model.state_dict().items():
        assert isinstance(values, np.ndarray)
        np.testing.assert_array_equal(values, kept[name])
    weights.save(tmp_path / "weights.safetensors", model)
    model.load_state_dict({name: values + 1 for name, values in kept.items()})
    assert model.device == "cuda" and model[1].bias.sum().item() == 2
    weights.load_into(model, tmp_path / "weights.safetensors")
    nn.init.xavier_normal_(nn.init.ones_(model[0].weight))
    assert "conv" in str(summary(model, (1, 5, 5))).lower()
    model.load_state_dict({n: Tensor(v).to("cuda") for n, v in kept.items()})
    assert model.to("cpu").device == "cpu"
    np.testing.assert_array_equal(model.state_dict()["0.weight"], kept["0.weight"])


def test_an_optimizer_follows_its_parameters(gpu):
    """Steps on the CPU, then on the device, then resumed from a saved state, as if all were one."""
    def step(parameter, optimizer):
        parameter.grad = Tensor(np.arange(3.0)).to(parameter.device)
        optimizer.step()

    for make in OPTIMIZERS.values():
        parameters = [Tensor(np.ones(3), requires_grad=True) for _ in range(2)]
        stays, moves = (make([p]) for p in parameters)
        for _ in range(3):
            step(parameters[0], stays)
        step(parameters[1], moves)
        parameters[1].data = parameters[1].to("cuda").detach()
        step(parameters[1], moves)
        resumed = make([parameters[1]])
        resumed.load_state_dict(moves.state_dict())
        step(parameters[1], resumed)
        np.testing.assert_allclose(
            parameters[1].detach().cpu().numpy(), parameters[0].detach().numpy(), rtol=1e-12
        )
        parameters[1].grad = Tensor(np.ones(3))
        with pytest.raises(ValueError, match="got cuda, cpu"):
            resumed.step()


def test_evaluation_moves_the_batches(gpu):
    manual_seed(0)
    model = lenet.lenet_modern()
    _, digits = data.bundled_digits()
    transform = lenet.recipe().eval_transform
    loader = data.DataLoader(digits.subset(np.arange(20)), 8, transform=transform)
    images = next(iter(loader))[0]
    results = []
    for device in ("cpu", "cuda"):
        model.to(device)
        result = evaluate(model, loader, lenet.recipe().loss)
        results.append([result.loss, result.correct, result.top5, probabilities(model, images)])
    np.testing.assert_allclose(results[1][:3], results[0][:3], rtol=1e-5)
    np.testing.assert_allclose(results[1][3], results[0][3], atol=1e-6)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch):
    train, test = data.bundled_digits()
    few = train.subset(np.arange(40)), test.subset(np.arange(24))
    monkeypatch.setattr(data, "bundled_digits", lambda: few)


def run(capsys, *arguments, architecture=lenet.ARCHITECTURE):
    status = cli.run(architecture, [str(a) for a in arguments])
    captured = capsys.readouterr()
    assert not status, captured.err
    return captured.out


def test_commands(gpu, few_digits, capsys, tmp_path):
    """A run on the device, resumed there, is the CPU's but for rounding; what follows agrees."""
    rows = {}
    for backend in ("auto", "cuda"):
        out = tmp_path / backend
        options = "--backend", backend, "--batch-size", 16, "--out", out
        run(capsys, "train", *options, "--epochs", 1)
        resume = "--backend", backend, "--resume", out, "--out", out, "--epochs", 2
        run(capsys, "train", *resume)
        rows[backend] = json.loads((out / "history.json").read_text())
    for here, there in zip(rows["auto"], rows["cuda"], strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)
        assert there["test_loss"] == pytest.approx(here["test_loss"], rel=1e-3)
    saved = tmp_path / "cuda" / "last.safetensors"
    assert checkpoint.load(saved).model["c1.weight"].shape == (6, 1, 5, 5)
    tested = [run(capsys, "evaluate", saved, "--backend", b) for b in ("auto", "cuda")]
    assert tested[0].split("loss")[0] == tested[1].split("loss")[0]
    from PIL import Image

    Image.fromarray(data.bundled_digits()[1].images[0, 0]).save(tmp_path / "digit.png")
    predict = "predict", saved, tmp_path / "digit.png", "--backend"
    here, there = (run(capsys, *predict, b).splitlines()[1:] for b in ("auto", "cuda"))
    assert [line.split()[0] for line in here] == [line.split()[0] for line in there]
    assert "agrees" in run(capsys, "gradcheck", "--variant", "1998", "--backend", "cuda")
    profile = "profile", "--batch-size", 2, "--steps", 1, "--backend", "cuda"
    assert "Conv2d" in run(capsys, *profile)
    pictures = tmp_path / "pictures"
    layer = "--layer", "relu1", "--top", 2, "--out", pictures
    run(capsys, "visualize", saved, tmp_path / "digit.png", *layer, "--backend", "cuda")
    assert len(list(pictures.iterdir())) == 5


# -- what only a GPU can show ----------------------------------------------------------------------


@pytest.mark.gpu
def test_lenet_learns(real_gpu, capsys, tmp_path):
    run(capsys, "train", "--backend", "cuda", "--epochs", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "history.json").read_text())
    assert rows[-1]["test_accuracy"] > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_two_runs_are_equal_to_the_bit(real_gpu, name):
    (losses, state), (again, state_again) = (
        take_steps(name, "sgd", "cuda", count=3, dtype=np.float32) for _ in range(2)
    )
    assert losses == again
    for key, values in state.items():
        np.testing.assert_array_equal(values, state_again[key], err_msg=key)


@pytest.mark.gpu
def test_steps_leave_no_memory_behind(real_gpu):
    """After the first steps the memory in use stays what it is for 1,000 more."""
    pool = real_gpu.get_default_memory_pool()
    manual_seed(0)
    model = lenet.lenet_modern().to("cuda")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    draw = np.random.default_rng(0)
    images = Tensor(draw.standard_normal((32, 1, 32, 32)).astype(np.float32)).to("cuda")
    labels = draw.integers(0, 10, 32)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            ops.cross_entropy(model(images), labels).backward()
            optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        return pool.used_bytes()

    before = steps(10)
    assert steps(1000) == before
