"""The collectives of a World on GPUs: NCCL through CuPy's binding, a GPU a rank.

NCCL works on a stream of its own beside backward's kernels; events tell either side when the other
is ready.
"""

from kernels.cuda import runtime
from minidl.distributed.world import Pending


class Nccl:
    """NCCL among the ranks of `world`, whose MPI communicator hands the key around.

    Rank l of a machine takes its GPU l. Raises RuntimeError without CuPy, NCCL or enough GPUs.
    """

    def __init__(self, world, comm):
        select_gpu(world)
        import cupy
        from cupy.cuda import nccl

        if not nccl.available:
            raise RuntimeError("NCCL is needed: pip install nvidia-nccl-cu12 (or -cu13)")
        key = comm.bcast(nccl.get_unique_id() if world.rank == 0 else None)
        self._cupy = cupy
        self._world = world
        self._comm = nccl.NcclCommunicator(world.size, key, world.rank)
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._sum = nccl.NCCL_SUM
        self._types = {
            "float16": nccl.NCCL_FLOAT16, "float32": nccl.NCCL_FLOAT32,
            "float64": nccl.NCCL_FLOAT64, "int64": nccl.NCCL_INT64,
        }  # fmt: skip

    def start_sum(self, array, what):
        return self._start(
            what, (array,), self._comm.allReduce, array.data.ptr, array.data.ptr, array.size,
            self._types[array.dtype.name], self._sum,
        )  # fmt: skip

    def start_broadcast(self, array, what):
        return self._start(
            what, (array,), self._comm.broadcast, array.data.ptr, array.data.ptr, array.size,
            self._types[array.dtype.name], 0,
        )  # fmt: skip

    def start_all_gather(self, array, gathered, what):
        return self._start(
            what, (array, gathered), self._comm.allGather, array.data.ptr, gathered.data.ptr,
            array.size, self._types[array.dtype.name],
        )  # fmt: skip

    def start_reduce_scatter(self, array, part, what):
        return self._start(
            what, (array, part), self._comm.reduceScatter, array.data.ptr, part.data.ptr,
            part.size, self._types[array.dtype.name], self._sum,
        )  # fmt: skip

    def _start(self, what, arrays, operation, *arguments):
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        operation(*arguments, self._stream.ptr)
        return _NcclPending(self._world, self._stream.record(), arrays, what)


class _NcclPending(Pending):
    """Done when the GPU has come to the event behind it."""

    def __init__(self, world, event, arrays, what):
        super().__init__(world, what)
        self._event = event
        self._arrays = arrays  # their memory must not be given to others before

    def test(self):
        return self._event.done


def select_gpu(world) -> None:
    """Let this rank work on the GPU of its number on this machine.

    Raises RuntimeError without CuPy or where there are fewer GPUs than ranks.
    """
    runtime.require()
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    if world.local_rank >= count:
        raise RuntimeError(f"{world.local_size} ranks on a machine with {count} GPUs: one each")
    cupy.cuda.Device(world.local_rank).use()
