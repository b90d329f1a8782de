"""Reading the assembly of a GPU, PTX or SASS: innermost loops, and instructions by their kind."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import kernels
from kernels.study.machine_code import innermost

SOURCES = Path(kernels.__file__).parent / "cuda"
INSTALL = "pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12"


@dataclass(frozen=True)
class Loop:
    """An innermost loop of an entry (a kernel): its label and its lines."""

    function: str
    label: str
    body: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """How instructions look: `patterns` (kind, how it begins), in the order of the table; the guard
    before an instruction; a line with a label; a jump, with the label that it goes to."""

    patterns: tuple[tuple[str, str], ...]
    guard: re.Pattern
    label: re.Pattern
    jump: re.Pattern

    @property
    def kinds(self) -> tuple[str, ...]:
        """What instructions do."""
        return (*(name for name, _ in self.patterns), "other")

    def kind(self, line: str) -> str:
        """What an instruction does: one of `kinds`."""
        operation = self.guard.sub("", line)
        found = (name for name, pattern in self.patterns if re.match(pattern, operation))
        return next(found, "other")

    def count(self, lines) -> Counter:
        """{kind: how many}, of instructions; labels among them are skipped."""
        return Counter(self.kind(line) for line in lines if not self.label.match(line))

    def loops(self, entries: dict[str, list[str]]) -> list[Loop]:
        """The innermost loops, those with the most multiply-adds and other arithmetic first."""
        found = [loop for name, lines in entries.items() for loop in self._innermost(name, lines)]
        return sorted(found, key=self._rank, reverse=True)

    def _innermost(self, name, lines):
        places = {line.rstrip(":"): i for i, line in enumerate(lines) if self.label.match(line)}
        jumps = [
            (i, jump.group(1)) for i, line in enumerate(lines) if (jump := self.jump.search(line))
        ]
        for start, end in innermost(places, jumps):
            yield Loop(name, lines[start].rstrip(":"), tuple(lines[start + 1 : end + 1]))

    def _rank(self, loop):
        counts = self.count(loop.body)
        return counts["multiply-add"], counts["arithmetic"], len(loop.body)


def compiled(path: Path, architecture: str, get: str):
    """What NVRTC makes of a CUDA source with REAL as float: `get` is "getPTX" or "getCUBIN".

    Raises RuntimeError where CuPy or NVRTC are missing, ValueError with the compiler's first error
    where it refuses the source or the architecture.
    """
    try:
        from cupy_backends.cuda.libs import nvrtc

        program = nvrtc.createProgram(path.read_text(encoding="utf-8"), path.name, (), ())
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"PTX needs CuPy and NVRTC: {INSTALL} ({error})") from error
    options = f"-arch={architecture}", "-DREAL=float", f"-I{path.parent}"
    try:
        nvrtc.compileProgram(program, options)
        return getattr(nvrtc, get)(program)
    except nvrtc.NVRTCError as error:
        messages = text(nvrtc.getProgramLog(program)).strip() or str(error)
        raise ValueError(f"{path.name}: {messages}") from None
    finally:
        nvrtc.destroyProgram(program)


def text(value) -> str:
    """A string of NVRTC's, whose versions differ in how they end it."""
    return (value.decode() if isinstance(value, bytes) else value).rstrip("\0")
