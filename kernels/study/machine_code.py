"""Reading machine code: the innermost loops of x86-64 assembly, and what their instructions do.

LLVM prints AT&T's syntax: operands from source to target, registers with a %, memory as
displacement(base, index, scale). The width of a vector shows in the register's name: xmm 128 bits
(or a single number, where the instruction ends in ss or sd), ymm 256, zmm 512.
"""

import re
from collections import Counter
from dataclasses import dataclass

# What an instruction does, in the order of the table. Arithmetic is that of floats, "integers" is
# that of integers in vectors, mostly of indices; gathers take their elements from anywhere.
KINDS = (
    "multiply-add", "arithmetic", "compare", "load", "store", "gather", "shuffle", "integers",
    "other",
)  # fmt: skip
WIDTHS = ("zmm", "ymm", "xmm", "single", "integer")
_BITS = {"zmm": 512, "ymm": 256, "xmm": 128}
_KIND_PATTERNS = (
    ("multiply-add", r"v?fn?m(add|sub|addsub|subadd)\d"),
    ("gather", r"vp?(gather|scatter)"),
    ("arithmetic", r"v?(add|sub|mul|div|sqrt|rsqrt|rcp|max|min|round)\w*[ps][sd]$"),
    ("integers", r"v?p(add|sub|mul|min|max|sll|srl|sra)"),
    ("compare", r"v?(u?comis|cmp\w*[ps][sd]$|blend|p?cmp|ptest|pblend|kor|kand|knot|kmov)|k"),
    ("shuffle", r"v?(p?(broadcast|shuf|perm|unpck|insert|extract|align|ack)|"
                r"mov(d|sl|sh)dup|ps[lr]ldq|cvt|pmov)"),
)  # fmt: skip
_WRAPPERS = ("_ZN7cpython", "cfunc.", "NRT_")
_LABEL = re.compile(r"^([.\w$@\"][^\s:#]*):")
_REGISTER = re.compile(r"%([xyz]mm)\d+")


@dataclass(frozen=True)
class Instruction:
    """One line of assembly: its mnemonic and its operands, source first."""

    mnemonic: str
    operands: tuple[str, ...]

    @property
    def width(self) -> str:
        """The widest register it uses; "single" for one number in it; "integer" for none."""
        registers = _REGISTER.findall(re.sub(r"\([^)]*\)", "", " ".join(self.operands)))
        if not registers:
            return "integer"
        if re.search(r"[^p](ss|sd)$|mov[dq]$", self.mnemonic) and "broadcast" not in self.mnemonic:
            return "single"
        return max(registers, key=_BITS.get)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.width == "integer" and not self.mnemonic.startswith("v"):
            return "other"
        for kind, pattern in _KIND_PATTERNS:
            if re.match(pattern, self.mnemonic):
                return kind
        if re.match(r"v?mov", self.mnemonic):
            if "(" in self.operands[0]:
                return "load"
            return "store" if "(" in self.operands[-1] else "shuffle"
        return "other"

    @property
    def lanes(self) -> int:
        """Numbers that it works on at once; 0 outside of vector registers."""
        if self.width == "integer":
            return 0
        if self.width == "single":
            return 1
        return _BITS[self.width] // (64 if re.search(r"[ps]d$|^vp\w*q$", self.mnemonic) else 32)

    @property
    def comment(self) -> str:
        """What it does to vectors, in a few words; nothing for other instructions."""
        reads = " from memory" if any("(" in o for o in self.operands[:-1]) else ""
        count = "" if self.lanes == 1 else f"{self.lanes} x "
        match self.kind:
            case "multiply-add":
                return f"{count}multiply, add{reads and ', one factor' + reads}"
            case "load":
                return f"load {self.lanes}"
            case "store":
                return f"store {self.lanes}"
            case "arithmetic" | "compare" | "gather" | "integers":
                return f"{count}{re.sub(r'^v|[ps][sd]$', '', self.mnemonic)}{reads}"
            case "shuffle":
                if "mov" in self.mnemonic:
                    return "select by a mask" if "{%k" in self.operands[-1] else "move"
                return f"{'broadcast' if 'broadcast' in self.mnemonic else 'rearrange'}{reads}"
        return ""


