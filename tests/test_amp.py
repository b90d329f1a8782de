"""Mixed precision: what is rounded and what is not, the scale of the loss, and runs with both."""

import json

import numpy as np
import pytest

from architectures import lenet
from kernels import dispatch
from minidl import Tensor, cli, data, grad, nn, ops, optim
from minidl.amp import GradScaler, autocast


def half(array):
    return array.astype(np.float16).astype(np.float32)


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal(s, np.float32), requires_grad=True) for s in shapes]


def test_products_round_their_operands():
    x, weight, bias = draw((4, 5), (3, 5), (3,))
    with autocast():
        y = ops.linear(x, weight, bias)
        z = x @ weight.T
    exact = half(x.data) @ half(weight.data).T
    np.testing.assert_allclose(y.data, exact + bias.data, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(z.data, exact, rtol=1e-6, atol=1e-6)
    assert abs(y.data - ops.linear(x, weight, bias).data).max() > 1e-5
    wide = [t.astype(np.float64) for t in (x, weight)]
    with autocast():
        np.testing.assert_array_equal(ops.linear(*wide).data, wide[0].data @ wide[1].data.T)


def test_backward_rounds_wherever_it_runs():
    x, weight, dy = draw((2, 3, 5, 4), (6, 3, 2, 2), (2, 6, 4, 3))
    with autocast():
        y = ops.conv2d(x, weight)
    got = grad(y, [x, weight], dy.detach())
    rounded = [Tensor(half(t.data), requires_grad=True) for t in (x, weight)]
    expected = grad(ops.conv2d(*rounded), rounded, Tensor(half(dy.data)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_gradients_below_float16_need_the_scale():
    x, weight = draw((4, 5), (3, 5))

    def gradient(factor):
        with autocast():
            loss = (ops.linear(x, weight) * 1e-9).sum() * factor
        return grad(loss, weight)[0].data / factor

    assert not gradient(1.0).any()
    scaled = gradient(2.0**16)
    np.testing.assert_allclose(scaled, 1e-9 * half(x.data).sum(0) * np.ones((3, 1)), rtol=1e-3)


def test_what_stays_exact():
    """Means, as adaptive pooling makes them of matrix products, and everything after the block."""
    (x,) = draw((1, 2, 7, 7))
    with autocast():
        pooled = ops.adaptive_avg_pool2d(x, 3).data
        with autocast("float16"):
            pass
        assert dispatch.precision_choice() == "float16"
    np.testing.assert_array_equal(pooled, ops.adaptive_avg_pool2d(x, 3).data)
    assert dispatch.precision_choice() == "float32"
    a, b = draw((3, 4), (4, 3))
    np.testing.assert_array_equal((a @ b).data, a.data @ b.data)


def test_the_scale_halves_and_doubles():
    parameter = Tensor(np.ones(2, np.float32), requires_grad=True)
    other = Tensor(np.ones(2, np.float32), requires_grad=True)
    scaler = GradScaler(8.0, growth_interval=2)

    def step(*gradient):
        parameter.grad = Tensor(np.array(gradient, np.float32))
        return scaler.unscale_([parameter, other])

    assert step(8, 16) and parameter.grad.data.tolist() == [1, 2] and scaler.factor == 8
    assert not step(1, np.inf) and parameter.grad is None and scaler.factor == 4
    assert not step(np.nan, 0) and scaler.factor == 2
    assert step(1, 1) and step(1, 1) and scaler.factor == 4 and scaler.good_steps == 0
    assert scaler.scale(Tensor(np.float32(3))).item() == 12
    again = GradScaler()
    again.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert vars(again) == {**vars(scaler), "growth_interval": 2000}


def test_bad_settings():
    with pytest.raises(ValueError, match="bfloat16 does not exist in NumPy"):
        autocast("bfloat16")
    with pytest.raises(ValueError, match="dtype must be 'float16', got 'int8'"):
        autocast("int8")
    for settings in ({"scale": 0}, {"growth_interval": 0}):
        with pytest.raises(ValueError, match="must be above 0, got 0"):
            GradScaler(**settings)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch):
    train, test = data.bundled_digits()
    few = train.subset(np.arange(0, 4000, 40)), test.subset(np.arange(0, 1000, 20))
    monkeypatch.setattr(data, "bundled_digits", lambda: few)


def run(capsys, *arguments):
    status = cli.run(lenet.ARCHITECTURE, ["train", *(str(a) for a in arguments)])
    return status, capsys.readouterr().err


def rows_and_weights(out):
    from minidl import checkpoint

    rows = json.loads((out / "history.json").read_text())
    kept = [{k: v for k, v in row.items() if k != "samples_per_s"} for row in rows]
    return kept, checkpoint.load(out / "last.safetensors")


def test_a_run_in_float16(few_digits, capsys, tmp_path):
    """It learns as one in float32 does."""
    rounded, exact = tmp_path / "rounded", tmp_path / "exact"
    assert run(capsys, "--epochs", 4, "--precision", "float16", "--out", rounded)[0] == 0
    assert run(capsys, "--epochs", 4, "--out", exact)[0] == 0
    (rows, state), (exact_rows, _) = map(rows_and_weights, (rounded, exact))
    assert rows != exact_rows
    assert rows[-1]["train_loss"] == pytest.approx(exact_rows[-1]["train_loss"], rel=0.1)
    assert state.progress["scaler"]["good_steps"] > 0
    assert state.about["settings"]["precision"] == "float16"


def test_a_resumed_run_brings_its_scale(few_digits, capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "--epochs", 1, "--precision", "float16", "--out", out)[0] == 0
    good = rows_and_weights(out)[1].progress["scaler"]["good_steps"]
    assert run(capsys, "--resume", out, "--epochs", 2)[0] == 0
    assert rows_and_weights(out)[1].progress["scaler"]["good_steps"] == 2 * good
    status, err = run(capsys, "--resume", out, "--precision", "float32")
    assert status == 2 and "precision=float16" in err


def test_gradients_that_always_overflow_end_the_run(few_digits, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(GradScaler, "scale", lambda self, loss: loss * float("inf"))
    status, err = run(capsys, "--precision", "float16", "--out", tmp_path)
    assert status == 2
    assert "the gradients overflow float16, however the loss is scaled in epoch 9" in err


def test_tf32_needs_a_gpu(few_digits, capsys, tmp_path):
    status, err = run(capsys, "--precision", "tf32", "--out", tmp_path)
    assert status == 2 and "--precision tf32 needs --backend cuda" in err


def test_a_step_left_out_changes_nothing():
    layer = nn.Linear(3, 2)
    optimizer = optim.AdamW(layer.parameters(), 0.1)
    before = layer.weight.data.copy()
    scaler = GradScaler(2.0**40)
    with autocast():
        loss = (layer(Tensor(np.ones((2, 3), np.float32))) * 1000).sum()
        scaler.scale(loss).backward()
    assert not scaler.unscale_(layer.parameters())
    optimizer.step()
    np.testing.assert_array_equal(layer.weight.data, before)
