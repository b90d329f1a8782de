"""Recorded steps and inference: the numbers of the function itself, to the bit."""

import gc

import numpy as np
import pytest

from architectures import alexnet, googlenet, lenet, resnet
from kernels.cuda import recording
from kernels.cuda.recording import Recording
from minidl import Tensor, cli, data, manual_seed, nn, no_grad, ops, optim, random
from minidl.capture import Captured, CaptureError
from minidl.checkpoint import load as load_checkpoint
from minidl.recompute import checkpoint

# (build, shape of the images): ties of rectifiers and maxima, dropout, batch norm, several outputs.
NETWORKS = {
    "lenet": (lenet.lenet_modern, (1, 32, 32)),
    "alexnet": (lambda: alexnet.AlexNet(10, width=1 / 16, grid=1), (3, 67, 67)),
    "googlenet": (lambda: googlenet.GoogLeNet(10, width=1 / 16, adaptive=True), (3, 48, 48)),
    "resnet": (lambda: resnet.ResNet(20, 10, width=1 / 4), (3, 16, 16)),
}
BATCH = 4


class Training:
    """Steps of a network, of which forward and backward are captured, or not."""

    def __init__(self, name, captured, dtype=np.float32):
        build, self.shape = NETWORKS[name]
        self.dtype = dtype
        manual_seed(0)
        self.model = build().to(dtype).to("cuda").train()
        self.optimizer = optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.run = self.forward_backward
        if captured:
            self.run = Captured(self.forward_backward, self.model.parameters())
        self.draw = np.random.default_rng(1)

    def forward_backward(self, images, labels):
        loss = googlenet.loss(self.model, self.model(images), labels)
        loss.backward()
        return loss

    def batch(self):
        images = self.draw.standard_normal((BATCH, *self.shape)).astype(self.dtype)
        return images, self.draw.integers(0, 10, BATCH)

    def step(self):
        images, labels = self.batch()
        self.optimizer.zero_grad()
        if isinstance(self.run, Captured):
            loss = self.run(images, labels)
        else:
            loss = self.run(*(Tensor(array).to("cuda") for array in (images, labels)))
        optim.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        return loss.item()

    def steps(self, count):
        return [self.step() for _ in range(count)]


