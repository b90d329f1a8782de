"""What MkDocs does not do itself: the menu, code from the source, pictures, equations as MathML.

A line ``{{ code STEM: REFERENCE, ... | CPU, ... | CUDA, ... }}`` becomes functions of
kernels/reference/STEM.py, kernels/cpu/STEM.py and kernels/cuda/STEM.cu, side by side, cut from the
files as they are when the site is built. A function of another file is written FILE.FUNCTION.
Without a third list those of the reference's names are shown that the CUDA file has, if there is
one. ``{{ source PATH: NAME, ... }}`` shows functions or classes of any Python file of the
repository, ``{{ picture NAME }}`` the SVG that docs/site/pictures.py draws under that name,
``{{ speed NETWORK, ... }}`` their lines of benchmarks/baseline.md, and ``{{ exercises }}`` the
table of all exercises.
"""

import html
import re
from fnmatch import fnmatch
from pathlib import Path

import pictures
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

from kernels.study.exercises import EXERCISES
from kernels.study.source import cuda_functions, kernel_file, lines, python_definitions

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
BASELINE = ROOT / "benchmarks" / "baseline.md"
# Pages in the order in which they build on each other; others follow by name.
ORDER = (
    "index", "matmul", "convolution", "transposed-convolution", "winograd", "max-pooling",
    "average-pooling", "relu", "softmax-cross-entropy", "lrn", "batchnorm", "dropout", "optimisers",
)  # fmt: skip


def on_config(config):
    config.docs_dir = str(DOCS)
    config.nav = menu()
    return config


def menu():
    """All pages there are: this site grows by files, not by entries in a list."""
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}

    def take(pattern):
        found = [page for page in pages if fnmatch(page, pattern)]
        pages.difference_update(found)
        return sorted(found, key=_place)

    ladders = take("*ladder*")
    sections = {"Kernels": take("kernels/*"), "Ladders": ladders, "Networks": take("networks/*"),
                "More": take("*")}  # fmt: skip
    filled = ({title: found} for title, found in sections.items() if found)
    return [{"Home": "index.md"}, *filled]


def _place(page):
    stem = Path(page).stem
    return ORDER.index(stem) if stem in ORDER else len(ORDER), page


_MACRO = re.compile(r"^\{\{ *(code|source|picture|speed|exercises)\b *(.*?) *\}\}$", re.MULTILINE)


def on_page_markdown(markdown, page, **_):
    macros = {"code": side_by_side, "source": source, "picture": figure, "speed": speed,
              "exercises": exercises}  # fmt: skip

    def replace(match):
        try:
            return macros[match[1]](match[2])
        except (KeyError, OSError) as error:
            raise PluginError(f"{page.file.src_path}: {match[0]}: {error!r}") from error

    return _MACRO.sub(replace, markdown)


def side_by_side(argument):
    """The columns of a ``{{ code ... }}``, as Markdown in HTML."""
    stem, _, names = argument.partition(":")
    reference, cpu, *cuda = map(_split, names.split("|"))
    columns = [
        _column("NumPy", "python", [_python("reference", stem, name) for name in reference]),
        _column("Numba", "python", [_python("cpu", stem, name) for name in cpu]),
        _column("CUDA", "cuda", _cuda(stem, reference, *cuda)),
    ]
    return _columns(*columns)


def _split(names):
    return [name.strip() for name in names.split(",") if name.strip()]


def _columns(*columns):
    shown = "\n\n".join(column for column in columns if column)
    return f'<div class="side-by-side" markdown>\n\n{shown}\n\n</div>'


def _column(title, language, functions):
    if not functions:
        return ""
    blocks = [f"<p class=where>{where}</p>\n\n```{language}\n{code}\n```"
              for where, code in functions]  # fmt: skip
    content = "\n\n".join([f"**{title}**", *blocks] if title else blocks)
    return f"<div markdown>\n\n{content}\n\n</div>"


def source(argument):
    """The definitions of a ``{{ source ... }}``."""
    path, _, names = argument.partition(":")
    return _columns(_column("", "python", [_named(ROOT / path, name) for name in _split(names)]))


def _python(backend, stem, name):
    """(file:line, source) of a function NAME, or FILE.NAME, of a backend."""
    file, _, name = name.rpartition(".")
    return _named(kernel_file(backend, file or stem), name)


def _named(path, name):
    text = path.read_text(encoding="utf-8")
    found = python_definitions(text)
    if name not in found:
        raise KeyError(f"{path.name} defines no {name}, only {', '.join(found)}")
    return _cut(path, text, found[name])


def _cuda(stem, names, chosen=None):
    """(file:line, source) of the functions `chosen`, or of those of `names` that there are."""
    if chosen is None:
        path = kernel_file("cuda", stem)
        found = cuda_functions(path.read_text(encoding="utf-8")) if path.exists() else {}
        chosen = [name for name in names if name in found]
        if found and not chosen:
            raise KeyError(f"{path.name} defines none of {', '.join(names)}: name what to show")
    return [_cuda_function(stem, name) for name in chosen]


def _cuda_function(stem, name):
    file, _, name = name.rpartition(".")
    path = kernel_file("cuda", file or stem)
    if not path.exists():
        path = path.with_suffix(".cuh")
    text = path.read_text(encoding="utf-8")
    return _cut(path, text, cuda_functions(text)[name])


def _cut(path, text, span):
    return f"{path.relative_to(ROOT).as_posix()}:{span[0]}", lines(text, *span)


def speed(networks):
    """The networks' lines of the measured table, and on what they were measured."""
    _, machine, _, *rest = BASELINE.read_text(encoding="utf-8").split("\n\n")
    cells = [[cell.strip() for cell in row.strip("|").split("|")]
             for network in _split(networks) for row in rest[0].splitlines()
             if row.startswith(f"| {network} (")]  # fmt: skip
    if not cells:
        raise KeyError(f"{BASELINE.name} has no line on {networks}")
    rows = [f"| {name} | {ours} | {theirs} | {ratio} | {memory} | {their_memory} |"
            for name, ours, theirs, ratio, *_, memory, their_memory in cells]  # fmt: skip
    head = "| network (images) | minidl ms | PyTorch ms | ratio | minidl memory | PyTorch memory |"
    source = f"From `benchmarks/baseline.md`, which says how it was measured: {machine}"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, "", source])


def exercises(_):
    """The table of all exercises."""
    rows = [f"| `{e.name}` | {'★' * e.difficulty} | {e.title} | {_code_names(e.parts)} |"
            for e in EXERCISES.values()]  # fmt: skip
    return "\n".join(["| exercise | difficulty | | functions |", "|---|---|---|---|", *rows])


def _code_names(names):
    return ", ".join(f"`{name}`" for name in names)


def figure(name):
    """The picture `name` as an inline SVG, with its caption."""
    svg, caption = pictures.draw(name)
    return f"<figure>\n{svg}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>"


_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# TeX sets a space between such a name and what it is applied to.
_NAMED = re.compile(r"\\(log|ln|max)\s+(?=[a-z])")


def on_page_content(content, **_):
    """The equations that Arithmatex has marked, as MathML, which browsers set themselves."""

    def replace(match):
        tag, bracket, formula = match.groups()
        display = "block" if bracket == "[" else "inline"
        formula = _NAMED.sub(r"\\\1\\, ", html.unescape(formula).strip())
        equation = convert(formula, display=display)
        # A function's name: as an operator it would stand off from its bracket.
        equation = equation.replace("<mo>max</mo>", "<mi>max</mi>")
        return f"<{tag}>{equation}</{tag}>"

    return _FORMULA.sub(replace, content)
