"""Every network against the same network in PyTorch: logits, gradients, running statistics,
dropout, and weights that travel under public names.

Weights are drawn so that logits are of order 1, and so that batch-norm's statistics, biases and
response normalisation matter.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from architectures import alexnet, googlenet, nin, resnet, vgg, zfnet
from kernels.reference.dropout import dropout_mask
from minidl import Tensor, cli, data, no_grad, random, weights
from minidl.architecture import softmax_cross_entropy

torch = pytest.importorskip("torch")
from benchmarks import torch_networks as peers  # noqa: E402  (it imports torch)

CLASSES = 7
# Of pixels in 0..255 less their mean, which make response normalisation count.
PIXELS = 60.0
AUXILIARY_WEIGHT = 0.3
# Of logits of order 1, and of gradients relative to the largest of their array.
LOGITS = {np.float32: 1e-4, np.float64: 1e-10}
GRADIENTS = {np.float32: 1e-3, np.float64: 1e-8}
# Gradients below this part of the network's largest are rounding errors: those of a bias that
# batch-norm cancels are zero by right.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Case:
    """A network twice, the shape of its images, and names that lead from ours to the peer's."""

    ours: Callable
    peer: Callable
    shape: tuple[int, int, int]
    names: dict | None = None
    scale: float = 1.0
    batch: int = 4


@pytest.fixture(autouse=True)
def free_memory():
    yield
    gc.collect()


# -- pairs of networks -----------------------------------------------------------------------------


def draw(peer, x, scale, generator, calm):
    """Weights by He et al., biases and batch-norm at random, statistics as of a batch, logits of
    order 1.

    `calm` lets batch-norm shift its maps by some deviations, a third of them below 0 and the others
    above it, so that few values are near the kink of the ReLU behind them.
    """
    for module in peer.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.1 * scale, generator=generator)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            if calm:
                module.weight.uniform_(0.3, 0.5, generator=generator)
                below = torch.rand(module.bias.shape, generator=generator) < 1 / 3
                module.bias.copy_(torch.where(below, -2.0, 2.0))
            else:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    peer.train()
    peer(x)
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
            # Near the statistics of the batch, but not those.
            module.running_mean += 0.1 * module.running_var.sqrt()
            module.running_var *= 1.2
    main, *inner = last_layers(peer)
    for layer in (main, *inner):
        peer.train(layer is not main)  # auxiliary classifiers answer in training alone
        divide_by_deviation(peer, layer, x)


def last_layers(peer):
    """The layer that gives the logits, and those of auxiliary classifiers."""
    layers = list(peer.modules())
    linear = [m for m in layers if isinstance(m, torch.nn.Linear)]
    main = (linear or [m for m in layers if isinstance(m, torch.nn.Conv2d)])[-1]
    return [main, *(m.fc2 for m in layers if isinstance(m, peers.AuxiliaryHead))]


def divide_by_deviation(peer, layer, x):
    """Scale a layer so that what it gives for x has a standard deviation of 1."""
    seen = []
    with layer.register_forward_hook(lambda layer, inputs, y: seen.append(y)):
        peer(x)
    layer.weight /= seen[0].std()
    layer.bias /= seen[0].std()


