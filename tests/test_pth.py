"""Archives of torch.save: read to the bit without PyTorch, refused where they are not honest.

PyTorch is no part of the tests' environment everywhere, so most archives here are assembled from
opcodes; those that PyTorch itself writes are read where it is installed.
"""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl.pth import ArchiveError, read_archive
from minidl.weights import WeightsError, read

# -- an assembler of pickles ---------------------------------------------------------------------


@dataclass
class Global:
    module: str
    name: str


@dataclass
class Call:
    function: object
    args: tuple


@dataclass
class Build:
    target: object
    state: object


@dataclass
class Persistent:
    reference: object


def opcodes(value) -> bytes:
    """The opcodes that push `value`; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return opcodes(value.function) + opcodes(value.args) + b"R"
        case Build():
            return opcodes(value.target) + opcodes(value.state) + b"b"
        case Persistent():
            return opcodes(value.reference) + b"Q"


def program(value) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


ORDERED_DICT = Call(Global("collections", "OrderedDict"), ())
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def storage(kind, numel, key="0"):
    return Persistent(("storage", Global("torch", kind), key, "cpu", numel))


def tensor(kind="FloatStorage", numel=6, size=(2, 3), stride=(3, 1), offset=0, key="0"):
    args = (storage(kind, numel, key), offset, size, stride, False, ORDERED_DICT)
    return Call(REBUILD, args)


def zip_bytes(records, compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


def archive(value, storages=None, **others) -> bytes:
    """An archive whose pickle holds `value` (bytes: is `value`); storages by key."""
    data = value if isinstance(value, bytes) else program(value)
    records = [("archive/data.pkl", data), ("archive/version", b"3\n")]
    records += [(f"archive/{name}", content) for name, content in others.items()]
    records += [(f"archive/data/{key}", raw) for key, raw in (storages or {}).items()]
    return zip_bytes(records)


SIX = np.arange(6, dtype=np.float32)
VALID = archive({"w": tensor()}, {"0": SIX.tobytes()}, byteorder=b"little")


@pytest.fixture
def load(tmp_path):
    """Reads the state dict in a file of the given bytes."""

    def load(raw):
        path = tmp_path / "weights.bin"
        path.write_bytes(raw)
        return read_archive(path)

    return load


# -- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["little", "big", None])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("HalfStorage", "f2"), ("FloatStorage", "f4"), ("DoubleStorage", "f8"), ("CharStorage", "i1"),
     ("ShortStorage", "i2"), ("IntStorage", "i4"), ("LongStorage", "i8"), ("ByteStorage", "u1")],
)  # fmt: skip
def test_every_type_in_both_byte_orders(load, kind, dtype, order):
    values = np.arange(-3, 3).astype(dtype)
    raw = values.astype(values.dtype.newbyteorder(">" if order == "big" else "<")).tobytes()
    others = {} if order is None else {"byteorder": order.encode()}
    loaded = load(archive({"w": tensor(kind)}, {"0": raw}, **others))["w"]
    assert loaded.dtype == np.dtype(dtype) and loaded.dtype.isnative
    assert loaded.tobytes() == values.tobytes() and loaded.shape == (2, 3)


@pytest.mark.parametrize("order", ["little", "big"])
def test_bfloat16_becomes_float32(load, order):
    bits = np.array([0x3F80, 0xC049, 0x7F80, 0x7FC1, 0x8000, 0x0001], np.uint16)
    raw = bits.astype("<u2" if order == "little" else ">u2").tobytes()
    loaded = load(archive({"w": tensor("BFloat16Storage")}, {"0": raw}, byteorder=order.encode()))
    expected = np.array(
        [1.0, -3.140625, np.inf, np.nan, -0.0, 2.0**-133], np.float32
    )  # the last is subnormal
    np.testing.assert_array_equal(loaded["w"].ravel(), expected)
    assert loaded["w"].dtype == np.float32 and np.signbit(loaded["w"][1, 1])


def test_bools(load):
    loaded = load(archive({"w": tensor("BoolStorage")}, {"0": bytes([0, 1, 0, 0, 1, 2])}))["w"]
    assert loaded.dtype == bool and loaded.tolist() == [[False, True, False], [False, True, True]]


@st.composite
def views(draw):
    """A view on np.arange(24) made of transpositions and slices with positive steps."""
    array = np.arange(24, dtype=np.float32).reshape(
        draw(st.sampled_from([(24,), (4, 6), (2, 3, 4)]))
    )
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    for axis in range(array.ndim):
        start = draw(st.integers(0, array.shape[axis] - 1))
        part = slice(start, draw(st.integers(start, array.shape[axis])), draw(st.integers(1, 3)))
        array = array[(slice(None),) * axis + (part,)]
        if not array.size:
            break
    return array


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(views())
def test_strides_and_offsets(load, view):
    flat = np.arange(24, dtype=np.float32)
    offset = int(view.ravel()[0]) if view.size else 0
    stride = tuple(step // 4 for step in view.strides)
    value = {"w": tensor(numel=24, size=view.shape, stride=stride, offset=offset)}
    loaded = load(archive(value, {"0": flat.tobytes()}))["w"]
    assert loaded.shape == view.shape and loaded.tolist() == view.tolist()


def test_scalars_empty_tensors_and_idle_strides(load):
    state = {
        "scalar": tensor(size=(), stride=(), offset=5),
        "empty": tensor(size=(0, 7), stride=(7, 1), offset=6),
        "nothing": tensor(numel=0, size=(0,), stride=(1,), key="1"),
        "idle": tensor(size=(1, 6), stride=(10**30, 1)),
    }
    loaded = load(archive(state, {"0": SIX.tobytes(), "1": b""}))
    assert list(loaded) == list(state)
    assert loaded["scalar"].shape == () and loaded["scalar"] == 5
    assert loaded["empty"].shape == (0, 7) and loaded["nothing"].shape == (0,)
    assert loaded["idle"].tolist() == [SIX.tolist()]


def test_shared_storages_share_read_only_memory(load):
    state = {"a": tensor(), "b": tensor(size=(6,), stride=(1,)), "c": tensor(key="1")}
    loaded = load(archive(state, {"0": SIX.tobytes(), "1": SIX.tobytes()}))
    assert np.shares_memory(loaded["a"], loaded["b"])
    assert not np.shares_memory(loaded["a"], loaded["c"])
    assert not any(array.flags.writeable for array in loaded.values())


def test_parameters_ordered_dicts_and_settings(load):
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor(), True, ORDERED_DICT))
    filled = opcodes(ORDERED_DICT) + b"(" + opcodes("w") + opcodes(parameter) + b"u"
    checkpoint = {
        "state_dict": Build(filled, {"_metadata": {"": {"version": 1}}}),
        "device": Call(Global("torch", "device"), ("cuda", 0)),
        "dtype": Global("torch", "float32"),
        "size": Call(Global("torch", "Size"), ((2, 3),)),
        "lr": 0.1,
        "best": tensor(size=(), stride=(), key="lost"),
    }
    assert load(archive(checkpoint, {"0": SIX.tobytes()}))["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_globals_on_the_stack_and_memo_of_protocol_4(load):
    rebuild = opcodes("torch._utils") + b"\x94" + opcodes("_rebuild_tensor_v2") + b"\x93\x94"
    one = tensor()
    one.function = rebuild
    again = tensor(size=(3, 2), stride=(1, 3))
    again.function = b"h\x01"
    loaded = load(archive({"a": one, "b": again}, {"0": SIX.tobytes()}))
    assert (loaded["b"] == loaded["a"].T).all()


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": state, "optimizer": {"state": {0: {"step": 1}}}},
    lambda state: {"model": {"state_dict": state}},
])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappings_and_data_parallel(load, wrap, prefix):
    state = {f"{prefix}conv.weight": tensor(), f"{prefix}model": tensor()}
    loaded = load(archive(wrap(state), {"0": SIX.tobytes()}))
    assert list(loaded) == ["conv.weight", "model"]


def test_a_part_named_module_keeps_its_name(load):
    loaded = load(archive({"module.w": tensor(), "w": tensor()}, {"0": SIX.tobytes()}))
    assert list(loaded) == ["module.w", "w"]


# -- tensors that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"offset": 1}, {"size": (2, 4)}, {"stride": (4, 1)}, {"size": (3,), "stride": (3,)},
    {"size": (7,), "stride": (0,)}, {"size": (10**9, 10**9), "stride": (0, 0)},
    {"offset": -1}, {"size": (-2, 3)}, {"stride": (-3, 1)}, {"stride": (3,)}, {"offset": 1.0},
    {"size": [2, 3]}, {"size": (2, True)}, {"size": (2, "3")}, {"offset": 2**64},
    {"stride": (2**200, 1)}, {"numel": 5}, {"numel": 7}, {"numel": -6}, {"numel": "6"},
    {"numel": 2**200}, {"size": (1,) * 65, "stride": (1,) * 65}, {"key": "1"},
    {"key": "../version"}, {"kind": "ComplexFloatStorage"}, {"kind": "float32"},
    {"size": (0, 2**62, 2**62), "stride": (0, 0, 0)},
], ids=str)  # fmt: skip
def test_tensors_beyond_their_storage_are_refused(load, wrong):
    with pytest.raises(ArchiveError):
        load(archive({"w": tensor(**wrong)}, {"0": SIX.tobytes()}))


def test_a_storage_of_two_types_is_refused(load):
    state = {"a": tensor(), "b": tensor("IntStorage")}
    with pytest.raises(ArchiveError, match="described in two ways"):
        load(archive(state, {"0": SIX.tobytes()}))


def test_an_unknown_byte_order_is_refused(load):
    with pytest.raises(ArchiveError, match="byteorder must be little or big, got b'middle'"):
        load(archive({"w": tensor()}, {"0": SIX.tobytes()}, byteorder=b"middle"))


@pytest.mark.parametrize(("value", "message"), [
    (tensor(), "it holds a tensor, not a state dict"),
    ([tensor()], "it holds a list"),
    ({"epoch": 3}, "entry 'epoch' holds a int, not a tensor"),
    ({"state_dict": {"w": [tensor()]}}, "entry 'w' holds a list"),
    ({3: tensor()}, "entry 3"),
    (Call(Global("torch._utils", "_rebuild_parameter"), (3, True, None)), "holds no tensor"),
    (Call(REBUILD, (SIX.tolist(), 0, (6,), (1,), False, None)), "without a proper storage"),
    (Call(REBUILD, ()), "damaged pickle"),
    (Persistent("storage"), "a reference to something else"),
    (Persistent(("module", Global("torch", "FloatStorage"), "0", "cpu", 6)), "a reference to"),
])  # fmt: skip
def test_what_is_no_state_dict_is_refused(load, value, message):
    with pytest.raises(ArchiveError, match=message):
        load(archive(value, {"0": SIX.tobytes()}))


# -- archives that are none ------------------------------------------------------------------------


def test_truncations_are_refused(load):
    for length in range(0, len(VALID), 3):
        with pytest.raises(ArchiveError):
            load(VALID[:length])


RECORDS = [("a/data.pkl", program({"w": tensor()})), ("a/data/0", SIX.tobytes())]
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


@pytest.mark.parametrize(("raw", "message"), [
    (b"", "neither"),
    (b"some text", "neither"),
    (pickle.dumps({}), "neither"),
    (LEGACY, r"before 1\.6; convert it once.*torch\.save\(torch\.load"),
    (zip_bytes([("a.npy", b"123")]), "not one of torch.save"),
    (zip_bytes([("data.pkl", b"123")]), "not one of torch.save"),
    (zip_bytes([*RECORDS, ("b/data.pkl", b"")]), "not one of torch.save"),
    (zip_bytes([*RECORDS, ("a/constants.pkl", b"")]), "TorchScript"),
    (zip_bytes([*RECORDS, ("data/0", b"")]), "two records of one name"),
    (zip_bytes(RECORDS, zipfile.ZIP_DEFLATED), "compressed"),
    (zip_bytes([("a/data.pkl", b"N" * (2 << 20))]), "has 2097152 bytes, at most 1048576"),
])  # fmt: skip
def test_other_files_are_refused(load, raw, message):
    with pytest.raises(ArchiveError, match=message):
        load(raw)


def test_a_changed_element_is_noticed(load):
    start = VALID.index(SIX.tobytes())
    with pytest.raises(ArchiveError, match="CRC"):
        load(VALID[:start] + b"\x01" + VALID[start + 1 :])


def claim(raw, name, size):
    """`raw` with the size of the record `name` overstated in the zip's directory."""
    start = raw.rindex(b"PK\x01\x02", 0, raw.rindex(name))
    return raw[: start + 20] + struct.pack("<II", size, size) + raw[start + 28 :]


