"""Fair timings: candidates take turns in one process, and medians are compared."""

import gc
import statistics
import time


def interleaved(candidates: dict, rounds: int, warmup: int = 5) -> dict[str, list[float]]:
    """Seconds of every call: `rounds` turns, in each of which every candidate runs once."""
    for run in candidates.values():
        for _ in range(warmup):
            run()
    times = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in candidates.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return times


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile) in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return low * 1e3, middle * 1e3, high * 1e3
