"""The doors between the rooms: imports go one way, and importing minidl costs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "minidl", "architectures")
# What each room may import of the project, and of the array libraries.
ALLOWED = {
    "kernels": {"kernels", "numpy", "numba", "llvmlite", "scipy", "threadpoolctl", "click", "rich"},
    "minidl": {"minidl", "kernels", "numpy", "click", "rich", "matplotlib", "PIL", "safetensors",
               "hypothesis", "onnx", "mpi4py", "graphviz"},
    "architectures": {"architectures", "minidl", "numpy", "click"},
}  # fmt: skip
# Optional packages, each behind a door of its own.
OPTIONAL = {
    "kernels/study/gpu_code.py": {"cupy_backends"},
    "kernels/study/roofline.py": {"matplotlib"},
}
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path):
    """The modules that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    allowed = ALLOWED[path.parts[0]] | set(sys.stdlib_module_names)
    doors = (
        "minidl/array_module.py", "minidl/ops/shape.py", "minidl/distributed/nccl.py",
        "kernels/cuda/runtime.py",
    )  # fmt: skip
    if path.as_posix() in doors:
        allowed |= {"cupy", "cupyx"}
    allowed |= OPTIONAL.get(path.as_posix(), set())
    for module in imported(path):
        assert module.split(".")[0] in allowed, module
        if path.parts[:2] == ("kernels", "reference"):
            room = module.split(".")[0]
            assert room in sys.stdlib_module_names or room == "numpy" or module.startswith(
                ("kernels.reference", "kernels.geometry")
            ), module


def test_import_is_light():
    heavy = ("numba", "cupy", "matplotlib", "rich", "PIL", "torch", "click", "scipy", "hypothesis",
             "onnx", "mpi4py", "graphviz")
    code = (
        "import sys, minidl, minidl.nn, minidl.optim, minidl.data, minidl.distributed; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_stay_short():
    for path in FILES:
        lines = len((ROOT / path).read_text().splitlines())
        assert lines <= 430, f"{path} has {lines} lines"
