"""Optimisers and schedules against PyTorch's, in float64."""

import numpy as np
import pytest

from minidl import Tensor, optim

START = [np.random.default_rng(0).standard_normal(shape) for shape in ((3, 2), (4,))]

OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.1, "weight_decay": 0.2}),
}


def leaves(dtype=np.float64):
    return [Tensor(a.astype(dtype), requires_grad=True) for a in START]


def descend(parameters, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((p * p * p).sum() + (p - 1.0).exp().sum() for p in parameters)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    kind, settings = OPTIMIZERS[name]
    ours = leaves()
    theirs = [torch.tensor(a, requires_grad=True) for a in START]
    descend(ours, getattr(optim, kind)(ours, **settings), 6)
    descend(theirs, getattr(torch.optim, kind)(theirs, **settings), 6)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), 1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_continues_exactly_and_float32_stays(name):
    kind, settings = OPTIMIZERS[name]
    straight = leaves(np.float32)
    optimizer = getattr(optim, kind)(straight, **settings)
    descend(straight, optimizer, 3)
    resumed = [Tensor(p.detach().numpy().copy(), requires_grad=True) for p in straight]
    second = getattr(optim, kind)(resumed, lr=1.0, **({"momentum": 0.1} if kind == "SGD" else {}))
    second.load_state_dict(optimizer.state_dict())
    descend(straight, optimizer, 3)
    descend(resumed, second, 3)
    for a, b in zip(straight, resumed, strict=True):
        assert a.dtype == np.float32 and (a.detach().numpy() == b.detach().numpy()).all()
    for entry in optimizer.state.values():
        assert all(v.dtype == np.float32 for v in entry.values() if not isinstance(v, int))


def test_groups_and_missing_gradients():
    a, b = leaves()
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    a.sum().backward()
    optimizer.step()
    assert (b.detach().numpy() == START[1]).all()
    np.testing.assert_allclose(a.detach().numpy(), START[0] - 0.1)
    assert [group["lr"] for group in optimizer.groups] == [0.1, 0.5]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: optim.SGD(p, lr=-1), "lr"),
        (lambda p: optim.SGD(p, lr=1, momentum=-0.1), "momentum"),
        (lambda p: optim.SGD(p, lr=1, nesterov=True), "nesterov"),
        (lambda p: optim.SGD([], lr=1), "params"),
        (lambda p: optim.SGD([p[0], p[0]], lr=1), "twice"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), "betas"),
        (lambda p: optim.Adam(p, eps=-1), "eps"),
        (lambda p: optim.AdamW(p, weight_decay=-1), "weight_decay"),
        (lambda p: optim.StepLR(optim.SGD(p, lr=1), 0), "step_size"),
        (lambda p: optim.MultiStepLR(optim.SGD(p, lr=1), [3, 2]), "milestones"),
        (lambda p: optim.CosineAnnealingLR(optim.SGD(p, lr=1), 0), "T_max"),
        (lambda p: optim.ReduceLROnPlateau(optim.SGD(p, lr=1), "low"), "mode"),
        (lambda p: optim.clip_grad_norm_(p, 0), "max_norm"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make(leaves())


SCHEDULES = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.3},
    "CosineAnnealingLR": {"T_max": 8, "eta_min": 0.01},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_against_torch(name):
    torch = pytest.importorskip("torch")
    ours = optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(leaves(), (0.1, 1.0),
                                                                 strict=True)], lr=0)  # fmt: skip
    theirs = torch.optim.SGD(
        [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.1, 1.0)], lr=0
    )
    a = getattr(optim, name)(ours, **SCHEDULES[name])
    b = getattr(torch.optim.lr_scheduler, name)(theirs, **SCHEDULES[name])
    for _ in range(8):
        np.testing.assert_allclose(a.last_lr, b.get_last_lr(), 1e-9)
        theirs.step()
        a.step(), b.step()


def test_warmup_then_cosine():
    optimizer = optim.SGD(leaves(), lr=1.0)
    schedule = optim.LinearWarmup(optimizer, 4, after=optim.CosineAnnealingLR(optimizer, 4))
    rates = []
    for _ in range(9):
        rates += schedule.last_lr
        schedule.step()
    cosine = [(1 + np.cos(np.pi * t / 4)) / 2 for t in range(5)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, *cosine], atol=1e-12)
    other = optim.LinearWarmup(optim.SGD(leaves(), lr=1.0), 4)
    other.load_state_dict({**schedule.state_dict(), "steps": 1})
    assert other.last_lr == [0.5]


def test_plateau_against_torch():
    torch = pytest.importorskip("torch")
    ours = optim.SGD(leaves(), lr=1.0)
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    settings = {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.01, "min_lr": 0.2}
    a = optim.ReduceLROnPlateau(ours, **settings)
    b = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **settings)
    for metric in (1.0, 1.005, 1.0, 1.2, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1):
        a.step(metric), b.step(metric)
        assert a.last_lr == b.get_last_lr()


def test_clip_grad_norm():
    parameters = leaves(np.float32)
    for p in parameters:
        p.grad = Tensor(np.full(p.shape, 3.0, np.float32))
    norm = optim.clip_grad_norm_(parameters, 1.0)
    assert norm == pytest.approx(3 * np.sqrt(10))
    total = sum((p.grad.numpy() ** 2).sum() for p in parameters)
    assert total == pytest.approx(1.0, rel=1e-4) and parameters[0].grad.dtype == np.float32
    assert optim.clip_grad_norm_(parameters, 5.0) == pytest.approx(1.0, rel=1e-4)
    parameters[0].grad = Tensor(np.full((3, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="finite"):
        optim.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


def test_plateau_gets_over_a_metric_that_is_nan():
    optimizer = optim.SGD([Tensor([1.0], requires_grad=True)], 1.0)
    schedule = optim.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for metric in (float("nan"), 3.0, 2.0, 1.0):
        schedule.step(metric)
    assert schedule.best == 1.0 and schedule.last_lr == [1.0]


def test_bad_parameters_are_named():
    w = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="put it in a list"):
        optim.SGD(w, 0.1)
    with pytest.raises(TypeError, match="put it in a list"):
        optim.SGD([{"params": w}], 0.1)
    with pytest.raises(ValueError, match=r"params\[1\] must be no result of an operation"):
        optim.SGD([w, w * 2], 0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        optim.SGD([{"params": [w], "learning_rate": 0.3}], 0.1)


def test_state_of_another_optimiser_is_refused():
    w = Tensor([1.0, 2.0], requires_grad=True)
    w.grad = w.detach()
    adam = optim.Adam([w])
    adam.step()
    with pytest.raises(ValueError, match="betas.*expected.*momentum"):
        optim.SGD([w], 0.1).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_clipping_beyond_the_squares_of_float32(size):
    w = Tensor([0.0] * 4, requires_grad=True)
    w.grad = Tensor(np.full(4, size, np.float32))
    norm = optim.clip_grad_norm_(w, size)
    np.testing.assert_allclose(norm, 2 * size, rtol=1e-6)
    if size > 1:
        np.testing.assert_allclose(w.grad.numpy(), size / 2, rtol=1e-6)