def pair(case, dtype=np.float32, seed=0):
    """(ours, peer, images, labels): the same weights in both, in evaluation mode."""
    rng = np.random.default_rng(seed)
    x = (case.scale * rng.standard_normal((case.batch, *case.shape))).astype(dtype)
    peer = case.peer().to(torch.from_numpy(x).dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        draw(peer, torch.from_numpy(x), case.scale, generator, calm=dtype == np.float32)
        peer.eval()
        classes = peer(torch.from_numpy(x)).shape[1]
    ours = case.ours().to(dtype).eval()
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    weights.load_into(ours, state, case.names)
    return ours, peer, x, rng.integers(0, classes, case.batch)


def steady_pair(case, dtype):
    """A pair whose gradients do not leap when the images change by rounding errors.

    In float32 a ReLU or a max-pool at its kink can fall to either side, here and there; in
    float64 it practically cannot.
    """
    for seed in range(20):
        ours, peer, x, labels = pair(case, dtype, seed)
        if dtype == np.float64 or is_steady(peer, x, labels):
            return ours, peer, x, labels
    raise AssertionError("no draw of weights keeps away from the kinks")


def is_steady(peer, x, labels):
    before = {name: value.clone() for name, value in peer.state_dict().items()}
    rng = np.random.default_rng(0)
    for training in (False, True):
        peer.train(training)
        gradients = []
        for change in (0, 1e-7, 3e-7, 1e-6):
            noise = change * np.abs(x).max() * rng.standard_normal(x.shape, np.float32)
            peer.zero_grad()
            peer_loss(peer(torch.tensor(x + noise)), labels).backward()
            gradients.append([p.grad for p in peer.parameters() if p.grad is not None])
        if any(far_apart(gradients[0], other) for other in gradients[1:]):
            return False
    peer.load_state_dict(before)
    peer.eval()
    return True


def far_apart(gradients, others):
    largest = max(g.abs().max() for g in gradients)
    return any(
        (a - b).abs().max() > GRADIENTS[np.float32] / 2 * max(a.abs().max(), NEGLIGIBLE * largest)
        for a, b in zip(gradients, others, strict=True)
    )


def peer_loss(outputs, labels):
    """Cross-entropy, with that of auxiliary classifiers by the paper's weight."""
    main, *inner = as_tuple(outputs)
    target = torch.from_numpy(labels)
    value = torch.nn.functional.cross_entropy(main, target)
    for logits in inner:
        value = value + AUXILIARY_WEIGHT * torch.nn.functional.cross_entropy(logits, target)
    return value


def compare_logits(ours, peer, x, tolerance):
    with no_grad(), torch.no_grad():
        mine, theirs = ours(Tensor(x)).data, peer(torch.tensor(x)).numpy()
    assert mine.dtype == x.dtype
    assert 0.1 < np.abs(theirs).max() < 20
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)


def compare_step(ours, peer, names, x, labels):
    """Forward and backward once in both: outputs, loss, gradients, state afterwards."""
    dtype = x.dtype.type
    ours.zero_grad()
    peer.zero_grad()
    outputs, peer_outputs = ours(Tensor(x)), peer(torch.tensor(x))
    loss = googlenet.loss if isinstance(ours, googlenet.GoogLeNet) else softmax_cross_entropy
    value, peer_value = loss(ours, outputs, labels), peer_loss(peer_outputs, labels)
    value.backward()
    peer_value.backward()

    for a, b in zip(as_tuple(outputs), as_tuple(peer_outputs), strict=True):
        np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=0, atol=LOGITS[dtype])
    assert abs(value.item() - peer_value.item()) < LOGITS[dtype]
    compare_gradients(ours, peer, names, GRADIENTS[dtype])
    for (name, array), peer_array in zip(
        weights.public_state(ours, names).items(), state_in_order(ours, peer, names), strict=True
    ):
        np.testing.assert_allclose(array, peer_array, rtol=LOGITS[dtype], atol=LOGITS[dtype],
                                   err_msg=name)  # fmt: skip


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def state_in_order(ours, peer, names):
    state = peer.state_dict()
    return [state[name].numpy() for name in weights.public_state(ours, names)]


def compare_gradients(ours, peer, names, tolerance):
    public = dict(zip(ours.state_dict(), weights.public_state(ours, names), strict=True))
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    largest = max(g.abs().max().item() for g in theirs.values() if g is not None)
    assert largest > 0
    for name, parameter in ours.named_parameters():
        grad, peer_grad = parameter.grad, theirs.pop(public[name])
        assert (grad is None) == (peer_grad is None), name
        if grad is not None:
            peer_grad = peer_grad.numpy()
            scale = max(np.abs(peer_grad).max(), NEGLIGIBLE * largest)
            np.testing.assert_allclose(
                grad.data, peer_grad, rtol=0, atol=tolerance * scale, err_msg=name
            )
    assert not theirs


# -- logits, gradients and statistics of narrow networks -------------------------------------------


def alexnet_case(towers, size, grid):
    if towers == 2:
        peer = lambda: peers.alexnet_two_towers(CLASSES, 0.25, 0.0, grid)  # noqa: E731
    else:
        peer = lambda: peers.AlexNetOneTower(CLASSES, 0.25, 0.0, grid)  # noqa: E731
    return Case(
        lambda: alexnet.AlexNet(CLASSES, towers, 0.25, 0.0, grid), peer, (3, size, size),
        alexnet.public_names(1) if towers == 1 else None, PIXELS if towers == 2 else 1.0,
    )  # fmt: skip


def zfnet_case(width):
    return Case(
        lambda: zfnet.ZFNet(CLASSES, width, 0.125, 0.0, grid=1),
        lambda: peers.zfnet(CLASSES, 0.125, 0.0, 1, wide=width == "wide"),
        (3, 64, 64), None, PIXELS,
    )  # fmt: skip


