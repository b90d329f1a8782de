"""Fair timings: candidates take turns in one process, and medians are compared."""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# A turn lasts at least so many seconds. PyTorch's threads wait actively for about a millisecond
# after a call: what is shorter would be timed while they still hold the cores.
TURN = 0.02


@dataclass(frozen=True)
class Spread:
    """Lower quartile, median and upper quartile, in seconds."""

    low: float
    median: float
    high: float


def seconds(run, calls: int) -> float:
    """Seconds of one call, the mean of `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def interleaved(
    candidates: dict[str, Callable], rounds: int, warmup: int = 1, turn: float = TURN,
    clock: Callable = seconds,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of one call: `rounds` turns, in each of which every candidate has its turn.

    A candidate that takes less than `turn` seconds is called several times, and the mean counts.
    `clock(run, calls)` measures, as `seconds` does.
    """
    calls = {}
    for name, run in candidates.items():
        for _ in range(warmup):
            run()
        calls[name] = max(1, math.ceil(turn / clock(run, 1)))
    times = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in candidates.items():
                times[name].append(clock(run, calls[name]))
    finally:
        gc.enable()
    return times


def spread(seconds: list[float]) -> Spread:
    """The quartiles of at least two timings."""
    return Spread(*statistics.quantiles(seconds, n=4))
