"""Which kernels there are and where each is implemented, read from the source files.

Nothing is imported, so that it works without a GPU and without CuPy.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("reference", "cpu", "cuda")
_KERNELS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Place:
    """Where a function is defined: `file`, relative to the repository, and its first line."""

    file: str
    line: int

    def __str__(self):
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Kernel:
    """A kernel: its name, the file that holds it in every room, and its place by room or None."""

    name: str
    family: str
    places: dict[str, Place | None]


def kernels() -> list[Kernel]:
    """All kernels, in the order of their files and lines.

    A kernel is a public function of kernels/reference that the package exports, or that another
    room has under the same name in the file of the same name.
    """
    rooms = {room: _functions(_KERNELS / room) for room in ROOMS}
    exported = _exported(_KERNELS / "reference" / "__init__.py")
    found = []
    for (family, name), place in rooms["reference"].items():
        twins = any((family, name) in rooms[room] for room in ROOMS[1:])
        if name in exported or twins:
            others = {room: _find(rooms[room], family, name) for room in ROOMS[1:]}
            found.append(Kernel(name, family, {"reference": place, **others}))
    return found


def _functions(room: Path) -> dict[tuple[str, str], Place]:
    """(file without .py, function) -> its place, for the public functions of a room's modules."""
    found = {}
    for path in sorted(room.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                file = path.relative_to(_KERNELS.parent).as_posix()
                found[path.stem, node.name] = Place(file, node.lineno)
    return found


def _find(functions, family, name) -> Place | None:
    """The place of a function: in the file of the same name, or else in any other."""
    elsewhere = (place for (_, other), place in functions.items() if other == name)
    return functions.get((family, name)) or next(elsewhere, None)


def _exported(init: Path) -> set[str]:
    """The names that a package imports into itself."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}
