"""A piece of work to be measured, and what came of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from benchmarks import cuda
from kernels.study.ceilings import Ceilings, measure_ceilings, timed_under_ceilings
from kernels.study.timing import Spread, interleaved, seconds, spread


@dataclass(frozen=True)
class Machine:
    """What candidates run on: so many threads of the CPU, or a GPU ("cuda").

    `precision` is that of a GPU's products: "float32" or "tf32".
    """

    threads: int
    device: str = "cpu"
    precision: str = "float32"

    @property
    def clock(self) -> Callable:
        return cuda.seconds if self.device == "cuda" else seconds

    def ceilings(self, rounds: int) -> Ceilings:
        """Measured, the best of `rounds`."""
        measure = cuda.measure_ceilings if self.device == "cuda" else measure_ceilings
        return measure(rounds)


@dataclass(frozen=True)
class Task:
    """Work of `flops` float operations (2 a multiply-add) and `traffic` bytes at the very least.

    `prepare(peer)` gives the candidates by name, "minidl" first; PyTorch's only if `peer`.
    `peak_memory(peer)` gives {candidate: bytes}, or is None where memory is not measured. Where
    `under_ceilings`, those of the processor are measured anew, in turns with the candidates: the
    bandwidth of a machine that is shared may double within minutes.
    """

    name: str
    flops: int
    traffic: int
    prepare: Callable[[bool], dict[str, Callable]]
    peak_memory: Callable[[bool], dict[str, int]] | None = None
    under_ceilings: bool = False


@dataclass(frozen=True)
class Figure:
    """The times of a task's candidates beside its floor; memory in bytes."""

    name: str
    flops: int
    traffic: int
    times: dict[str, Spread]
    ceilings: Ceilings
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """minidl's median, captured where that was measured."""
        return self.times.get("minidl captured", self.times["minidl"]).median

    @property
    def floor(self) -> float:
        """Seconds, by the ceiling that binds."""
        return self.ceilings.floor(self.flops, self.traffic)

    @property
    def bound(self) -> str:
        return self.ceilings.bound(self.flops, self.traffic)

    @property
    def percent(self) -> float:
        """What minidl reaches of the ceiling that binds."""
        return 100 * self.floor / self.seconds

    @property
    def ratio(self) -> float | None:
        """minidl's median over PyTorch's; None without PyTorch."""
        return self.ratio_of("minidl")

    def ratio_of(self, name: str) -> float | None:
        """The median of a candidate over PyTorch's; None where one of them is missing."""
        peer, mine = self.times.get("PyTorch"), self.times.get(name)
        return None if peer is None or mine is None else mine.median / peer.median


@dataclass(frozen=True)
class Plan:
    """How thoroughly to measure: `rounds` turns of every candidate, `peer` with PyTorch."""

    rounds: int
    peer: bool
    machine: Machine


def run(
    tasks: Iterable[Task], plan: Plan, progress: Callable[[str], None]
) -> tuple[list[Figure], BaseException | None]:
    """A Figure a task, and None. The ceilings are measured before and after, and the higher ones
    count but for tasks that measured their own.

    `progress(name)` is called before each task. Ctrl-C or an error ends the run: it is returned
    with what is measured, by the ceilings before it, and raised if that is nothing.
    """
    before = plan.machine.ceilings(plan.rounds)
    figures = []
    try:
        for task in tasks:
            progress(task.name)
            figures.append(_figure(task, plan, before))
    except (KeyboardInterrupt, RuntimeError, MemoryError) as error:
        if not figures:
            raise
        return figures, error
    ceilings = before.highest(plan.machine.ceilings(plan.rounds))
    return [
        figure if figure.ceilings is not before else replace(figure, ceilings=ceilings)
        for figure in figures
    ], None


def _figure(task, plan, ceilings):
    memory = task.peak_memory(plan.peer) if task.peak_memory else {}
    runs = task.prepare(plan.peer)
    if task.under_ceilings:
        times, ceilings = timed_under_ceilings(runs, plan.rounds)
    else:
        times = interleaved(runs, plan.rounds, clock=plan.machine.clock)
    spreads = {name: spread(each) for name, each in times.items()}
    return Figure(task.name, task.flops, task.traffic, spreads, ceilings, memory)