def vgg_case(config, batch_norm, size=32, grid=1):
    return Case(
        lambda: vgg.VGG(config, CLASSES, batch_norm, 0.125, 0.0, grid),
        lambda: peers.VGG(config, CLASSES, 0.125, 0.0, grid, batch_norm),
        (3, size, size), vgg.public_names(config, batch_norm), PIXELS if "LRN" in config else 1.0,
        batch=8 if batch_norm else 4,
    )  # fmt: skip


def googlenet_case(batch_norm=False, naive=False, auxiliary=True):
    return Case(
        lambda: googlenet.GoogLeNet(
            CLASSES, auxiliary, batch_norm, naive, 0.125, adaptive=True, dropout=0.0,
            auxiliary_dropout=0.0,
        ),
        lambda: peers.GoogLeNet(CLASSES, 0.125, 0.0, 0.0, batch_norm, naive, auxiliary, True),
        (3, 64, 64), None, *((1.0, 8) if batch_norm else (PIXELS, 2)),
    )  # fmt: skip


def resnet_case(depth, version, shortcut):
    cifar = depth in resnet.CIFAR_DEPTHS
    width, size = (0.5, 32) if cifar else (0.125, 64)
    return Case(
        lambda: resnet.ResNet(depth, CLASSES, version, shortcut, width=width),
        lambda: peers.ResNet(depth, CLASSES, version, shortcut or "AB"[not cifar], width),
        (3, size, size), batch=8,
    )  # fmt: skip


NARROW = {
    "alexnet, two towers": alexnet_case(2, 67, 1),
    "alexnet, one tower": alexnet_case(1, 67, 1),
    "alexnet, one tower, another size": alexnet_case(1, 127, 2),
    "zfnet": zfnet_case("paper"),
    "zfnet, wide": zfnet_case("wide"),
    **{f"vgg {config}": vgg_case(config, False) for config in vgg.CONFIGS},
    **{f"vgg {config}, batch-norm": vgg_case(config, True) for config in ("A", "C", "D", "E")},
    "vgg A, another size": vgg_case("A", False, 64, 3),
    "googlenet": googlenet_case(),
    "googlenet, no heads": googlenet_case(auxiliary=False),
    "googlenet, naive": googlenet_case(naive=True),
    "googlenet, batch-norm": googlenet_case(True),
    "googlenet, batch-norm, naive": googlenet_case(True, naive=True),
    "googlenet, batch-norm, no heads": googlenet_case(True, auxiliary=False),
    "nin": Case(
        lambda: nin.NIN(CLASSES, 0.25, 0.0), lambda: peers.nin(CLASSES, 0.25, 0.0), (3, 32, 32),
        batch=2,
    ),
    **{
        f"resnet {depth}, version {version}, shortcut {shortcut}": resnet_case(
            depth, version, shortcut
        )
        for depth, version, shortcut in [
            (18, "1", None), (18, "1", "C"), (18, "2", None), (34, "1.5", "A"), (34, "2", "A"),
            (50, "1", None), (50, "1.5", None), (50, "1.5", "A"), (50, "1.5", "C"), (50, "2", None),
            (50, "2", "C"), (101, "1.5", None), (20, "1", None), (20, "1", "B"), (20, "1", "C"),
            (32, "2", None),
        ]
    },
}  # fmt: skip
DEEP = {
    f"resnet {depth}, version {version}": resnet_case(depth, version, None)
    for depth, version in [(101, "1"), (152, "1.5"), (152, "2"), (44, "1"), (56, "1"), (110, "1")]
}


