"""PTX, the assembly of NVIDIA's virtual machine: compiled by NVRTC, which needs no GPU, and read.

CUDA's sources (kernels/cuda/*.cu) are compiled with REAL as float.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import kernels
from kernels.study.machine_code import innermost

SOURCES = Path(kernels.__file__).parent / "cuda"
INSTALL = "pip install cupy-cuda12x nvidia-cuda-nvrtc-cu12"
_LABEL = re.compile(r"^(\$\w+):")
_JUMP = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(")
_KINDS = (
    ("multiply-add", r"(fma|mad)\.\S*f(16|32|64)"),
    ("arithmetic", r"(add|sub|mul|div|sqrt|rsqrt|rcp|max|min|neg|abs|ex2|lg2)\.\S*f(16|32|64)"),
    ("global load", r"ld\.(global|weak\.global)"),
    ("global store", r"st\.global"),
    ("shared load", r"ld\.shared"),
    ("shared store", r"st\.shared"),
    ("local memory", r"(ld|st)\.local"),
    ("atomic", r"(atom|red)\."),
    ("barrier", r"bar"),
    ("branch", r"bra"),
)
KINDS = (*(name for name, _ in _KINDS), "other")


@dataclass(frozen=True)
class Loop:
    """An innermost loop of an entry (a kernel): its label and its lines."""

    function: str
    label: str
    body: tuple[str, ...]


def count(lines) -> Counter:
    """{kind: how many}, of instructions; labels among them are skipped."""
    return Counter(kind(line) for line in lines if not _LABEL.match(line))


def kind(line: str) -> str:
    """What an instruction does: one of KINDS."""
    operation = re.sub(r"^@!?%\w+\s+", "", line)
    return next((name for name, pattern in _KINDS if re.match(pattern, operation)), "other")


def compile_source(path: Path, architecture: str) -> str:
    """The PTX of a CUDA source for an architecture such as sm_80.

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
        return _text(nvrtc.getPTX(program))
    except nvrtc.NVRTCError as error:
        messages = _text(nvrtc.getProgramLog(program)).strip() or str(error)
        raise ValueError(f"{path.name}: {messages}") from None
    finally:
        nvrtc.destroyProgram(program)


def _text(value):
    return (value.decode() if isinstance(value, bytes) else value).rstrip("\0")


def entries(ptx: str) -> dict[str, list[str]]:
    """{entry: its lines, without declarations}."""
    found, lines = {}, None
    for line in ptx.splitlines():
        entry = _ENTRY.search(line)
        if entry:
            lines = found.setdefault(entry.group(1), [])
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            code = line.split("//")[0].strip()
            if _LABEL.match(code) or (code.endswith(";") and not code.startswith((".", "{"))):
                lines.append(code)
    return found


def loops(ptx: str) -> list[Loop]:
    """The innermost loops, those with the most multiply-adds and other arithmetic first."""
    found = [loop for name, lines in entries(ptx).items() for loop in _innermost(name, lines)]
    return sorted(found, key=_rank, reverse=True)


def _innermost(name, lines):
    places = {line.rstrip(":"): i for i, line in enumerate(lines) if _LABEL.match(line)}
    jumps = [(i, jump.group(1)) for i, line in enumerate(lines) if (jump := _JUMP.search(line))]
    for start, end in innermost(places, jumps):
        yield Loop(name, lines[start].rstrip(":"), tuple(lines[start + 1 : end + 1]))


def _rank(loop):
    counts = count(loop.body)
    return counts["multiply-add"], counts["arithmetic"], len(loop.body)
