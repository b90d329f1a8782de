"""A check in a process of its own, so that code that never ends, or crashes, can be told."""

import multiprocessing
import signal
import sys
import time
from pathlib import Path

from kernels.study.exercises import find
from kernels.study.exercises.check import CheckFailed, examine

_CONTEXT = multiprocessing.get_context("spawn")


def check_file(name: str, path: Path, timeout: float, seed: int = 0) -> str:
    """`examine` for the exercise `name`, killed after `timeout` seconds.

    Raises CheckFailed as `examine`, for a crash and for the lapse of time; ValueError as `find`.
    """
    find(name)
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
                raise CheckFailed(failed or f"{_ending(worker.exitcode)} at {case}") from None
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


def _ending(code):
    if code < 0:
        return f"the process crashed, by {signal.Signals(-code).name},"
    return f"the process ended with code {code}"


def _work(pipe, name, path, seed):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's, which kills this one

    def send(kind, text):
        sys.stdout.flush()  # what the reader's code printed, before this process may be killed
        pipe.send((kind, text))

    try:
        summary = examine(find(name), path, seed, send)
    except CheckFailed as failure:
        send("wrong", str(failure))
    else:
        send("passed", summary)
