"""Gradient checkpointing: the same gradients, less kept, everything drawn again alike."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, grad, nn, no_grad, ops
from minidl.gradcheck import gradcheck
from minidl.recompute import checkpoint, checkpoint_sequential


def network():
    minidl.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.4),
        nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5),
    ).to(np.float64)  # fmt: skip


def images():
    return Tensor(np.random.default_rng(0).standard_normal((4, 2, 6, 6)), requires_grad=True)


def results(run):
    """Output, gradients and running statistics of one step, and the next random state."""
    model, x = network(), images()
    minidl.manual_seed(7)
    y = run(model, x)
    (y * y).sum().backward()
    grads = [x.grad, *(p.grad for p in model.parameters())]
    state = [*(b._array for b in model.buffers()), minidl.random.next_dropout_step()]
    return [y._array, *(g._array for g in grads), *state]


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 9])
def test_everything_is_as_without(segments):
    plain = results(lambda model, x: model(x))
    again = results(lambda model, x: checkpoint_sequential(model, segments, x))
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-14)


def test_a_segment_of_the_whole_and_its_gradient():
    plain = results(lambda model, x: model(x))
    again = results(lambda model, x: checkpoint(model, x))
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-14)
    model = network().eval()
    gradcheck(lambda x: checkpoint(model, x), [images()])


def test_parameters_learn_though_the_input_needs_no_gradient():
    model, x = network(), images().detach()
    checkpoint(model, x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_second_derivatives():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(np.float64), None
    x = Tensor(np.random.default_rng(1).standard_normal((2, 3)), requires_grad=True)
    found = []
    for run in (model, lambda x: checkpoint(model, x)):
        (dx,) = grad(run(x).sum(), x, create_graph=True)
        (ddx,) = grad((dx * dx).sum(), x)
        found.append(ddx._array)
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_only_the_inputs_are_kept():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8)))
    x = Tensor(np.ones((2, 4, 32, 32), np.float32), requires_grad=True)
    peaks = []
    for run in (model, lambda x: checkpoint_sequential(model, 4, x)):
        with minidl.profile() as p:
            run(x).sum().backward()
        peaks.append(p.peak_saved_bytes)
    assert peaks[1] < 0.7 * peaks[0]


def test_several_inputs_and_shared_ones():
    class Product(nn.Module):
        def forward(self, a, b):
            return a * b + a

    a, b = (Tensor(np.array([2.0, 3.0]) + i, requires_grad=True) for i in (0, 1))
    checkpoint(Product(), a, b).sum().backward()
    np.testing.assert_array_equal(a.grad._array, b._array + 1)
    a.grad = None
    checkpoint(Product(), a, a).sum().backward()
    np.testing.assert_array_equal(a.grad._array, 2 * a._array + 1)


def test_without_a_graph_it_is_a_call():
    model, x = network().eval(), images()
    with no_grad():
        np.testing.assert_array_equal(checkpoint(model, x)._array, model(x)._array)


def test_wrong_arguments():
    x = images()
    with pytest.raises(TypeError, match="segment must be a Module"):
        checkpoint(ops.relu, x)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a Tensor"):
        checkpoint(nn.ReLU(), x._array)
    with pytest.raises(ValueError, match="segments must be from 1 to 9, got 10"):
        checkpoint_sequential(network(), 10, x)
    with pytest.raises(TypeError, match="layers must be a Sequential"):
        checkpoint_sequential(nn.ReLU(), 1, x)

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="segment must return one Tensor, got tuple"):
        checkpoint(Pair(), x)
