"""Training by several processes ("ranks") that `mpiexec` starts, on one machine or many.

Data-parallel: every rank has the whole network and computes on its part of each batch; gradients
are averaged (`GradientAverager`), batch-norm statistics too where asked for
(`synchronize_batch_norm`). `DataParallel` is the team that a `minidl.train.Trainer` works in.
Model-parallel: `all_gather` hands activations from rank to rank.

On CPUs the ranks talk by MPI (mpi4py), on GPUs by NCCL through CuPy's binding. Neither is imported
before `join`.
"""

from minidl.distributed.batch_norm import SyncBatchNorm2d, synchronize_batch_norm
from minidl.distributed.data_parallel import DataParallel
from minidl.distributed.exchange import all_gather
from minidl.distributed.gradients import DEFAULT_BUCKET_BYTES, GradientAverager
from minidl.distributed.world import DEFAULT_TIMEOUT, CollectiveTimeout, World, join

__all__ = [
    "DEFAULT_BUCKET_BYTES",
    "DEFAULT_TIMEOUT",
    "CollectiveTimeout",
    "DataParallel",
    "GradientAverager",
    "SyncBatchNorm2d",
    "World",
    "all_gather",
    "join",
    "synchronize_batch_norm",
]
