"""PTX, the assembly of NVIDIA's virtual machine, as NVRTC makes it, which needs no GPU."""

import re
from pathlib import Path

from kernels.study.gpu_code import Language, compiled, text

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(")
_REAL = r"\.\S*f(16|32|64)"
LANGUAGE = Language(
    (
        ("multiply-add", f"(fma|mad){_REAL}"),
        ("arithmetic", f"(add|sub|mul|div|sqrt|rsqrt|rcp|max|min|neg|abs|ex2|lg2){_REAL}"),
        ("compare", f"(set|setp|selp|slct){_REAL}"),
        ("global load", r"ld\.(global|weak\.global)"),
        ("global store", r"st\.global"),
        ("shared load", r"ld\.shared"),
        ("shared store", r"st\.shared"),
        ("local memory", r"(ld|st)\.local"),
        ("atomic", r"(atom|red)\."),
        ("barrier", r"bar"),
        ("branch", r"bra"),
    ),
    guard=re.compile(r"^@!?%\w+\s+"),
    label=re.compile(r"^(\$\w+):"),
    jump=re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);"),
)


def compile_source(path: Path, architecture: str) -> str:
    """The PTX of a CUDA source for an architecture such as sm_80; errors as `compiled`."""
    return text(compiled(path, architecture, "getPTX"))


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
            label = LANGUAGE.label.match(code)
            if label or (code.endswith(";") and not code.startswith((".", "{"))):
                lines.append(code)
    return found