def test_a_claim_of_more_bytes_than_the_file_has_allocates_nothing(load):
    raw = claim(VALID, b"archive/data/0", 2**31)
    tracemalloc.start()
    with pytest.raises(ArchiveError, match="claim more bytes than it has"):
        load(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# -- hostile pickles -------------------------------------------------------------------------------


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_before_it_runs(load, tmp_path, protocol):
    target = tmp_path / "made"
    for value in (Hostile(str(target)), {"state_dict": {"w": [Hostile(str(target))]}}):
        with pytest.raises(ArchiveError):
            load(archive(pickle.dumps(value, protocol)))
    assert not target.exists()


@pytest.mark.parametrize("function", [
    Global("os", "mkdir"),
    Global("builtins", "eval"),
    Global("__builtin__", "eval"),
    opcodes("os") + opcodes("mkdir") + b"\x93",
    opcodes("builtins") + opcodes("getattr") + b"\x93",
    Global("torch", "load"),
    Global("torch.nn.modules.linear", "Linear"),
    Global("minidl.pth", "_Storages"),
    Global("collections", "OrderedDict.fromkeys"),
], ids=str)  # fmt: skip
def test_other_globals_are_refused_by_name_wherever_they_stand(load, tmp_path, function):
    target = tmp_path / "made"
    call = Call(function, (str(target),))
    within = tensor()
    within.args = (call, *within.args[1:])
    hook = tensor()
    hook.args = (*hook.args[:5], call)
    for value in (call, {"w": call}, {"w": within}, {"w": hook}, {"w": tensor(), "_": [(call,)]}):
        with pytest.raises(ArchiveError, match=r"asks for [\w.]+, .*torch\.save\(model"):
            load(archive(value, {"0": SIX.tobytes()}))
    assert not target.exists()


DEEP = b")" + b"\x85" * 100_000
DOUBLING = b")q\x00" + b"h\x00h\x00\x86q\x00" * 100


@pytest.mark.parametrize(("value", "message"), [
    (b"}" + DEEP + b"Ns", "a key that is neither"),
    (b"}(" + DOUBLING + b"Nu", "a key that is neither"),
    (b"\x8f(" + DOUBLING + b"\x90", "a key that is neither"),
    (b"(" + DOUBLING + b"\x91", "a key that is neither"),
    (Call(Global("collections", "OrderedDict"), ([(DEEP, 1)],)), "damaged pickle"),
    (Build(REBUILD, (None, {"__defaults__": ()})), "changes a function or class"),
    (Build(opcodes(REBUILD) + b"q\x00h\x00", {"x": 1}), "changes a function or class"),
    (Build(tensor(), (None, {"size": ()})), "damaged pickle"),
    (b"(ios\nmkdir\n", "INST"),
    (b"\x82\x01", "EXT1"),
    (b"Pname\n", "PERSID"),
    (b"h\x07", "damaged pickle"),
    (b"t", "damaged pickle"),
    (b"R", "takes more values"),
    (b"s", "takes more values"),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_pickles_that_exhaust_or_rewrite_are_refused(load, value, message):
    with pytest.raises(ArchiveError, match=message):
        load(archive(program(value)))


@pytest.mark.parametrize("value", [
    b"Nr" + struct.pack("<I", 2**23),  # a memo index
    b"\x96" + struct.pack("<Q", 2**40),  # lengths of a bytearray, a string, bytes and a frame
    b"X" + struct.pack("<I", 2**31),
    b"B" + struct.pack("<I", 2**31),
    b"\x95" + struct.pack("<Q", 2**62),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_numbers_in_a_pickle_allocate_nothing(load, value):
    raw = archive(program(value))
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        load(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


# -- damage at random ------------------------------------------------------------------------------


@st.composite
def damaged(draw, raw):
    """`raw` with some bytes replaced, inserted or left out."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        raw[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


def check_bounded(path):
    """Reading gives small arrays or WeightsError, in little memory."""
    tracemalloc.start()
    try:
        state = read(path)
        assert all(isinstance(array, np.ndarray) for array in state.values())
    except WeightsError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 << 20


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150
)
@given(damaged(VALID))
def test_a_damaged_archive_is_read_or_refused(tmp_path, raw):
    path = tmp_path / "w.pth"
    path.write_bytes(raw)
    check_bounded(path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools on damaged names
@given(damaged(program({"state_dict": Build(ORDERED_DICT, {}), "model": {"w": tensor(), "v": 3}})))
def test_a_damaged_pickle_is_read_or_refused(tmp_path, data):
    path = tmp_path / "w.pth"
    path.write_bytes(archive(data, {"0": SIX.tobytes()}))
    check_bounded(path)


# -- files of PyTorch ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pytorch_files_are_read_to_the_bit(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    from collections import OrderedDict

    torch.manual_seed(1)
    base = torch.randn(6, 8)
    state = OrderedDict(
        plain=base,
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        transposed=base.t(),
        part=base[1:5:2, 3:],
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 4),
        boolean=torch.tensor([True, False]),
    )
    for dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.int8,
                  torch.int16, torch.int32, torch.int64, torch.uint8):  # fmt: skip
        state[str(dtype)] = (torch.randn(3, 4) * 10).abs().to(dtype).t()
    path = tmp_path / "w.pth"
    torch.save({"epoch": 2, "state_dict": state, "lr": 0.1}, path, pickle_protocol=protocol)
    loaded = read(path)
    assert list(loaded) == list(state)
    for name, value in state.items():
        value = value.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        expected = value.numpy()
        assert loaded[name].dtype == expected.dtype and loaded[name].shape == expected.shape
        assert loaded[name].tobytes() == expected.tobytes(), name
    assert np.shares_memory(loaded["plain"], loaded["transposed"])


def test_pytorch_modules_and_their_wrappers(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "w.pth"
    for saved in (model.state_dict(), torch.nn.DataParallel(model).state_dict()):
        for wrapped in (saved, {"model": saved, "optimizer": {"state": {}}}):
            torch.save(wrapped, path)
            loaded = read(path)
            assert list(loaded) == list(model.state_dict())
            for name, value in model.state_dict().items():
                assert loaded[name].tobytes() == value.numpy().tobytes()
            assert loaded["1.num_batches_tracked"].dtype == np.int64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_of_pytorch_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"

    def refused(message):
        with pytest.raises(WeightsError, match=message):
            read(path)

    state = {"w": torch.ones(2)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    refused(r"w\.pth: a file in the format of PyTorch before 1\.6; convert")
    for protocol in (2, 4):
        torch.save(torch.nn.Linear(2, 2), path, pickle_protocol=protocol)
        refused(r"asks for torch\.nn\.modules\.linear\.Linear")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    refused("TorchScript")
    torch.save({"w": torch.ones(1).expand(5)}, path)
    refused("more than its storage of 1 elements")
    torch.save({"w": torch.ones(1, dtype=torch.complex64)}, path)
    refused(r"torch\.ComplexFloatStorage")
