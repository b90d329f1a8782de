"""World: the ranks that mpiexec started, and what they can do together.

All collectives are non-blocking underneath and waited for by polling, so that a rank whose partner
never comes says so after a time-out instead of hanging. As with all of MPI, every rank must call
the collectives of a world in the same order.
"""

import os
import time
from typing import NamedTuple

import numpy as np

from minidl.array_module import device_of, get_array_module

DEFAULT_TIMEOUT = 600.0  # seconds: longer than any rank compiles, saves or reads alone
MPI_HINT = "mpi4py with an MPI library is needed: pip install -e '.[distributed]'"
_SPIN = 1e-3  # seconds of polling at full speed before a waiting rank leaves its core to others
_NAP = 5e-5


class CollectiveTimeout(RuntimeError):
    """Another rank did not come to a collective in time."""


def join(timeout: float = DEFAULT_TIMEOUT) -> "World":
    """The world of all ranks that mpiexec started, or of this process alone without mpiexec.

    `timeout`: seconds after which waiting for other ranks is given up. Raises ValueError for one
    that is not above 0, RuntimeError without mpi4py or an MPI library.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0, got {timeout}")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter: no MPI library is found
        raise RuntimeError(MPI_HINT) from error
    local = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    own = _cores()
    cores = len(own), len(set().union(*local.allgather(own)))
    place = _Place(local.rank, local.size, *cores)
    local.Free()
    return World(MPI.COMM_WORLD, MPI.COMM_WORLD.Dup(), timeout, place)


class _Place(NamedTuple):
    """Where a rank stands on its machine, and the cores that it, and all ranks there, may use."""

    local_rank: int
    local_size: int
    own_cores: int
    all_cores: int


class World:
    """A group of ranks with a channel of its own: collectives of two worlds do not mix.

    `rank` of `size`; `local_rank` of `local_size` on this machine. Arrays are contiguous, NumPy's
    or CuPy's, of equal shape and dtype on all ranks. `what` names a collective in the message of
    CollectiveTimeout, which all of them raise. Made by `join`.
    """

    def __init__(self, comm, failures, timeout: float, place: _Place):
        self.timeout = timeout
        self.rank, self.size = comm.rank, comm.size
        self.local_rank, self.local_size = place.local_rank, place.local_size
        self._place = place
        self._parent = comm
        self._failures = failures  # where the ranks tell each other that they have failed
        self._comm, request = comm.Idup()
        _MpiPending(self, request, "a channel of their own").wait()
        self._nccl = None

    @property
    def is_chief(self) -> bool:
        """True on rank 0, which writes files and reports."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What messages call this process."""
        return f"rank {self.rank} of {self.size}"

    def duplicate(self) -> "World":
        """The same ranks with another channel; every rank must call it."""
        return World(self._parent, self._failures, self.timeout, self._place)

    def threads(self) -> int:
        """This rank's part of its machine's cores, at least 1.

        Cores are those that the ranks may run on together: a launcher that binds each rank to some
        of them has divided them already.
        """
        place = self._place
        return max(1, min(place.own_cores, place.all_cores // place.local_size))

    # -- collectives -----------------------------------------------------------------------------

    def start_sum(self, array, what: str) -> "Pending":
        """Begin to replace `array` by its sum over the ranks; leave it alone until `wait`."""
        if device_of(array) == "cuda":
            return self._on_gpu().start_sum(array, what)
        from mpi4py import MPI

        return _MpiPending(self, self._comm.Iallreduce(MPI.IN_PLACE, array), what)

    def sum(self, array, what: str) -> None:
        """Replace `array` by its sum over the ranks."""
        self.start_sum(array, what).wait()

    def all_agree(self, wish: bool, what: str) -> bool:
        """Whether all ranks wish it."""
        against = np.array([not wish], np.int64)
        self.sum(against, what)
        return not against[0]

    def broadcast(self, array, what: str) -> None:
        """Replace `array` by that of rank 0."""
        if device_of(array) == "cuda":
            self._on_gpu().start_broadcast(array, what).wait()
        else:
            _MpiPending(self, self._comm.Ibcast(array), what).wait()

    def all_gather(self, array, what: str):
        """(size, *shape): the arrays of all ranks."""
        gathered = get_array_module(array).empty((self.size, *array.shape), array.dtype)
        if device_of(array) == "cuda":
            self._on_gpu().start_all_gather(array, gathered, what).wait()
        else:
            _MpiPending(self, self._comm.Iallgather(array, gathered), what).wait()
        return gathered

    def reduce_scatter(self, array, what: str):
        """From (size, *shape), the sum over the ranks of entry `rank`: (*shape)."""
        if array.shape[0] != self.size:
            raise ValueError(f"array must have {self.size} entries, a rank each: {array.shape}")
        part = get_array_module(array).empty(array.shape[1:], array.dtype)
        if device_of(array) == "cuda":
            self._on_gpu().start_reduce_scatter(array, part, what).wait()
        else:
            request = self._comm.Ireduce_scatter_block(array, part)
            _MpiPending(self, request, what).wait()
        return part

    def _on_gpu(self):
        if self._nccl is None:
            from minidl.distributed.nccl import Nccl

            self._nccl = Nccl(self, self._comm)
        return self._nccl

    def broadcast_state(self, tensors, what: str) -> None:
        """Overwrite tensors, a mapping name -> Tensor, by those of rank 0."""
        for name, tensor in tensors.items():
            with tensor.mutate() as array:
                # Of parts of larger arrays MPI would need a description.
                buffer = get_array_module(array).ascontiguousarray(array)
                self.broadcast(buffer, f"{what} ({name})")
                array[...] = buffer

    # -- the end ---------------------------------------------------------------------------------

    def failures(self, message: str, patience: float) -> list[str] | None:
        """The messages of all ranks if all have failed within `patience` seconds, else None."""
        size = 1000
        own = np.zeros(size, np.uint8)
        text = np.frombuffer(message.encode()[:size], np.uint8)
        own[: len(text)] = text
        gathered = np.empty((self.size, size), np.uint8)
        request = self._failures.Iallgather(own, gathered)
        if not _poll(request.Test, patience):
            return None
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gathered]

    def abort(self, status: int) -> None:
        """End all ranks at once; mpiexec then exits with `status`."""
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(status)


class Pending:
    """A collective under way. `test` must be called now and then for it to go on: see `wait`."""

    def __init__(self, world: World, what: str):
        self._world = world
        self._what = what

    def test(self) -> bool:
        """Whether it is done; takes it a step further."""
        raise NotImplementedError

    def wait(self) -> None:
        """Return when it is done. Raises CollectiveTimeout where that takes too long."""
        if not _poll(self.test, self._world.timeout):
            raise CollectiveTimeout(
                f"waited {self._world.timeout:g} s for the other ranks at: {self._what}. One of "
                "them is stuck or has gone another way"
            )


class _MpiPending(Pending):
    """On CPUs: MPI moves data only while it is called, so that `test` is what overlaps."""

    def __init__(self, world, request, what):
        super().__init__(world, what)
        self._request = request  # keeps the buffers, too

    def test(self):
        return self._request.Test()


def _poll(test, seconds) -> bool:
    """Call `test` until it is True; False after so many seconds."""
    if test():
        return True
    start = time.monotonic()
    while not test():
        waited = time.monotonic() - start
        if waited > seconds:
            return False
        time.sleep(0 if waited < _SPIN else _NAP)
    return True


def _cores() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
