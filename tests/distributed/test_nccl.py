"""What is asked of CuPy's NCCL, against a stand-in with the signatures of its documentation.

It shows no more than that the calls are well formed: the path has not been run on GPUs.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minidl.distributed.nccl import Nccl, select_gpu
from minidl.distributed.world import CollectiveTimeout


class Communicator:
    """cupy.cuda.nccl.NcclCommunicator(ndev, commId, rank)"""

    def __init__(self, ndev, commId, rank):  # noqa: N803
        self.asked = []
        assert (ndev, commId, rank) == (4, b"key", 1)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
        self.asked.append(("allReduce", sendbuf, recvbuf, count, datatype, op, stream))

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        self.asked.append(("broadcast", sendbuff, recvbuff, count, datatype, root, stream))

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802
        self.asked.append(("allGather", sendbuf, recvbuf, count, datatype, stream))

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):  # noqa: N802
        self.asked.append(("reduceScatter", sendbuf, recvbuf, recvcount, datatype, op, stream))


class Stream:
    ptr = 77

    def __init__(self, non_blocking=False):
        self.done = True
        self.waited = []

    def record(self, event=None):
        return SimpleNamespace(done=self.done)

    def wait_event(self, event):
        self.waited.append(event)


class Array:
    """A CuPy array as far as NCCL is concerned: an address, a size and a dtype."""

    def __init__(self, address, size, dtype="float32"):
        self.data = SimpleNamespace(ptr=address)
        self.size, self.dtype = size, np.dtype(dtype)


WORLD = SimpleNamespace(rank=1, size=4, local_rank=1, local_size=2, timeout=0.01)


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, with two GPUs."""
    nccl = ModuleType("cupy.cuda.nccl")
    for number, name in enumerate(("SUM", "FLOAT16", "FLOAT32", "FLOAT64", "INT64")):
        setattr(nccl, f"NCCL_{name}", f"{name}{number}")
    nccl.available = True
    nccl.NcclCommunicator = Communicator
    nccl.get_unique_id = lambda: b"another key"
    module, module.cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    module.cuda.nccl = nccl
    module.cuda.Stream = Stream
    module.cuda.get_current_stream = Stream
    module.cuda.runtime = SimpleNamespace(getDeviceCount=lambda: 2)
    module.is_available = lambda: True
    module.used = []
    module.cuda.Device = lambda n=0: SimpleNamespace(
        use=lambda: module.used.append(n), compute_capability="90"
    )
    for name, part in (("", module), (".cuda", module.cuda), (".cuda.nccl", nccl)):
        monkeypatch.setitem(sys.modules, f"cupy{name}", part)
    return module


class Comm:
    def bcast(self, key):
        assert key is None  # rank 1 asks, rank 0 tells
        return b"key"


def test_calls(cupy):
    nccl = Nccl(WORLD, Comm())
    assert cupy.used == [1]
    nccl.start_sum(Array(10, 6), "").wait()
    nccl.start_broadcast(Array(11, 6, "float64"), "").wait()
    nccl.start_all_gather(Array(12, 6), Array(13, 24), "").wait()
    nccl.start_reduce_scatter(Array(14, 24, "int64"), Array(15, 6, "int64"), "").wait()
    assert nccl._comm.asked == [
        ("allReduce", 10, 10, 6, "FLOAT322", "SUM0", 77),
        ("broadcast", 11, 11, 6, "FLOAT643", 0, 77),
        ("allGather", 12, 13, 6, "FLOAT322", 77),
        ("reduceScatter", 14, 15, 6, "INT644", "SUM0", 77),
    ]
    assert len(nccl._stream.waited) == 4  # each after what the kernels before have written


def test_a_gpu_that_never_comes_to_the_end(cupy):
    nccl = Nccl(WORLD, Comm())
    nccl._stream.done = False
    with pytest.raises(CollectiveTimeout, match=r"waited 0.01 s .* at: the sum"):
        nccl.start_sum(Array(10, 6), "the sum").wait()


def test_what_is_missing(cupy, monkeypatch):
    cupy.cuda.nccl.available = False
    with pytest.raises(RuntimeError, match="NCCL is needed"):
        Nccl(WORLD, Comm())
    crowded = SimpleNamespace(local_rank=2, local_size=3)
    with pytest.raises(RuntimeError, match="3 ranks on a machine with 2 GPUs"):
        select_gpu(crowded)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="cuda12"):
        select_gpu(WORLD)