def assert_equal_to_the_bit(name, count):
    eager, captured = (Training(name, flag) for flag in (False, True))
    manual_seed(7)
    expected, state = eager.steps(count), random.get_state()
    manual_seed(7)
    assert captured.steps(count) == expected
    assert random.get_state() == state
    there = captured.model.state_dict()
    for key, values in eager.model.state_dict().items():
        np.testing.assert_array_equal(there[key], values, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_those_of_the_function(gpu, name):
    """Losses, parameters, running statistics and the random state after them."""
    assert_equal_to_the_bit(name, 5 if gpu == "gpu" else 3)


def test_inference(gpu):
    manual_seed(0)
    model = resnet.ResNet(20, 10, width=1 / 4).to("cuda").eval()

    @no_grad()
    def infer(images):
        return model(images), images.sum()

    captured = Captured(infer)
    for _ in range(3):
        images = Tensor(np.random.default_rng().random((2, 3, 16, 16), np.float32)).to("cuda")
        for actual, expected in zip(captured(images), infer(images), strict=True):
            np.testing.assert_array_equal(actual.numpy(), expected.numpy())


def test_masks_of_a_segment_that_runs_twice(gpu):
    """Backward draws the masks of forward again, in eager steps and in replays."""
    manual_seed(0)
    segment = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 6), nn.Dropout(0.2))
    segment.to("cuda").train()

    def step(x):
        loss = (checkpoint(segment, ops.dropout(x)) ** 2).sum()
        loss.backward()
        return loss

    def grads(run):
        manual_seed(3)
        found = []
        for scale in (1, 2, 3, 4):
            for p in segment.parameters():
                p.zero_grad()
            x = Tensor(np.full((2, 6), scale, np.float32)).to("cuda").requires_grad_()
            found.append([run(x).item(), *(p.grad.numpy() for p in segment.parameters())])
        return found

    def as_leaf(x):
        return step(x.detach().requires_grad_())

    expected = grads(step)
    assert len({loss for loss, *_ in expected}) == 4
    for there, here in zip(grads(Captured(as_leaf, segment.parameters())), expected, strict=True):
        for actual, wanted in zip(there, here, strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_inputs_that_do_not_fit(gpu):
    double = Captured(lambda x: x * 2)
    x = Tensor(np.ones((2, 3), np.float32)).to("cuda")
    assert double.fits(x, x)
    double(x)
    for other in (x[:1], x.astype(np.float64)):
        assert not double.fits(other)
        message = r"inputs must be float32 of shape \(2, 3\), as in the first call, got float"
        with pytest.raises(ValueError, match=message):
            double(other)
    with pytest.raises(ValueError, match="got float32 of shape .*, float32 of shape"):
        double(x, x)
    assert double(x.cpu()).sum().item() == double(x).sum().item() == 12
    for captured in (double, Captured(lambda x: x)):
        with pytest.raises(TypeError, match="inputs must be Tensors or arrays, got list"):
            captured([1.0])
    with pytest.raises(TypeError, match="must return a Tensor or a tuple of Tensors, got list"):
        Captured(lambda x: [x])(x)


def test_a_first_call_that_fails(gpu):
    """It tells nothing of the inputs that there will be."""
    captured = Captured(lambda x: x @ x)
    with pytest.raises(ValueError):
        captured(np.ones((2, 3), np.float32))
    for _ in range(3):
        assert captured(np.ones((2, 2), np.float32)).sum().item() == 8


def test_no_recording_within_another(gpu):
    """Its masks would be the same in every replay."""
    inner = Captured(ops.dropout)
    x = Tensor(np.ones(8, np.float32)).to("cuda")
    inner(x), inner(x)
    outer = Captured(lambda x: inner(x) * 2)
    outer(x)
    with pytest.raises(CaptureError, match="only the function of a Captured itself"):
        outer(x)
    assert inner(x).shape == (8,)


@pytest.mark.parametrize("what", ["item", "numpy", "bool", "from the CPU", "an array", "a label"])
def test_what_cannot_be_recorded(gpu, what):
    """It is said, and the device, the random state and the object are as before."""
    culprits = {
        "item": lambda x: x * x.sum().item(),
        "numpy": lambda x: x + x.detach().numpy().max(),
        "bool": lambda x: x if x.sum() else -x,
        "from the CPU": lambda x: x + Tensor(np.ones(3, np.float32)).to("cuda"),
        "an array": lambda x: x[np.array([0, 0])],
        "a label": lambda x: ops.cross_entropy(x.reshape(1, 3), np.array([1])),
    }

    def function(x):
        return culprits[what](ops.dropout(x)).sum()

    captured = Captured(function)
    x = Tensor(np.ones(3, np.float32)).to("cuda")
    captured(x)
    for _ in range(2):
        state = random.get_state()
        with pytest.raises(CaptureError, match="function cannot be recorded: .*give such arrays"):
            captured(x)
        assert random.get_state() == state
        assert (x * 2).sum().item() == 6
    triple = Captured(lambda x: x * 3)
    assert [triple(x).sum().item() for _ in range(3)] == [9, 9, 9]


def test_a_parameter_that_is_replaced(gpu):
    """The recording reads its array, which is another one then."""
    weight = Tensor(np.ones(2, np.float32)).to("cuda").requires_grad_()

    def step(x):
        loss = (weight * x).sum()
        loss.backward()
        return loss

    captured = Captured(step, [weight])
    x = Tensor(np.ones(2, np.float32)).to("cuda")
    assert [captured(x).item() for _ in range(3)] == [2, 2, 2]
    weight.data = Tensor(np.full(2, 5, np.float32)).to("cuda")
    assert captured(x * 2).item() == 20
    np.testing.assert_array_equal(weight.grad.numpy(), [2, 2])


def test_a_parameter_that_is_frozen_and_thawed(gpu):
    """As the layers before a new last one are in transfer learning."""
    frozen, weight = (Tensor(np.ones(2)).to("cuda").requires_grad_(flag) for flag in (False, True))

    runs = []

    def step(x):
        runs.append(x)
        (frozen * weight * x).sum().backward()
        return x

    captured = Captured(step, [frozen, weight])
    # As it is, recorded, replayed: a kernel that is needed for the first time is not recorded.
    calls = (False, 1), (True, 2), (True, 3), (True, 3), (False, 4), (False, 5), (False, 5)
    for needed, count in calls:
        frozen.requires_grad_(needed)
        captured(Tensor(np.full(2, 3.0)))
        assert len(runs) == count
        np.testing.assert_array_equal(weight.grad.numpy(), [3, 3])
        assert (frozen.grad is not None) is needed


def test_gradients_are_replaced(gpu):
    weight, unused = (Tensor(np.ones(2)).to("cuda").requires_grad_() for _ in range(2))

    def step(x):
        (weight * x).sum().backward()
        return x

    captured = Captured(step, [weight, unused])
    for factor in (1.0, 2.0, 3.0):
        captured(Tensor(np.full(2, factor)))
        np.testing.assert_array_equal(weight.grad.numpy(), [factor, factor])
        assert unused.grad is None


def test_what_is_done_to_results_and_gradients_does_not_last(gpu):
    """The next call gives new Tensors, though on the same memory."""
    weight = Tensor(np.ones(2)).to("cuda").requires_grad_()

    def step(x):
        (weight * x).sum().backward()
        return x * 2

    captured = Captured(step, [weight])
    for factor in (1.0, 2.0, 3.0):
        result = captured(Tensor(np.full(2, factor)))
        assert result.grad is None and not result.requires_grad
        result.requires_grad_().sum().backward()
        np.testing.assert_array_equal(weight.grad.numpy(), [factor, factor])
        weight.grad.data = Tensor(np.zeros(2)).to("cuda")


def test_a_label_that_is_no_class_is_seen_in_replays(gpu):
    """Which do not look at the labels: the loss becomes NaN, which ends a training."""
    captured = Captured(lambda logits, labels: ops.cross_entropy(logits, labels))
    logits = np.ones((2, 3), np.float32)
    losses = [captured(logits, np.array([0, label])).item() for label in (2, 1, 3, -1, -100, 0)]
    np.testing.assert_allclose(losses, np.log(3) * np.array([1, 1, np.nan, np.nan, 1, 1]), 1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_a_graph_that_needs_an_overwritten_result(gpu, several):
    captured = Captured(lambda x: (x * 2, x) if several else x * 2)
    x, weight = (Tensor(np.ones(2)).to("cuda") for _ in range(2))
    weight.requires_grad_()
    for _ in range(3):
        result = captured(x)
        loss = (weight * (result[0] if several else result)).sum()
    loss.backward()
    loss = (weight * (result[0] if several else result)).sum()
    captured(x)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.fixture
def few_digits(monkeypatch):
    train, test = data.bundled_digits()
    few = train.subset(np.arange(44)), test.subset(np.arange(8))
    monkeypatch.setattr(data, "bundled_digits", lambda: few)


@pytest.mark.parametrize("variant", ["modern", "1998"])
def test_training_is_the_same_with_and_without(gpu, few_digits, capsys, tmp_path, variant):
    """Of 44 images in batches of 16 the last is eager; what 1998 learns by cannot be recorded."""
    states = []
    for option in ("--capture", "--no-capture"):
        arguments = "--backend", "cuda", option, "--epochs", 2, "--batch-size", 16
        out = tmp_path / option
        arguments = "train", *arguments, "--variant", variant, "--out", out
        assert not cli.run(lenet.ARCHITECTURE, [str(a) for a in arguments]), capsys.readouterr()
        states.append(load_checkpoint(out / "last.safetensors"))
    captured, eager = states
    for key, values in eager.model.items():
        np.testing.assert_array_equal(captured.model[key], values, err_msg=key)
    assert captured.progress["running"] == eager.progress["running"]
    assert captured.progress["random"] == eager.progress["random"]


def test_batches_are_replayed(gpu, few_digits, monkeypatch, tmp_path):
    """From the second whole one on; the last one of an epoch is smaller."""
    launched = []
    launch = Recording.launch
    monkeypatch.setattr(
        Recording, "launch", lambda self, *draw: (launched.append(draw), launch(self, *draw))
    )
    arguments = "train", "--backend", "cuda", "--epochs", 2, "--batch-size", 16, "--out", tmp_path
    assert not cli.run(lenet.ARCHITECTURE, [str(a) for a in arguments])
    assert len(launched) == 3


def test_capturing_elsewhere_is_refused(capsys):
    assert cli.run(lenet.ARCHITECTURE, ["train", "--capture"]) == 2
    assert "--capture needs --backend cuda, without float16" in capsys.readouterr().err


@pytest.mark.gpu
def test_memory_of_a_recording(real_gpu):
    """It is its own, and goes with it, but for arrays in use: they go with the next recording."""
    gc.collect()
    Recording()  # gives back what is left of others
    left = list(recording._left)
    size = 1 << 24
    x = Tensor(np.ones(size, np.float32)).to("cuda")
    before = recording.held_bytes()
    captured = Captured(lambda x: x * 2 + 1)
    for _ in range(3):
        result = captured(x)
    assert recording.held_bytes() - before >= 2 * 4 * size
    pool = captured._recording._pool
    del captured
    gc.collect()
    assert recording.held_bytes() == before and recording._left != left
    assert float(result[-1]) == 3
    del result
    Recording()
    assert recording._left == left
    assert pool.total_bytes() == 0


@pytest.mark.gpu
def test_replays_leave_no_memory_behind(real_gpu):
    pool = real_gpu.get_default_memory_pool()
    training = Training("lenet", captured=True)
    training.steps(3)
    gc.collect()
    before = pool.used_bytes()
    training.steps(200)
    gc.collect()
    assert pool.used_bytes() == before
