"""What the tests run on several ranks: ``mpiexec -n N python program.py FUNCTION ARGUMENTS``.

Each function checks its own rank; a failed assertion ends the job.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import minidl
from architectures import alexnet, lenet
from architectures.alexnet_two_gpus import Tower, TwoTowers, half
from architectures.resnet import ResNet
from minidl import Tensor, cli, data, distributed, nn, ops, optim
from minidl.amp import GradScaler
from minidl.cli.distributed import ended_together
from minidl.evaluation import evaluate
from minidl.train import Trainer

IMAGES = 35  # batches of 16, 16 and 3: uneven parts, and on four ranks one that is empty
BATCH = 16


# -- data-parallel training is training ------------------------------------------------------------


def subjects(name, dtype):
    """(network, images) of a test; no dropout, no augmentation."""
    draw = np.random.default_rng(3)
    minidl.manual_seed(5)
    if name == "lenet":
        model, shape = lenet.build(), (1, 32, 32)
    else:
        model, shape = ResNet(20, 10, width=0.25), (3, 16, 16)
    images = draw.standard_normal((IMAGES, *shape)).astype(np.float32)
    return model.to(dtype), data.ArrayDataset(images, draw.integers(0, 10, IMAGES), 10)


class ToDtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, images, rng):
        return images.astype(self.dtype)


def train(name, dtype, directory, team=None):
    """Two epochs; returns (state, rows). A team of None: the one process that others must equal.

    dtype float16: in mixed precision, by a scale that gradients of sums over samples overflow; the
    state then holds the scaler's, too.
    """
    scaler = GradScaler(2.0**18) if dtype == "float16" else None
    dtype = "float32" if scaler else dtype
    model, images = subjects(name, np.dtype(dtype))
    rank, size = (team.rank, team.size) if team else (0, 1)
    if team and name == "resnet":
        distributed.synchronize_batch_norm(model, team)
    loader = data.DataLoader(
        images, BATCH, shuffle=True, seed=2, transform=ToDtype(dtype), shard=(rank, size)
    )
    part = np.arange(IMAGES)[data.shard_slice(IMAGES, rank, size)]
    tests = data.DataLoader(images.subset(part), 7, transform=ToDtype(dtype))
    optimizer = optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    trainer = Trainer(
        model, optimizer, loader, tests, lambda m, y, t: ops.cross_entropy(y, t), directory, 2,
        clip_norm=5.0, team=team, scaler=scaler,
    )  # fmt: skip
    if rank:
        model.load_state_dict({n: a * 0 for n, a in model.state_dict().items()})  # rank 0's count
    rows = trainer.run()
    state = {**model.state_dict(), **(scaler.state_dict() if scaler else {})}
    return state, [{k: v for k, v in r.items() if k != "samples_per_s"} for r in rows]


def equal(name, dtype, directory):
    """What the ranks have learned, into a file a rank."""
    world = distributed.join()
    team = distributed.DataParallel(world, bucket_bytes=20_000)
    state, rows = train(name, dtype, Path(directory) / "run", team)
    np.savez(Path(directory) / f"rank{world.rank}.npz", rows=np.array(repr(rows)), **state)


def unsynchronised(directory):
    """Without --sync-batch-norm all ranks test, and keep, the running statistics of rank 0."""
    world = distributed.join()
    model, images = subjects("resnet", np.dtype("float32"))
    shard = (world.rank, world.size)
    loader = data.DataLoader(images, BATCH, shuffle=True, seed=2, shard=shard)
    part = np.arange(IMAGES)[data.shard_slice(IMAGES, *shard)]
    trainer = Trainer(
        model, optim.SGD(model.parameters(), 0.02), loader, data.DataLoader(images.subset(part), 7),
        lambda m, y, t: ops.cross_entropy(y, t), directory, 1, team=distributed.DataParallel(world),
    )  # fmt: skip
    (row,) = trainer.run()
    for name, array in model.state_dict().items():
        everyones = world.all_gather(array.copy(), name)
        assert (everyones == everyones[0]).all(), name
    tested = evaluate(model, data.DataLoader(images, 35), trainer.loss_function)
    np.testing.assert_allclose(row["test_loss"], tested.loss, rtol=1e-5)
    assert row["test_accuracy"] == tested.accuracy


# -- parts -----------------------------------------------------------------------------------------


def collectives():
    """Every collective against NumPy; names, cores and GPUs of ranks."""
    world = distributed.join()
    rank, size = world.rank, world.size
    assert world.name == f"rank {rank} of {size}" and world.is_chief == (rank == 0)
    assert world.local_size == size and 1 <= world.threads() <= max(1, len_cores() // size)
    for dtype in (np.float32, np.float64, np.int64):
        every = np.arange(size * 6, dtype=dtype).reshape(size, 2, 3) ** 2
        total = every[rank].copy()
        world.sum(total, "a sum")
        np.testing.assert_array_equal(total, every.sum(axis=0))
        np.testing.assert_array_equal(world.all_gather(every[rank].copy(), "all"), every)
        parts = np.stack([every[rank] + part for part in range(size)])
        mine = world.reduce_scatter(parts, "parts")
        np.testing.assert_array_equal(mine, every.sum(axis=0) + size * rank)
        first = every[rank].copy()
        world.broadcast(first, "rank 0's")
        np.testing.assert_array_equal(first, every[0])
    strided = Tensor(np.full((4, 4), float(rank), np.float32)[:, ::2])
    world.broadcast_state({"strided": strided}, "state")
    assert (strided.data == 0).all()
    other = world.duplicate()  # collectives of two worlds may overtake each other
    one, two = np.ones(3), np.ones(5)
    pending = [w.start_sum(a, "") for w, a in ((world, one), (other, two))[:: 1 - 2 * (rank % 2)]]
    for waiting in pending:
        waiting.wait()
    assert (one == size).all() and (two == size).all()


def len_cores():
    from minidl.distributed.world import _cores

    return len(_cores())


def batch_norm(dtype):
    """SyncBatchNorm2d on uneven parts, one rank's not counted, against BatchNorm2d on all."""
    world = distributed.join()
    team = distributed.DataParallel(world)
    draw = np.random.default_rng(0)
    sizes = [3, 1, 2, 0][: world.size]
    x = (draw.standard_normal((sum(sizes), 5, 3, 2)) * 2 + 30).astype(dtype)
    dy = draw.standard_normal(x.shape).astype(dtype)
    whole, shared = (nn.Sequential(nn.BatchNorm2d(5)).to(dtype) for _ in range(2))
    for model in (whole, shared):
        model[0].weight.copy_(np.linspace(0.5, 2, 5))
        model[0].bias.copy_(np.linspace(-1, 1, 5))
    distributed.synchronize_batch_norm(shared, team)
    assert type(shared[0]) is distributed.SyncBatchNorm2d
    assert list(shared.state_dict()) == list(whole.state_dict())
    tolerance = {"rtol": 0, "atol": 2e-5 if dtype == "float32" else 1e-12}
    for _ in range(2):
        everything = Tensor(x, requires_grad=True)
        y = whole(everything)
        y.backward(dy)
        start = sum(sizes[: world.rank])
        part = slice(start, start + sizes[world.rank])
        team.samples = sizes[world.rank]
        counts = team.samples > 0
        mine = Tensor(x[part] if counts else x[:1] * 100, requires_grad=True)
        ours = shared(mine)
        ours.backward(dy[part] if counts else np.zeros_like(x[:1]))
        if counts:
            np.testing.assert_allclose(ours.detach().numpy(), y.detach().numpy()[part], **tolerance)
            dx = everything.grad.numpy()[part]
            np.testing.assert_allclose(mine.grad.numpy(), dx, **tolerance)
        else:
            assert (mine.grad.numpy() == 0).all()
        for a, b in zip(shared.parameters(), whole.parameters(), strict=True):
            assert a.dtype == dtype
            total = a.grad.numpy().copy()
            world.sum(total, "gradients")
            np.testing.assert_allclose(total, b.grad.numpy(), **tolerance)
    for (name, a), b in zip(shared.named_buffers(), whole.buffers(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, err_msg=name)
        assert len(np.unique(world.all_gather(a.numpy().copy(), name), axis=0)) == 1
    shared.eval()
    np.testing.assert_array_equal(
        shared(Tensor(x)).detach().numpy(), whole_in_evaluation(shared, x)
    )
    one = np.ones((1, 5, 1, 1), dtype)
    shared.train()
    team.samples = int(world.is_chief)
    try:
        shared(Tensor(one))
    except ValueError as error:
        assert "more than one value" in str(error)
    else:
        raise AssertionError("one value a channel on all ranks together")


def whole_in_evaluation(shared, x):
    plain = nn.BatchNorm2d(5).to(x.dtype)
    plain.load_state_dict(shared[0].state_dict())
    return plain.eval()(Tensor(x)).detach().numpy()


class Branches(nn.Module):
    """Rank 0 passes through `a`, the others through `b`, nobody through `idle`."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        self.a, self.b, self.idle = (nn.Linear(3, 2) for _ in range(3))
        self.last = nn.Linear(2, 1)

    def forward(self, x):
        return self.last(self.b(x) if self.rank else self.a(x))


def unused():
    """Gradients of parameters that some ranks, or all, have not used."""
    world = distributed.join()
    model = Branches(world.rank).to(np.float64)
    world.broadcast_state(model._state(), "weights")
    x = np.full((1, 3), world.rank + 1.0)
    averager = distributed.GradientAverager(world, model.named_parameters(), bucket_bytes=50)
    for _ in range(2):
        model.zero_grad()
        averager.begin()
        model(Tensor(x)).sum().backward()
        alone = {name: None if p.grad is None else p.grad.numpy().copy()
                 for name, p in model.named_parameters()}  # fmt: skip
        averager.finish(world.size)
        for name, p in model.named_parameters():
            if name.startswith("idle"):
                assert p.grad is None
                continue
            own = np.zeros(p.shape) if alone[name] is None else alone[name]
            everyones = world.all_gather(own, name)
            np.testing.assert_allclose(p.grad.numpy(), everyones.mean(axis=0), 1e-12)
    averager.close()
    model.zero_grad()
    model(Tensor(x)).sum().backward()  # without the averager each rank is by itself
    assert (model.b.weight.grad is None) == (world.rank == 0)


def usable():
    """A gradient that is not finite on one rank: all leave the step out, and halve the scale."""
    world = distributed.join()
    for team in (distributed.DataParallel(world), TwoTowers(world)):
        weight = Tensor(np.ones(2, np.float32), requires_grad=True)
        scaler = GradScaler(8.0)
        for spoiled, factor in ((False, 8), (True, 4), (False, 4)):
            value = np.inf if spoiled and world.rank == 1 else 16
            weight.grad = Tensor(np.full(2, value, np.float32))
            assert scaler.unscale_([weight], team.agree) is not spoiled
            assert scaler.factor == factor
            assert weight.grad is None if spoiled else (weight.grad.data == 16 / factor).all()


# -- model-parallel --------------------------------------------------------------------------------


def exchange():
    """`all_gather` forward, backward and twice backward, against the same in one process."""
    world = distributed.join()
    draw = np.random.default_rng(1)
    parts = draw.standard_normal((world.size, 2, 3, 2))
    weights = draw.standard_normal((world.size, 2, 3 * world.size, 2))

    def loss(gathered, rank):
        return (gathered * gathered * gathered * weights[rank]).sum()

    leaves = [Tensor(part, requires_grad=True) for part in parts]
    together = ops.concatenate(leaves, axis=1)
    total = sum(loss(together, rank) for rank in range(world.size))
    expected = minidl.grad(total, leaves, create_graph=True)
    (twice,) = minidl.grad(sum((g * g).sum() for g in expected), leaves[world.rank])
    mine = Tensor(parts[world.rank], requires_grad=True)
    gathered = distributed.all_gather(mine, world)
    np.testing.assert_array_equal(gathered.detach().numpy(), together.detach().numpy())
    (first,) = minidl.grad(loss(gathered, world.rank), mine, create_graph=True)
    np.testing.assert_allclose(first.detach().numpy(), expected[world.rank].detach().numpy(), 1e-12)
    (second,) = minidl.grad((first * first).sum(), mine)
    np.testing.assert_allclose(second.numpy(), twice.numpy(), 1e-10)


def towers(dtype):
    """Outputs and gradients of AlexNet on two ranks against the whole network in one process."""
    world = distributed.join()
    minidl.manual_seed(4)
    whole = alexnet.AlexNet(10, towers=2, width=0.25, dropout=0.0, grid=1)
    alexnet.initialize(whole)
    draw = np.random.default_rng(2)
    for name, p in whole.named_parameters():
        if name.endswith("bias"):
            p.copy_(draw.normal(0, 0.1, p.shape))
    # Inputs large enough for response normalisation to matter.
    x = Tensor((draw.standard_normal((4, 3, 67, 67)) * 60).astype(dtype))
    labels = draw.integers(0, 10, 4)
    tower = Tower(world, 10, width=0.25, dropout=0.0, grid=1)
    tower.load_state_dict(half(whole.state_dict(), world.rank))
    whole.to(dtype)
    tower.to(dtype)
    expected = whole(x)
    (ops.cross_entropy(expected * 0.01, labels)).backward()
    outputs = tower(x)
    (ops.cross_entropy(outputs * 0.01, labels)).backward(np.asarray(0.5, dtype))
    close = 1e-5 if dtype == "float32" else 1e-10
    agree(outputs.detach().numpy(), expected.detach().numpy(), close)
    gradients = half({n: p.grad.numpy() for n, p in whole.named_parameters()}, world.rank)
    for name, p in tower.named_parameters():
        agree(p.grad.numpy(), gradients[name], close, name)


def agree(actual, expected, close, name="outputs"):
    """Within `close` of the largest value."""
    largest = np.abs(expected).max()
    assert largest > 0, name
    np.testing.assert_allclose(actual, expected, rtol=0, atol=close * largest, err_msg=name)


# -- what goes wrong -------------------------------------------------------------------------------


def command(wish, *arguments):
    """The command line of LeNet, on which `wish` is played in step 3 of rank 1."""
    step, steps = Trainer._step, []

    def spoiled(self, images, labels):
        steps.append(1)
        if self.team.rank == 1 and len(steps) == 3:
            if wish == "raise":
                raise ValueError("planted")
            if wish == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if wish == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if wish == "hang":
                time.sleep(3600)
        step(self, images, labels)

    Trainer._step = spoiled
    return cli.run(lenet.ARCHITECTURE, list(arguments))


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "command":
        sys.exit(command(*arguments))
    with ended_together(distributed.join()):
        globals()[name](*arguments)
