"""A check in a process of its own, so that code that never ends, or crashes, can be told."""

import multiprocessing
import time
from pathlib import Path

from kernels.study.exercises import find
from kernels.study.exercises.check import CheckFailed, examine

_CONTEXT = multiprocessing.get_context("spawn")


def check_file(name: str, path: Path, timeout: float, seed: int = 0) -> str:
    """`examine` for the exercise `name`, killed after `timeout` seconds. Raises CheckFailed."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    worker = _CONTEXT.Process(target=_work, args=(theirs, name, path, seed), daemon=True)
    worker.start()
    theirs.close()
    case = failed = None
    end = time.monotonic() + timeout
    try:
        while ours.poll(max(0, end - time.monotonic())):
            try:
                kind, text = ours.recv()
            except EOFError:
                worker.join()
                raise CheckFailed(
                    failed or f"the process ended with code {worker.exitcode} at {case}"
                ) from None
            if kind == "passed":
                return text
            if kind == "wrong":
                raise CheckFailed(text)
            case, failed = (text, failed) if kind == "case" else (case, text)
    finally:
        worker.kill()
        worker.join()
        ours.close()
    raise CheckFailed(
        failed or f"no result within {timeout:g} seconds, at {case}\nDoes a loop never end?"
    )


def _work(pipe, name, path, seed):
    try:
        summary = examine(find(name), path, seed, lambda kind, text: pipe.send((kind, text)))
    except CheckFailed as failure:
        pipe.send(("wrong", str(failure)))
    else:
        pipe.send(("passed", summary))
