"""Weights files and names: bit for bit, checked before anything changes, readable to others."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels import dispatch
from minidl import Tensor, checkpoint, nn
from minidl.checkpoint import Checkpoint
from minidl.weights import WeightsError, load_into, public_state, read, save

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
RELAXED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100
)


def handmade(entries, metadata=None) -> bytes:
    """A safetensors file of (name, type, shape, bytes), whatever they say."""
    header = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, dtype, shape, raw in entries:
        offsets = [start, start + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(entry[3] for entry in entries)


# -- files -----------------------------------------------------------------------------------------


@RELAXED
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(
            lambda name: name != "__metadata__"
        ),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
        ),
        max_size=3,
    )
)
def test_round_trip_to_the_bit(tmp_path, state):
    path = tmp_path / "w.safetensors"
    save(path, state)
    loaded = read(path)
    assert loaded.keys() == state.keys()
    for name, array in state.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()
        assert not loaded[name].flags.writeable


def test_views_foreign_byte_orders_tied_arrays_and_tensors(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {"t": base.T, "part": base[::2, 1:], "tied": base, "swapped": base.astype(">f4")}
    path = tmp_path / "deep" / "w"
    save(path, {**state, "tensor": Tensor(base)})
    loaded = read(path)
    for name, array in {**state, "tensor": base}.items():
        assert loaded[name].dtype == np.float32 and loaded[name].flags.c_contiguous
        assert (loaded[name] == array).all()


def test_saving_a_module_for_other_tools(tmp_path):
    from safetensors import safe_open

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    path = tmp_path / "w.safetensors"
    save(path, model)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = read(path)
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype and (loaded[name] == value).all()
    assert loaded["1.num_batches_tracked"].shape == ()


@pytest.mark.parametrize("state", [
    3, [np.ones(2)], None, {3: np.ones(2)}, {"__metadata__": np.ones(2)}, {"w": [1.0]},
    {"w": 1.0}, {"w": np.ones(2, complex)}, {"w": np.array(["a"])}, {"w": np.array([None])},
    {"w": np.ones(2, np.longdouble)},
], ids=str)  # fmt: skip
def test_bad_input_is_not_saved(tmp_path, state):
    with pytest.raises((TypeError, ValueError), match="must be|cannot hold"):
        save(tmp_path / "w.safetensors", state)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save(path, {"w": np.ones(2)})
    before = path.read_bytes()

    def fail(arrays, name, metadata):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, {"w": np.zeros(2)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_model_of_a_checkpoint(tmp_path):
    path = tmp_path / "c.pth"  # the name does not matter
    model = {"a.weight": np.arange(6, dtype=np.float32), "n": np.array(3)}
    optimizer = {"groups": [], "state": {0: {"mean": np.ones(2)}}}
    checkpoint.save(path, Checkpoint(model, optimizer))
    loaded = read(path)
    assert loaded.keys() == model.keys()
    assert (loaded["a.weight"] == model["a.weight"]).all() and loaded["n"] == 3


def test_half_precision_in_safetensors(tmp_path):
    path = tmp_path / "w"
    halves = np.array([1, -2.5, np.inf], np.float16)
    bits = np.array([[0x3F80], [0xC049]], "<u2")
    path.write_bytes(
        handmade([("h", "F16", [3], halves.tobytes()), ("b", "BF16", [2, 1], bits.tobytes())])
    )
    loaded = read(path)
    assert loaded["h"].dtype == np.float16 and (loaded["h"] == halves).all()
    assert loaded["b"].dtype == np.float32 and loaded["b"].tolist() == [[1.0], [-3.140625]]


VALID = handmade(
    [("a", "F32", [2, 3], bytes(24)), ("b", "BF16", [2], bytes(4)), ("n", "I64", [], bytes(8))],
    {"format": "pt"},
)


@pytest.mark.parametrize("raw", [
    b"", b"text", b"\0" * 64, VALID[:30], VALID[:-1], VALID + b"\0",
    (2**40).to_bytes(8, "little") + b"{}", (2**64 - 1).to_bytes(8, "little") + b"{}",
    handmade([("a", "F32", [10**9, 10**9], bytes(24))]),
    handmade([("a", "F32", [2**32, 2**32], bytes(0))]),
    handmade([("a", "F32", [-1], bytes(4))]),
    handmade([("a", "F8_E4M3", [2], bytes(2))]),
    handmade([("a", "X", [2], bytes(2))]),
], ids=lambda raw: str(raw)[-20:])  # fmt: skip
def test_damaged_and_foreign_files_are_refused(tmp_path, raw):
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"^\S*w\.safetensors: "):
        read(path)


def test_missing_files(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read(path)
    with pytest.raises(FileNotFoundError, match="none"):
        load_into(nn.Linear(1, 1), tmp_path / "none")


@RELAXED
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        assert all(isinstance(array, np.ndarray) for array in read(path).values())
    except WeightsError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


# -- names -----------------------------------------------------------------------------------------

NAMES = {"conv1": "features.0", "norm1": "features.1", "fc6": "classifier.1"}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.norm1 = nn.BatchNorm2d(2)
        self.fc6 = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc6(self.norm1(self.conv1(x)).mean((2, 3)))


def copies(module):
    return {name: value.copy() for name, value in module.state_dict().items()}


def assert_same(module, state):
    for name, value in module.state_dict().items():
        assert value.dtype == state[name].dtype and value.tobytes() == state[name].tobytes(), name


@pytest.mark.parametrize("names", [None, {}, NAMES, {"": "backbone"}, {"norm1": "", "": "net.a"}])
def test_public_state_and_load_into_are_inverse(tmp_path, names):
    source, target = Small(), Small()
    source.norm1.num_batches_tracked.copy_(np.array(5))
    path = tmp_path / "w.safetensors"
    save(path, public_state(source, names))
    load_into(target, path, names)
    assert_same(target, source.state_dict())


def test_public_names():
    assert list(public_state(Small(), NAMES)) == [
        "features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias",
        "classifier.1.weight", "classifier.1.bias",
        "features.1.running_mean", "features.1.running_var", "features.1.num_batches_tracked",
    ]  # fmt: skip


def test_the_longest_prefix_on_whole_parts_counts():
    module = nn.Module()
    module.block = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module.block1 = nn.Linear(1, 1)
    names = {"block": "b", "block.1": "last", "block.1.bias": "shift", "bl": "wrong"}
    assert set(public_state(module, names)) == {
        "b.0.weight", "b.0.bias", "last.weight", "shift", "block1.weight", "block1.bias",
    }  # fmt: skip


def test_names_that_meet_or_are_no_names_are_refused():
    with pytest.raises(ValueError, match=r"fc1\.weight and fc2\.weight the one name x\.weight"):
        module = nn.Module()
        module.fc1, module.fc2 = nn.Linear(1, 1), nn.Linear(1, 1)
        public_state(module, {"fc1": "x", "fc2": "x"})
    for names in ("fc6", ["fc6"], {"fc6": 3}, {6: "fc6"}):
        with pytest.raises(TypeError, match="names must map prefixes to prefixes"):
            public_state(Small(), names)


def test_every_difference_is_listed_and_nothing_changes(tmp_path):
    module = Small()
    before = copies(module)
    state = {name: value + 1 for name, value in public_state(module, NAMES).items()}
    del state["features.0.bias"]
    state["classifier.1.weight"] = np.ones((1000, 2), np.float32)
    state["classifier.1.bias"] = np.ones(3, np.int8)
    state["classifier.6.weight"] = np.ones((2, 5), np.float32)
    path = tmp_path / "w.safetensors"
    save(path, state)
    with pytest.raises(WeightsError) as caught:
        load_into(module, path, NAMES)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path}: weights do not fit Small:"
    assert sorted(line.strip() for line in lines) == [
        "dtype    classifier.1.bias is int8, expected float32",
        "extra    classifier.6.weight (2, 5)",
        "missing  features.0.bias (2,)",
        "shape    classifier.1.weight is (1000, 2), expected (3, 2)",
    ]
    assert_same(module, before)


def test_files_without_batch_counts_keep_the_count():
    module = Small()
    module.norm1.num_batches_tracked.copy_(np.array(7))
    state = {name: value + 1 for name, value in module.state_dict().items()}
    del state["norm1.num_batches_tracked"]
    load_into(module, state)
    assert_same(module, {**state, "norm1.num_batches_tracked": np.array(7)})


def test_ignored_prefixes_of_the_file():
    module = Small()
    heads = {"aux1.fc.weight": np.ones(2), "aux2.b": np.ones(2)}
    state = {**copies(module), **heads}
    for ignore in (("aux1.", "aux2."), ["aux1", "aux2"]):
        load_into(module, state, ignore=ignore)
    with pytest.raises(WeightsError, match=r"extra    aux1\.fc\.weight \(2,\)\n .*aux2\.b \(2,\)$"):
        load_into(module, state, ignore=["aux"])
    with pytest.raises(WeightsError, match="missing  fc6.weight"):
        load_into(module, state, ignore=["aux1", "aux2", "fc6"])
    with pytest.raises(TypeError, match="ignore must be a sequence"):
        load_into(module, state, ignore="aux1")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_are_cast_to_the_module_and_tensors_are_taken(dtype):
    module = Small().to(dtype)
    state = {name: value.copy() for name, value in Small().state_dict().items()}
    mixed = {n: Tensor(a) if n.startswith("fc6") else a for n, a in state.items()}
    load_into(module, mixed)
    for name, value in module.state_dict().items():
        expected = state[name].astype(dtype) if state[name].dtype.kind == "f" else state[name]
        assert value.dtype == expected.dtype and (value == expected).all()


def test_what_is_no_state_is_refused():
    for state in (3, None, [np.ones(2)], {"weight": 3.0}, {3: np.ones(2)}):
        with pytest.raises(TypeError, match="must be"):
            load_into(nn.Linear(1, 1), state, ignore=["aux"])


# -- with PyTorch ----------------------------------------------------------------------------------


def test_weights_travel_to_pytorch_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    class Public(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv, norm = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)
            self.features = torch.nn.Sequential(conv, norm)
            self.classifier = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 3))

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    x = np.random.default_rng(1).standard_normal((2, 1, 8, 8)).astype(np.float32)
    public, ours = Public(), Small()
    public(torch.from_numpy(x))  # so that the running statistics are not the initial ones
    public.eval(), ours.eval()

    def outputs():
        with torch.no_grad(), dispatch.use("reference"):
            return ours(Tensor(x)).data, public(torch.from_numpy(x)).numpy()

    torch.save(public.state_dict(), tmp_path / "w.pth")
    load_into(ours, tmp_path / "w.pth", NAMES)
    np.testing.assert_allclose(*outputs(), rtol=1e-5, atol=1e-6)
    assert ours.norm1.num_batches_tracked.data == 1

    with ours.fc6.weight.mutate() as weight:
        weight *= 2
    save(tmp_path / "w.safetensors", public_state(ours, NAMES))
    public.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    np.testing.assert_allclose(*outputs(), rtol=1e-5, atol=1e-6)