@pytest.mark.parametrize(
    "name", [*NARROW, *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_narrow_networks(name, dtype):
    case = {**NARROW, **DEEP}[name]
    ours, peer, x, labels = steady_pair(case, dtype)
    compare_logits(ours, peer, x, LOGITS[dtype])
    compare_step(ours, peer, case.names, x, labels)
    ours.train(), peer.train()
    compare_step(ours, peer, case.names, x, labels)


# -- full size -------------------------------------------------------------------------------------


FULL = {
    "alexnet, two towers": Case(
        lambda: alexnet.AlexNet(dropout=0.0), lambda: peers.alexnet_two_towers(dropout=0.0),
        (3, 227, 227), None, PIXELS,
    ),
    "alexnet, one tower": Case(
        lambda: alexnet.AlexNet(towers=1), peers.AlexNetOneTower, (3, 224, 224),
        alexnet.public_names(towers=1),
    ),
    "zfnet": Case(zfnet.ZFNet, peers.zfnet, (3, 224, 224), None, PIXELS),
    "zfnet, wide": Case(
        lambda: zfnet.ZFNet(width="wide"), lambda: peers.zfnet(wide=True), (3, 224, 224), None,
        PIXELS,
    ),
    "vgg A": Case(
        lambda: vgg.VGG("A"), lambda: peers.VGG("A"), (3, 224, 224), vgg.public_names("A")
    ),
    "vgg D": Case(
        lambda: vgg.VGG("D"), lambda: peers.VGG("D"), (3, 224, 224), vgg.public_names("D")
    ),
    "vgg E, batch-norm": Case(
        lambda: vgg.VGG("E", batch_norm=True), lambda: peers.VGG("E", batch_norm=True),
        (3, 224, 224), vgg.public_names("E", True),
    ),
    "googlenet": Case(
        lambda: googlenet.GoogLeNet(dropout=0.0, auxiliary_dropout=0.0),
        lambda: peers.GoogLeNet(dropout=0.0, aux_dropout=0.0), (3, 224, 224), None, PIXELS,
    ),
    "googlenet, batch-norm": Case(
        lambda: googlenet.GoogLeNet(batch_norm=True), lambda: peers.GoogLeNet(batch_norm=True),
        (3, 224, 224),
    ),
    "nin": Case(lambda: nin.NIN(dropout=0.0), lambda: peers.nin(dropout=0.0), (3, 32, 32)),
    **{
        f"resnet {depth}, version {version}": Case(
            lambda depth=depth, version=version: resnet.ResNet(depth, version=version),
            lambda depth=depth, version=version: peers.ResNet(depth, version=version),
            (3, 224, 224),
        )
        for depth, version in [
            (18, "1.5"), (34, "1"), (50, "1"), (50, "1.5"), (50, "2"), (101, "1.5"), (152, "1.5")
        ]
    },
}  # fmt: skip
QUICK = (
    "alexnet, one tower", "zfnet", "googlenet", "googlenet, batch-norm", "nin",
    "resnet 50, version 1.5",
)  # fmt: skip
# Without batch-norm, networks of full size have values near kinks in any draw: float64 for them.
WITH_GRADIENTS = {
    "alexnet, two towers": np.float64, "googlenet": np.float64, "nin": np.float64,
    "resnet 18, version 1.5": np.float32,
}  # fmt: skip


def marked(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(FULL, QUICK))
def test_full_size(name):
    ours, peer, x, _ = pair(replace(FULL[name], batch=2))
    compare_logits(ours, peer, x, LOGITS[np.float32])


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_full_size_with_gradients(name):
    case = replace(FULL[name], batch=2)
    dtype = WITH_GRADIENTS[name]
    ours, peer, x, labels = pair(case, dtype)
    compare_logits(ours, peer, x, LOGITS[dtype])
    ours.train(), peer.train()
    compare_step(ours, peer, case.names, x, labels)


# -- dropout ---------------------------------------------------------------------------------------

WITH_DROPOUT = {
    "alexnet": (
        Case(
            lambda: alexnet.AlexNet(CLASSES, 2, 0.25, 0.5, 1),
            lambda: peers.alexnet_two_towers(CLASSES, 0.25, 0.5, 1), (3, 67, 67), None, PIXELS,
        ),
        {"drop6": "drop6", "drop7": "drop7"},
    ),
    "vgg": (
        Case(
            lambda: vgg.VGG("A", CLASSES, False, 0.125, 0.5, 1),
            lambda: peers.VGG("A", CLASSES, 0.125, 0.5, 1), (3, 32, 32), vgg.public_names("A"),
        ),
        {"drop6": "classifier.2", "drop7": "classifier.5"},
    ),
    "googlenet": (
        Case(
            lambda: googlenet.GoogLeNet(CLASSES, width=0.125, adaptive=True),
            lambda: peers.GoogLeNet(CLASSES, 0.125, adaptive=True), (3, 64, 64), None, PIXELS,
        ),
        {"dropout": "dropout", "aux1.dropout": "aux1.drop", "aux2.dropout": "aux2.drop"},
    ),
    "nin": (
        Case(lambda: nin.NIN(CLASSES, 0.25), lambda: peers.nin(CLASSES, 0.25), (3, 32, 32)),
        {"drop1": "drop1", "drop2": "drop2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_replayed(name):
    case, places = WITH_DROPOUT[name]
    ours, peer, x, labels = pair(case, np.float64)
    factors = {}
    mine, theirs = dict(ours.named_modules()), dict(peer.named_modules())
    for place, peer_place in places.items():

        def record(layer, inputs, place=place):
            state = random.get_state()
            mask = dropout_mask(inputs[0].shape, layer.p, state["seed"], state["dropout_step"])
            assert 0 < mask.mean() < 1
            factors[place] = torch.from_numpy(mask / (1 - layer.p))

        mine[place].register_forward_pre_hook(record)
        assert mine[place].p == theirs[peer_place].p
        theirs[peer_place].register_forward_hook(
            lambda layer, inputs, y, place=place: inputs[0] * factors[place]
        )
    ours.train(), peer.train()
    compare_step(ours, peer, case.names, x, labels)
    assert factors.keys() == places.keys()


# -- public weights --------------------------------------------------------------------------------

PUBLIC = {
    "alexnet": alexnet_case(1, 67, 1),
    **{
        f"vgg {config}, batch-norm {batch_norm}": vgg_case(config, batch_norm)
        for config in ("A", "B", "D", "E") for batch_norm in (False, True)
    },
    "googlenet": googlenet_case(True),
    **{f"resnet {depth}": resnet_case(depth, "1.5", None) for depth in resnet.IMAGENET_DEPTHS},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_weights_travel_both_ways(name, tmp_path):
    from safetensors.torch import load_file

    case = PUBLIC[name]
    _, peer, x, _ = pair(case)
    ours = case.ours().eval()
    state = peer.state_dict()
    assert weights.public_state(ours, case.names).keys() == state.keys()
    torch.save(state, tmp_path / "w.pth")
    weights.load_into(ours, tmp_path / "w.pth", case.names)
    compare_logits(ours, peer, x, LOGITS[np.float32])

    weights.save(tmp_path / "w.safetensors", weights.public_state(ours, case.names))
    other = case.peer().eval()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    compare_logits(ours, other, x, LOGITS[np.float32])


@pytest.mark.parametrize(
    ("config", "batch_norm", "places"),
    [
        ("A", False, "0 3 6 8 11 13 16 18"), ("B", False, "0 2 5 7 10 12 15 17 20 22"),
        ("D", False, "0 2 5 7 10 12 14 17 19 21 24 26 28"),
        ("E", False, "0 2 5 7 10 12 14 16 19 21 23 25 28 30 32 34"),
        ("D", True, "0 3 7 10 14 17 20 24 27 30 34 37 40"),
    ],
)  # fmt: skip
def test_places_of_the_convolutions_of_public_vgg(config, batch_norm, places):
    names = vgg.public_names(config, batch_norm)
    convs = [place for own, place in names.items() if own.startswith("conv")]
    assert convs == [f"features.{i}" for i in places.split()]


def test_googlenet_without_its_heads_by_the_command_line(tmp_path, capsys):
    from PIL import Image

    peer = peers.GoogLeNet(10, 0.25, batch_norm=True)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((8, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        draw(peer, x, 1.0, torch.Generator().manual_seed(0), calm=False)
    torch.save(peer.eval().state_dict(), tmp_path / "googlenet.pth")
    for split in ("train", "val"):
        for label in range(10):
            path = tmp_path / "data" / split / str(label) / "picture.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    pictures = sorted((tmp_path / "data" / "val").glob("*/*.png"))
    transform = googlenet.recipe(full=False, batch_norm=True).eval_transform
    images = transform([data.read_image(p) for p in pictures], rng)
    with torch.no_grad():
        chances = peer(torch.from_numpy(images)).softmax(1).numpy()

    network = ("--weights", tmp_path / "googlenet.pth", "--small", "--batch-norm", "--no-auxiliary")

    def run(*arguments):
        status = cli.run(googlenet.ARCHITECTURE, [str(a) for a in arguments])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    right = (chances.argmax(1) == np.arange(10)).mean()
    loss = -np.log(chances[np.arange(10), np.arange(10)]).mean()
    out = run("evaluate", *network, "--data", tmp_path / "data")
    assert out.startswith(f"10 images: accuracy {right:.2%}")
    assert abs(float(out.split("loss ")[1]) - loss) < 1e-4
    lines = run("predict", *network, pictures[3]).splitlines()[1:]
    for line, index in zip(lines, np.argsort(-chances[3])[:5], strict=True):
        name, chance = line.split()
        assert name == str(index)
        assert abs(float(chance.rstrip("%")) / 100 - chances[3, index]) < 1e-5
