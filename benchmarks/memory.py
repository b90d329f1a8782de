"""Peak memory of one candidate on the CPU, in a process of its own."""

import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.subjects import RUNS, by_name

ROOT = Path(__file__).resolve().parent.parent
# Optimisers make their state in the first step: the second is the one that needs all at once.
_CALLS = 2


def peak_memory(candidate: str, network: str, training: bool, machine) -> int:
    """Bytes of resident memory at most, of a process that runs `candidate` twice on the CPU.

    What building the network took beyond its size is not counted where Linux can forget it.
    RuntimeError with the last line of the process's errors if it fails.
    """
    arguments = candidate, network, str(int(training)), str(machine.threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"measuring the memory of {candidate}, {network}: {errors[-1]}")
    return int(done.stdout)


def _main(candidate, network, training, threads):
    from kernels import dispatch

    if candidate == "PyTorch":
        import torch

        torch.set_num_threads(int(threads))
    else:
        dispatch.set_num_threads(int(threads))
    step = RUNS[candidate](by_name(network), bool(int(training)))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the size now
    for _ in range(_CALLS):
        step()
    print(_peak())


def _peak() -> int:
    """Bytes. Linux hands ru_maxrss down from the process that started this one: not its own."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _main(*sys.argv[1:])