@dataclass(frozen=True)
class Loop:
    """An innermost loop: the function it lies in, its label, its instructions."""

    function: str
    label: str
    body: tuple[Instruction, ...]

    def comment(self, instruction: Instruction) -> str:
        """The instruction's comment, or where it jumps back."""
        back = instruction.mnemonic.startswith("j") and instruction.operands == (self.label,)
        return "back to the first line" if back else instruction.comment

    @property
    def rank(self) -> tuple[int, ...]:
        """What a turn does in vectors: multiply-adds whose sums stay in registers, all
        multiply-adds, other arithmetic or comparing, anything.

        A loop that stores runs once a result, one that keeps its sums once a term: it is hotter.
        """
        vectors = [i for i in self.body if i.width in _BITS]
        products = sum(i.lanes for i in vectors if i.kind == "multiply-add")
        kept = 0 if any(i.kind == "store" for i in vectors) else products
        others = sum(i.lanes for i in vectors if i.kind in ("arithmetic", "compare"))
        return kept, products, others, sum(i.lanes for i in vectors if i.kind != "integers")


def functions(assembly: str) -> dict[str, list]:
    """{symbol: its lines, labels as strings and instructions as Instructions}.

    Without the wrappers by which Python and C enter a function.
    """
    found, lines = {}, None
    for text in assembly.splitlines():
        label = _LABEL.match(text)
        if label:
            name = label.group(1).strip('"')
            if not name.startswith(".L"):
                lines = found.setdefault(name, [])
            elif lines is not None:
                lines.append(name)
        elif lines is not None and text.startswith("\t") and text[1:2] not in ".#":
            lines.append(_instruction(text.strip()))
    return {
        name: lines for name, lines in found.items() if lines and not name.startswith(_WRAPPERS)
    }


def _instruction(text):
    code = text.split("#", 1)[0].strip()
    mnemonic, _, rest = code.partition("\t")
    operands = re.split(r",\s*(?![^(]*\))", rest.strip()) if rest.strip() else []
    return Instruction(mnemonic.strip(), tuple(operands))


def loops(assembly: str) -> list[Loop]:
    """The innermost loops, the hottest first, as far as Loop.rank tells.

    A loop that calls a function has the loops of that function inside: it is left out.
    """
    found = [
        loop for name, lines in functions(assembly).items() for loop in _innermost(name, lines)
    ]
    return sorted(found, key=lambda loop: (*loop.rank, len(loop.body)), reverse=True)


def _innermost(name, lines):
    places = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    jumps = [
        (i, line.operands[0]) for i, line in enumerate(lines)
        if isinstance(line, Instruction) and line.mnemonic.startswith("j") and line.operands
    ]  # fmt: skip
    for start, end in innermost(places, jumps):
        body = tuple(line for line in lines[start : end + 1] if isinstance(line, Instruction))
        if not any(i.mnemonic.startswith("call") for i in body):
            yield Loop(name, lines[start], body)


def innermost(places: dict[str, int], jumps: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """(first, last) line of every loop that has no loop inside.

    A loop is what lies between a label and the last jump back to it. `places` are the lines of the
    labels, `jumps` the lines of jumps with the label that each goes to.
    """
    ends = {}
    for line, label in jumps:
        if places.get(label, line) < line:
            ends[places[label]] = line
    return [
        (start, end) for start, end in ends.items()
        if not any(start <= s and e <= end and s != start for s, e in ends.items())
    ]  # fmt: skip


def count(instructions) -> Counter:
    """{(kind, width): how many}, of Instructions; labels among them are skipped."""
    return Counter((i.kind, i.width) for i in instructions if isinstance(i, Instruction))


def readable(symbol: str) -> str:
    """The Python name within a symbol that Numba has made; the symbol itself for others."""
    start = symbol.find("_ZN")
    if start < 0:
        return symbol
    parts, rest = [], symbol[start + 3 :]
    while number := re.match(r"\d+", rest):
        size = int(number.group())
        part, rest = rest[number.end() :][:size], rest[number.end() + size :]
        parts.append(part.replace("_3c", "<").replace("_3e", ">"))
    if any("numba_parfor_gufunc" in part for part in parts):
        return "the parallel loop"
    return ".".join(parts) or symbol
