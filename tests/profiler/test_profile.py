"""The profile: what it counts, that it comes off, and the files it writes. No time is asserted."""

import gc
import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import minidl
from minidl import Tensor, array_module, grad, nn, no_grad, ops, optim
from minidl.data import ArrayDataset, DataLoader
from minidl.profiler import record
from minidl.tensor import _mode


class Block(nn.Module):
    """Two convolutions and a sum: an operation in a module that has children."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.block(x).mean(axis=(2, 3)))


IMAGES = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
LABELS = np.array([0, 1, 1, 0])


def step(model, optimizer):
    optimizer.zero_grad()
    ops.cross_entropy(model(Tensor(IMAGES)), LABELS).backward()
    optimizer.step()


@pytest.fixture
def trained():
    """A profile of two training steps."""
    model = Net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with minidl.profile() as profile:
        step(model, optimizer)
        step(model, optimizer)
    return profile


def row(profile, name, by="op"):
    return next(r for r in profile.rows(by) if r.name == name)


def test_calls_by_phase(trained):
    convolution = row(trained, "Conv2d")
    assert convolution.calls == {"forward": 4, "backward": 4}
    inner = {r.name: r.calls for r in convolution.inner}
    # The images need no gradient: the first convolution computes that of its weight alone.
    assert inner == {"Conv2dInputGrad": {"backward": 2}, "Conv2dWeightGrad": {"backward": 4}}
    assert row(trained, "SGD").calls == {"optimiser": 2}
    for r in trained.rows():
        assert sum(i.time for i in r.inner) <= r.nanoseconds["backward"]


def test_times_add_up_to_no_more_than_the_block(trained):
    total = sum(r.time for r in trained.rows())
    assert 0 < total <= trained.seconds * 1e9
    assert sum(r.time for r in trained.rows("module")) == total
    assert sum(r.time for r in trained.rows("shape")) == total
    for event in trained.events:
        assert event.start >= 0 and event.duration >= 0


def test_modules_are_named_by_their_path(trained):
    names = {r.name for r in trained.rows("module")}
    assert names == {"block.first", "block.second", "block", "head", "Net", "-"}
    second = row(trained, "block.second", "module")
    assert second.calls == {"forward": 2, "backward": 2}
    block = [e.name for e in trained.events if e.module == "block" and e.phase == "forward"]
    assert block == ["ReLU", "Add"] * 2


def test_shapes(trained):
    name = "Conv2d 4x3x8x8, 3x3x3x3, 3"
    assert row(trained, name, "shape").calls == {"forward": 4, "backward": 4}


def test_bytes_of_a_chain():
    x = Tensor(np.ones((10, 10), np.float32), requires_grad=True)
    with minidl.profile() as profile:
        y = x.exp()  # keeps its output
        z = y.exp()  # likewise
        w = y * z  # keeps both of its inputs, which others keep already
        total = w.reshape(100).sum()
        assert profile._memory.saved == 800
        total.backward()
        assert profile._memory.saved == 0
    events = {e.name: e for e in profile.events if e.phase == "forward"}
    assert profile.peak_saved_bytes == 800
    assert [e.saved for e in profile.events if e.name == "Exp" and not e.parent][:2] == [400, 400]
    assert events["Mul"].allocated == 400 and events["Mul"].saved == 0
    assert events["Reshape"].allocated == 0
    assert events["Sum"].allocated == 4
    assert profile.peak_bytes >= 1204


def test_parameters_are_not_counted_as_saved():
    weight = Tensor(np.ones((50, 50), np.float32), requires_grad=True)
    with minidl.profile() as profile:
        y = Tensor(np.ones((2, 50), np.float32)) @ weight
    assert profile.peak_saved_bytes == 400
    assert profile.peak_bytes == y.data.nbytes


def test_a_graph_that_is_dropped_frees_what_it_kept():
    x = Tensor(np.ones(100), requires_grad=True)
    with minidl.profile() as profile:
        y = x.exp()
        assert profile._memory.saved == profile._memory.live == 800
        del y
        gc.collect()
        total = x.detach().sum()
        assert profile._memory.saved == 0
        assert profile._memory.live == total.data.nbytes


def test_buffers_of_a_node_are_counted():
    x = Tensor(IMAGES, requires_grad=True)
    with minidl.profile() as profile:
        y = ops.local_response_norm(x, 3)
        assert profile._memory.live == 2 * IMAGES.nbytes
        y.sum().backward()
        assert profile._memory.saved == 0
    # The scale alone: the input is a leaf.
    assert profile.events[0].saved == IMAGES.nbytes
    assert profile.events[0].allocated == 2 * IMAGES.nbytes
    with no_grad(), minidl.profile() as profile:
        ops.local_response_norm(x, 3)
    assert profile.events[0].saved == 0 and profile.events[0].allocated == IMAGES.nbytes


def test_inference_keeps_nothing():
    model = Net().eval()
    with no_grad(), minidl.profile() as profile:
        model(Tensor(IMAGES))
    assert profile.peak_saved_bytes == 0 and profile.peak_bytes > 0
    assert {e.phase for e in profile.events} == {"forward", "span"}


def test_double_backward_belongs_to_the_module():
    layer = nn.Linear(3, 2)
    x = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    with minidl.profile() as profile:
        (dx,) = grad((layer(x) ** 2).sum(), x, create_graph=True)
        (dx * dx).sum().backward()
    inner = [e for e in profile.events if e.parent == "Linear"]
    assert inner and {e.module for e in inner} == {"Linear"}
    assert {e.phase for e in inner} == {"backward"}
    assert any(e.saved for e in inner)
    derived = [e for e in profile.events if e.origin is not None]
    assert any(profile.events[e.origin].phase == "backward" for e in derived)
    gc.collect()


def test_a_graph_from_before_can_be_walked():
    x = Tensor(np.ones(5), requires_grad=True)
    y = x.exp().sum()
    with minidl.profile() as profile:
        y.backward()
    assert {e.origin for e in profile.events} == {None}
    assert row(profile, "Exp").calls == {"backward": 1}


def test_results_are_those_without_a_profile():
    plain, profiled = Net(), Net()
    profiled.load_state_dict(plain.state_dict())
    step(plain, optim.SGD(plain.parameters(), 0.1))
    with minidl.profile():
        step(profiled, optim.SGD(profiled.parameters(), 0.1))
    for name, value in plain.state_dict().items():
        np.testing.assert_array_equal(value, profiled.state_dict()[name])


def test_nested_profiles_are_refused():
    with minidl.profile() as outer:
        with pytest.raises(RuntimeError, match="already running"):
            with minidl.profile():
                pass
        Tensor([1.0]).exp()
    assert [e.name for e in outer.events] == ["Exp"]
    with pytest.raises(RuntimeError, match="once"):
        with outer:
            pass
    assert _mode.profiler is None


class Broken(minidl.Function):
    def forward(self, x):
        return x

    def backward(self, grad):
        grad * 2
        raise ArithmeticError("broken")


def test_exceptions_leave_it_off():
    x = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match="shape"):
        with minidl.profile():
            x + Tensor(np.ones(4))
    assert _mode.profiler is None
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    with minidl.profile() as profile:
        with pytest.raises(ValueError):
            model(Tensor(np.ones((1, 3), np.float32)))
        with pytest.raises(ArithmeticError):
            Broken()(x).sum().backward()
        x.exp().sum().backward()
    assert _mode.profiler is None
    # What the failed backward had called is nobody's; what follows stands at the top again.
    assert [r.name for r in row(profile, "Exp").inner] == ["Mul"]
    assert row(profile, "Exp").calls == {"forward": 1, "backward": 1}
    assert {e.module for e in profile.events if e.name == "Exp"} == {""}


def test_other_threads_are_not_profiled():
    def work():
        seen.append(_mode.profiler)
        Tensor([1.0]).exp()

    seen = []
    with minidl.profile() as profile:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [None] and profile.events == []


@pytest.mark.parametrize("workers", [0, 1])
def test_beside_a_data_loader(workers):
    dataset = ArrayDataset((IMAGES * 255).astype(np.uint8), LABELS, num_classes=2)
    with minidl.profile() as profile:
        for images, _ in DataLoader(dataset, 2, workers=workers):
            Tensor(images).exp()
    assert row(profile, "Exp").calls == {"forward": 2}


def test_tables(trained, capsys):
    trained.table()
    printed = capsys.readouterr().out
    assert printed.strip() == trained.text()
    lines = printed.splitlines()
    assert lines[0].split() == [
        "op", "forward", "calls", "backward", "calls", "optimiser", "calls", "total", "share",
        "allocated", "saved",
    ]  # fmt: skip
    assert any(line.startswith("  Conv2dWeightGrad") for line in lines)
    assert "kept for backward" in lines[-1]
    for sort in ("time", "forward", "backward", "calls", "allocated", "saved"):
        values = [r._key(sort) for r in trained.rows(sort=sort)]
        assert values == sorted(values, reverse=True)
    names = [r.name for r in trained.rows(sort="name")]
    assert names == sorted(names)
    assert f"and {len(names) - 2} more" in trained.text(limit=2)
    assert "more" not in trained.text(limit=len(names))


def test_an_empty_profile_has_a_table():
    with minidl.profile() as profile:
        pass
    assert "0.000 ms in operations" in profile.text()


@pytest.mark.parametrize("wrong", [{"by": "layer"}, {"sort": "size"}, {"limit": 0}])
def test_wrong_arguments(trained, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        trained.text(**wrong)


def test_chrome_trace(trained, tmp_path):
    path = tmp_path / "new" / "trace.json"
    trained.chrome_trace(path)
    assert [p.name for p in path.parent.iterdir()] == ["trace.json"]
    events = json.loads(path.read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(trained.events)
    assert {e["cat"] for e in spans} == {"forward", "backward", "optimiser", "span"}
    # On one row, slices must nest: viewers drop one that overlaps another by a part.
    open_until = []
    for e in sorted(spans, key=lambda e: (e["ts"], -e["dur"])):
        while open_until and open_until[-1] <= e["ts"] + 1e-6:
            open_until.pop()
        end = e["ts"] + e["dur"]
        assert not open_until or end <= open_until[-1] + 1e-6
        open_until.append(end)
    starts = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and all(starts[i] <= ends[i] for i in starts)
    assert all(set(e["args"]) == {"arrays", "kept for backward"} for e in events if e["ph"] == "C")


def test_a_trace_that_cannot_be_written_leaves_nothing(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        trained.chrome_trace(tmp_path / "file" / "trace.json")


class FakeArray:
    """An array on a device that computes while the program goes on."""

    waited = 0


def test_the_end_of_a_step_is_waited_for(monkeypatch):
    """The kernels of an optimiser's step on a GPU end after the call that starts them."""
    waited = []
    monkeypatch.setattr(record, "synchronize", waited.append)
    p = Tensor(np.ones(2), requires_grad=True)
    p.grad = Tensor(np.ones(2))
    with minidl.profile():
        optim.SGD([p], 0.1).step()
    assert len(waited) == 1 and waited[0] is p._array


def test_a_gpu_is_waited_for(monkeypatch):
    def synchronize():
        FakeArray.waited += 1

    stream = SimpleNamespace(synchronize=synchronize)
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=FakeArray, cuda=cuda))
    array_module.synchronize(np.ones(1))
    assert FakeArray.waited == 0
    array_module.synchronize(FakeArray())
    assert FakeArray.waited == 1
