"""SASS, the code that a GPU of one generation runs: compiled by NVRTC, listed by NVIDIA's nvdisasm.

Neither needs a GPU.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kernels.study.gpu_code import Language, compiled

INSTALL = "pip install nvidia-cuda-nvdisasm"
_ENTRY = re.compile(r"^\.text\.(\w+):")
_INSTRUCTION = re.compile(r"^/\*[0-9a-f]+\*/\s+(.*;)")
LANGUAGE = Language(
    (
        ("multiply-add", r"[DFH](FMA|MMA)"),
        ("arithmetic", r"[DFH](ADD|MUL|MNMX)|MUFU"),
        ("compare", r"[DFH](SET|SEL)"),
        ("global load", r"LDG"),
        ("global store", r"STG"),
        ("shared load", r"LDS"),
        ("shared store", r"STS"),
        ("local memory", r"LDL|STL"),
        ("atomic", r"ATOM|RED"),
        ("barrier", r"BAR"),
        ("branch", r"BRA|BRX|CALL|RET|EXIT"),
    ),
    guard=re.compile(r"^@!?U?P\w+\s+"),
    label=re.compile(r"^(\.L_\w+):"),
    jump=re.compile(r"\bBRA\b.*`\((\.L_\w+)\)"),
)


def find_tool() -> str | None:
    """The program nvdisasm: that of the PATH, or else that of the Python package."""
    found = shutil.which("nvdisasm")
    package = None if found else importlib.util.find_spec("nvidia")
    if package is None:
        return found
    places = (Path(place).glob("*/bin/nvdisasm") for place in package.submodule_search_locations)
    return next((str(tool) for tools in places for tool in tools), None)


def compile_source(path: Path, architecture: str) -> str:
    """The SASS of a CUDA source for an architecture such as sm_80; errors as `compiled`.

    RuntimeError also where nvdisasm is missing or refuses the architecture.
    """
    tool = find_tool()
    if tool is None:
        raise RuntimeError(f"SASS needs nvdisasm: {INSTALL}")
    # CuPy takes the last byte for the end of a string and leaves it out.
    binary = compiled(path, architecture, "getCUBIN") + b"\0"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip()}")
    return done.stdout


def entries(sass: str) -> dict[str, list[str]]:
    """{entry: its labels and instructions, without the jump to itself and what fills up after it}.
    """
    found, lines = {}, None
    for line in sass.splitlines():
        code = line.strip()
        entry, instruction = _ENTRY.match(code), _INSTRUCTION.match(code)
        if entry:
            lines = found.setdefault(entry.group(1), [])
        elif code.startswith("//---"):
            lines = None
        elif lines is not None and instruction:
            jump = LANGUAGE.jump.search(code)
            if jump and lines and lines[-1] == f"{jump.group(1)}:":
                lines.pop()
                lines = None
                continue
            lines.append(instruction.group(1))
        elif lines is not None and LANGUAGE.label.match(code):
            lines.append(code)
    return found
