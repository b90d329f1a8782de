"""The module tree: registration, state, hooks, text."""

import copy
import pickle

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn
from minidl.nn import init


def small():
    return nn.Sequential(
        {"conv": nn.Conv2d(1, 2, 3), "bn": nn.BatchNorm2d(2), "act": nn.ReLU(),
         "flat": nn.Flatten(), "head": nn.Linear(8, 3)}
    )  # fmt: skip


IMAGES = Tensor(np.random.default_rng(0).random((5, 1, 4, 4), np.float32))


def test_names_and_counts():
    model = small()
    assert [name for name, _ in model.named_parameters()] == [
        "conv.weight", "conv.bias", "bn.weight", "bn.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    assert [name for name, _ in model.named_buffers()] == [
        "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
    ]  # fmt: skip
    assert len(list(model.modules())) == 6 and len(list(model.children())) == 5


def test_shared_parameters_count_once_but_are_saved_under_each_name():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    assert len(list(model.parameters())) == 2
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_state_dict_round_trip():
    a, b = small(), small()
    a(IMAGES)
    b.load_state_dict(a.state_dict())
    a.eval(), b.eval()
    assert (a(IMAGES).detach().numpy() == b(IMAGES).detach().numpy()).all()
    assert b.state_dict()["bn.num_batches_tracked"] == 1
    with pytest.raises(ValueError):
        a.state_dict()["conv.bias"][0] = 1


def test_load_lists_every_problem_and_changes_nothing():
    model = small()
    before = {k: v.copy() for k, v in model.state_dict().items()}
    state = dict(small().state_dict())
    del state["conv.bias"]
    state["extra"] = np.zeros(1)
    state["head.weight"] = np.zeros((3, 9), np.float32)
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(state)
    for words in ("missing conv.bias", "unexpected extra", "head.weight has shape (3, 9)"):
        assert words in str(caught.value)
    for key, value in model.state_dict().items():
        assert (value == before[key]).all()


def test_not_strict_loads_what_fits():
    model = small()
    model.load_state_dict({"conv.bias": np.full(2, 7.0)}, strict=False)
    assert (model.conv.bias.detach().numpy() == 7).all() and model.conv.bias.dtype == np.float32


def test_train_eval_and_apply():
    model = small()
    assert model.eval() is model and not model.bn.training
    model.train()
    assert model.bn.training
    seen = []
    model.apply(lambda m: seen.append(type(m).__name__))
    assert seen[-1] == "Sequential" and len(seen) == 6


def test_hooks():
    minidl.manual_seed(0)  # with some weights no ReLU is ever active
    model, calls = small(), []
    with model.conv.register_forward_hook(lambda m, i, o: calls.append(o.shape)):
        model(IMAGES)
    handle = model.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 0.0,))
    zero = model.eval()(IMAGES).detach().numpy()
    handle.remove()
    assert calls == [(5, 2, 2, 2)] and (zero == zero[0]).all()
    with model.register_forward_hook(lambda m, i, o: o * 0.0):
        assert (model(IMAGES).detach().numpy() == 0).all()
    assert (model(IMAGES).detach().numpy() != zero).any()


def test_to_keeps_the_parameters():
    model = small()
    parameters = list(model.parameters())
    model.to(np.float64)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {p.dtype for p in parameters} == {np.dtype(np.float64)}
    assert model.bn.running_var.dtype == np.float64
    assert model.bn.num_batches_tracked.dtype == np.int64
    with pytest.raises(TypeError, match="target"):
        model.to(np.int32)


def test_assignment():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="weight"):
        model.weight = Tensor(np.zeros((2, 2)))
    model.bias = None
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing

    class Early(nn.Module):
        def __init__(self):
            self.layer = nn.ReLU()

    with pytest.raises(AttributeError, match="super"):
        Early()


def test_copies_are_independent():
    model = small()
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        init.zeros_(clone.conv.weight)
        assert model.conv.weight.detach().numpy().any()
        assert [n for n, _ in clone.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_repr_shows_the_tree():
    text = repr(small())
    assert "(conv): Conv2d(1, 2, kernel_size=(3, 3))" in text and text.count("\n") == 6


def test_module_list():
    layers = nn.ModuleList([nn.Linear(2, 2)]).append(nn.ReLU())
    assert len(layers) == 2 and isinstance(layers[1], nn.ReLU) and len(layers[:1]) == 1
    with pytest.raises(TypeError, match="module"):
        layers.append(3)


@pytest.mark.parametrize(
    "fill, std",
    [
        (init.he_normal_, np.sqrt(2 / 1800)),
        (init.he_uniform_, np.sqrt(2 / 1800)),
        (init.xavier_normal_, np.sqrt(2 / (1800 + 900))),
        (init.xavier_uniform_, np.sqrt(2 / (1800 + 900))),
        (init.lecun_normal_, np.sqrt(1 / 1800)),
        (init.lecun_uniform_, np.sqrt(1 / 1800)),
        (lambda t: init.he_normal_(t, "fan_out"), np.sqrt(2 / 900)),
        (lambda t: init.normal_(t, 0.0, 0.01), 0.01),
    ],
)
def test_initialisers(fill, std):
    minidl.manual_seed(0)
    weight = Tensor(np.empty((100, 200, 3, 3), np.float32))
    fill(weight)
    values = weight.numpy()
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(std, rel=0.02) and abs(values.mean()) < std / 50
    minidl.manual_seed(0)
    again = fill(Tensor(np.empty((100, 200, 3, 3), np.float32))).numpy()
    assert (again == values).all()


@pytest.mark.parametrize("value", [["a", "b"], [None, None], [1j, 2j]])
def test_a_state_of_no_numbers_is_refused_whole(value):
    layer = nn.Linear(3, 2)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    with pytest.raises(ValueError, match="bias has dtype .*, expected numbers"):
        layer.load_state_dict({"weight": np.zeros((2, 3)), "bias": np.array(value)})
    assert all((layer.state_dict()[name] == array).all() for name, array in before.items())
