"""The source of single functions, cut out of the kernels' files by their syntax."""

import ast
import re
from pathlib import Path

ROOM = Path(__file__).resolve().parent.parent


def kernel_file(backend: str, stem: str) -> Path:
    """The file of a family of kernels: kernels/reference/lrn.py, kernels/cuda/lrn.cu, ..."""
    return ROOM / backend / f"{stem}.{'cu' if backend == 'cuda' else 'py'}"


def python_definitions(text: str) -> dict[str, tuple[int, int]]:
    """(first, last) line, from 1, of each function and class at the top, with decorators."""
    return {
        node.name: (min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno)
        for node in ast.parse(text).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


_CUDA_HEAD = re.compile(
    r"^(?:template\s*<[^;{]*>\s*)?(?:extern\s+\"C\"\s+)?"
    r"(?:static\s+|inline\s+|__forceinline__\s+)*(?:__global__|__device__)[^;{}]*?"
    r"\b(?!__)(\w+)\s*\([^;{}]*\)\s*\{",
    re.MULTILINE,
)  # fmt: skip


def cuda_functions(text: str) -> dict[str, tuple[int, int]]:
    """(first, last) line, from 1, of every __global__ or __device__ function at a line's start."""
    found = {}
    for match in _CUDA_HEAD.finditer(text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found[match[1]] = text.count("\n", 0, match.start()) + 1, text.count("\n", 0, end) + 1
    return found


def lines(text: str, first: int, last: int) -> str:
    """The lines first to last, counted from 1, of a text."""
    return "\n".join(text.splitlines()[first - 1 : last])
