"""Training steps and inference of the networks beside PyTorch's."""

from dataclasses import replace

from benchmarks import cuda
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
        "Times by CUDA events, all on the default stream; PyTorch's algorithms chosen by trial "
        "(cudnn.benchmark), its products in the precision named above. Captured: forward, loss and "
        "backward replayed as a CUDA graph, the optimiser's step as ever; speed and what is "
        "reached are of that. Ratios: to PyTorch in eager mode.",
        "Memory: what the allocator of each has taken of the GPU's memory, at most, over three "
        "runs, the network and the graph's own pool included.",
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
        # On a GPU it is counted there, too: the CPU would first have to compile its kernels. There
        # what is measured is copied from it, since large networks take seconds to draw.
        model = subject.build().to(machine.device) if kinds else None
        if machine.device == "cuda":
            subject = replace(subject, network=model)
        for training, name in kinds.items():
            flops = network_flops(model, subject.input_shape, subject.batch, training)
            yield _task(name, flops, subject, training, machine)


def _task(name, flops, subject, training, machine):
    on_gpu = machine.device == "cuda"
    made = {}  # what memory was measured of, or what compiled for that, lives on to be timed

    def make(who):
        return RUNS[who](subject, training, machine.device)

    def memory(peer):
        if not on_gpu:
            made["minidl"] = make("minidl")
            made["minidl"]()  # a fresh process then finds its kernels in Numba's cache
            names = _candidates(peer, on_gpu)
            return {who: peak_memory(who, subject.name, training, machine) for who in names}
        taken = {}
        for who in _candidates(peer, on_gpu):
            made[who], taken[who] = cuda.made(who, lambda who=who: make(who))
        return taken

    def prepare(peer):
        return {who: made.pop(who, None) or make(who) for who in _candidates(peer, on_gpu)}

    return Task(name, flops, 0, prepare, memory)


def _candidates(peer, on_gpu):
    names = ("minidl", "PyTorch") if peer else ("minidl",)
    return [way for name in names for way in ([name, f"{name} captured"] if on_gpu else [name])]
