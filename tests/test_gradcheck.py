"""gradcheck must find what is wrong, and only that."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn, ops
from minidl.gradcheck import (
    GradcheckError,
    NonDifferentiableError,
    gradcheck,
    gradcheck_module,
    gradgradcheck,
    move_biases,
)


class WrongSquare(minidl.Function):
    """x^2 with a slope that is 1 % too large at one element."""

    def forward(self, x):
        return x * x

    def backward(self, grad):
        factor = np.full(grad.shape, 2.0)
        factor.flat[-1] = 2.02
        return grad * Tensor(factor) * self.inputs[0]


class WrongSecond(minidl.Function):
    """x^3 whose gradient is right but hides its own dependence on x."""

    def forward(self, x):
        return x**3

    def backward(self, grad):
        return grad * Tensor(3 * self.inputs[0].detach().numpy() ** 2)


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


@pytest.mark.parametrize("fast", [False, True])
def test_accepts_right_gradients(fast):
    x, y = leaf(0.3, -1.2, 2.0), leaf(1.0, 0.5, -0.7)
    assert gradcheck(lambda x, y: (x * y, (x.exp() + y).sum()), (x, y), fast=fast)
    assert gradgradcheck(lambda x, y: x * x * y, (x, y), fast=fast)


@pytest.mark.parametrize("fast", [False, True])
def test_rejects_a_wrong_gradient(fast):
    assert not gradcheck(lambda x: WrongSquare()(x), leaf(0.5, 1.0, 1.5), fast=fast,
                         raise_exception=False)  # fmt: skip


def test_report_names_the_first_wrong_element():
    with pytest.raises(GradcheckError) as caught:
        gradcheck(lambda a, x: (a, WrongSquare()(x)), (leaf(1.0), leaf(0.5, 1.0, 1.5)))
    message = str(caught.value)
    assert "d output 1[2] / d input 1[2]" in message and "1 of 9" in message
    assert "3.03" in message and "backward" in message


def test_second_order_finds_what_first_order_cannot():
    x = leaf(0.5, 1.5)
    assert gradcheck(lambda x: WrongSecond()(x), x)
    assert not gradgradcheck(lambda x: WrongSecond()(x), x, raise_exception=False)


@pytest.mark.parametrize("fast", [False, True])
def test_kinks_are_named(fast):
    with pytest.raises(NonDifferentiableError, match="not differentiable"):
        gradcheck(lambda x: x.relu(), leaf(0.0), fast=fast)


def test_inputs_are_left_alone():
    values = np.array([0.3, 0.7])
    x = Tensor(values, requires_grad=True)
    gradcheck(lambda x: x.exp(), x)
    assert values.tolist() == [0.3, 0.7] and x.grad is None


def test_bad_arguments():
    with pytest.raises(ValueError, match="float64"):
        gradcheck(lambda x: x, Tensor(np.ones(2, np.float32), requires_grad=True))
    with pytest.raises(ValueError, match="requires grad"):
        gradcheck(lambda x: x, Tensor(np.ones(2)))


def test_random_functions_are_refused():
    draw = np.random.default_rng(0)
    with pytest.raises(GradcheckError, match="two results"):
        gradcheck(lambda x: x * draw.random(), leaf(1.0))


@pytest.mark.parametrize("fast", [False, True])
def test_module_with_dropout_and_batchnorm(fast):
    minidl.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.4), nn.Flatten(),
        nn.Linear(12, 2),
    ).to(np.float64)  # fmt: skip
    before = {name: value.copy() for name, value in model.state_dict().items()}
    x = Tensor(np.random.default_rng(0).standard_normal((3, 2, 4, 4)), requires_grad=True)
    assert gradcheck_module(model, x, fast=fast)
    for name, value in model.state_dict().items():
        assert (value == before[name]).all(), name


def test_module_errors_name_the_parameter():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(np.ones(3))

        def forward(self, x):
            return x * WrongSquare()(self.gain)

    with pytest.raises(GradcheckError, match="parameter gain"):
        gradcheck_module(Wrong(), Tensor(np.arange(1.0, 4.0)), fast=False)


def test_conv_reports_through_ops():
    x = Tensor(np.random.default_rng(0).standard_normal((1, 1, 3, 3)), requires_grad=True)
    w = Tensor(np.random.default_rng(1).standard_normal((2, 1, 2, 2)), requires_grad=True)
    assert gradcheck(lambda x, w: ops.conv2d(x, w), (x, w))
    assert gradgradcheck(lambda x, w: ops.conv2d(x, w), (x, w))


def test_move_biases_leaves_the_kink():
    """Behind a dead layer every unit rests on 0: checked as it is, that is a kink."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU()).to(np.float64)
    model[0].weight.copy_(0.0)
    for layer in (model[0], model[2]):
        layer.bias.copy_(0.0)
    x = Tensor(np.ones((1, 2)))
    with pytest.raises(NonDifferentiableError):
        gradcheck_module(model, x)
    weight = model[2].weight.data.copy()
    move_biases(model)
    assert (model[0].bias.data != 0).all() and (model[2].weight.data == weight).all()
    gradcheck_module(model, x)
