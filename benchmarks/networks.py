"""Training steps and inference of the networks beside PyTorch's."""

from benchmarks.collect import calls
from benchmarks.memory import peak_memory
from benchmarks.subjects import RUNS, SUBJECTS
from benchmarks.tasks import Machine, Task

_FLOOR = (
    "Floor: 2 x multiply-adds of convolutions and fully connected layers; a training step does "
    "them three times (forward, input gradient, weight gradient), except that nothing needs the "
    "gradient by the images. What the other layers cost is not in it."
)
NOTES = {
    "cpu": (
        _FLOOR,
        "Memory: peak resident memory of a fresh process that has built the network, over two "
        "runs; interpreter, libraries and network are in it, for minidl and PyTorch alike.",
    ),
    "cuda": (
        _FLOOR,
        "Times by CUDA events, both on the default stream; PyTorch in eager mode, its algorithms "
        "chosen by trial (cudnn.benchmark), its products in the precision named above.",
        "Memory: what the allocator of each has taken of the GPU's memory, at most, in a process "
        "of its own over two runs, the network included.",
    ),
}


def network_flops(model, input_shape, batch: int, training: bool) -> int:
    """Operations of convolutions and fully connected layers on a batch.

    The first layer with multiply-adds is taken to be the only one that reads the images.
    """
    counts = [c for call in calls(model, input_shape, training) if (c := call.multiply_adds)]
    total = 3 * sum(counts) - counts[0] if training else sum(counts)
    return 2 * batch * total


def tasks(wanted, machine: Machine, subjects=SUBJECTS):
    """A training step and inference of each network, as far as ``wanted(name)`` is true."""
    for subject in subjects:
        kinds = {
            training: f"{subject.name} ({subject.batch}), {kind}"
            for training, kind in ((True, "training step"), (False, "inference"))
        }
        kinds = {training: name for training, name in kinds.items() if wanted(name)}
        model = subject.build() if kinds else None
        for training, name in kinds.items():
            flops = network_flops(model, subject.input_shape, subject.batch, training)
            yield _task(name, flops, subject, training, machine)


def _task(name, flops, subject, training, machine):
    def prepare(peer):
        return {who: RUNS[who](subject, training, machine.device) for who in _candidates(peer)}

    def memory(peer):
        return {
            who: peak_memory(who, subject.name, training, machine) for who in _candidates(peer)
        }

    return Task(name, flops, 0, prepare, memory)


def _candidates(peer):
    return ("minidl", "PyTorch") if peer else ("minidl",)
