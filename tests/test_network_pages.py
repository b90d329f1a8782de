"""The pages on the networks: their figures are those that the code counts, their pictures exist,
and all commands on them and in the README are ones that the networks have.
"""

import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from architectures.__main__ import main as architectures_group
from architectures.diagrams import DIAGRAMS, save_diagram
from minidl import cli

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "networks"
PAGES = sorted(FOLDER.glob("*.md"))
# Drawn when the documentation is built.
DRAWN = {FOLDER / f"{name}.svg" for name in DIAGRAMS}


def code_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures(page):
    names = {}
    blocks = code_blocks(page.read_text(encoding="utf-8"))
    assert blocks, f"{page.name} has no Python block"
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_table(page):
    """Every large number that the code asserts stands in the page's text, too."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```python\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in code_blocks(text):
        for number in re.findall(r"\d+(?:_\d{3})+", block):
            assert number.replace("_", ",") in prose, number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        place = page.parent / target
        assert place in DRAWN if place.suffix == ".svg" else place.exists(), target


def test_the_readme_quotes_the_measured_table():
    table = (ROOT / "benchmarks" / "baseline.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for kind, phrase in (("training step", "a training step takes"), ("inference", "inference")):
        ratios = sorted((float(cells[3]), cells[0].split(" (")[0])
                        for cells in rows if cells[0].endswith(kind))  # fmt: skip
        (least, quick), (most, slow) = ratios[0], ratios[-1]
        assert re.search(rf"{phrase} {least:.2f} \({quick}\) to {most:.2f} \({slow}\)", readme)


def test_every_network_has_a_page_and_every_picture_a_place():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {architecture.name for architecture, _ in DIAGRAMS.values()} == {
        page.stem for page in PAGES if page.stem != "index"
    }
    assert all(f"]({path.name})" in text for path in DRAWN)


def commands():
    """Every ``python -m architectures.NAME`` of the pages and the README."""
    for page in (ROOT / "README.md", *PAGES):
        for line in re.findall(r"^    python -m architectures\.(.*)$", page.read_text(), re.M):
            yield pytest.param(shlex.split(line), id=line)


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_understood(words):
    """Parsed, not run: files and data sets are the reader's."""
    network, name, *arguments = words
    group = cli.build_group(importlib.import_module(f"architectures.{network}").ARCHITECTURE)
    if name == "--help":
        return
    with click.Context(group) as context:
        _, command, rest = group.resolve_command(context, [name, *arguments])
        command.make_context(command.name, rest, parent=context)


def test_diagrams_are_drawn(tmp_path):
    graphviz = pytest.importorskip("graphviz")
    try:
        graphviz.version()
    except graphviz.ExecutableNotFound:
        pytest.skip("dot is not installed")
    path = save_diagram("lenet-1998", tmp_path)
    assert path == tmp_path / "lenet-1998.svg" and "PartialConv" in path.read_text()
    with pytest.raises(KeyError):
        save_diagram("perceptron", tmp_path)


def test_command_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("architectures.diagrams.DIAGRAMS", {"nin": DIAGRAMS["nin"]})
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert cli.run_group(architectures_group, ["draw", "--out", str(tmp_path)], "x") == 2
    assert ".[graph]" in capsys.readouterr().err and not list(tmp_path.iterdir())
