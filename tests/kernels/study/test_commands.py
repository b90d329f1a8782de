"""``python -m kernels list`` and ``explain``: what they print and write, one line for mistakes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import __main__ as cli
from kernels import cpu, reference
from kernels.command_line import run_group
from kernels.study import explanations, inventory
from kernels.study.papers import PAPERS
from kernels.study.render_text import lines

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(capsys):
    """Run a command: (status, stdout, stderr)."""

    def call(*arguments):
        status = run_group(cli.main, [str(a) for a in arguments], "python -m kernels")
        return status, *capsys.readouterr()

    return call


def test_list(run):
    status, out, err = run("list")
    assert status == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 80
    for name in reference.__all__:
        assert any(line.split()[:1] == [name] for line in out.splitlines()), name
    assert "local response normalization, Krizhevsky et al. 2012, section 3.3" in out


def test_list_as_json_names_the_lines_of_the_code(run):
    status, out, _ = run("list", "--json")
    assert status == 0
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert entries.keys() == {*reference.__all__, "conv2d_winograd"}
    for name, entry in entries.items():
        for room, place in entry["places"].items():
            if place is not None:
                line = (ROOT / place["file"]).read_text().splitlines()[place["line"] - 1]
                assert line.startswith(f"def {name}("), (room, place)
        assert entry["places"]["reference"] and entry["places"]["cpu"]
        assert f"kernels/{'cpu'}/" in entry["places"]["cpu"]["file"]
    for name in cpu.__all__:
        code = getattr(cpu, name).__code__
        place = entries[name]["places"]["cpu"]
        assert Path(code.co_filename) == ROOT / place["file"]
        assert code.co_firstlineno == place["line"]
    assert entries["lrn_backward"]["explanation"] == "lrn"
    assert entries["bias_relu"]["explanation"] == "relu"
    assert entries["adam_step"]["explanation"] is None


def test_a_third_room_is_found(tmp_path, monkeypatch):
    """Where a room has no file of the same name, a function of the same name elsewhere counts."""
    for room in ("reference", "cpu", "cuda"):
        (tmp_path / "kernels" / room).mkdir(parents=True)
    rooms = tmp_path / "kernels"
    (rooms / "reference" / "__init__.py").write_text("from kernels.reference.a import f\n")
    (rooms / "reference" / "a.py").write_text("def f(x): ...\ndef g(x): ...\ndef h(x): ...\n")
    (rooms / "cpu" / "a.py").write_text("\ndef h(x): ...\n")
    (rooms / "cuda" / "b.py").write_text("import cupy\n\n\ndef f(x): ...\n")
    monkeypatch.setattr(inventory, "_KERNELS", rooms)
    f, h = inventory.kernels()
    assert (f.name, h.name) == ("f", "h")
    assert [str(p) for p in f.places.values()] == [
        "kernels/reference/a.py:1", "None", "kernels/cuda/b.py:4"
    ]  # fmt: skip
    assert str(h.places["cpu"]) == "kernels/cpu/a.py:2" and h.places["cuda"] is None


def test_papers_are_those_that_the_code_names():
    found = {kernel.name: kernel for kernel in inventory.kernels()}
    assert PAPERS.keys() <= found.keys()
    assert found.keys() - PAPERS.keys() == {"add", "channel_sums", "conv2d_affine"}
    for name, kernel in found.items():
        text = (ROOT / kernel.places["reference"].file).read_text()
        doc = ast.get_docstring(ast.parse(text))
        if name in PAPERS and "Source:" in doc:
            author, year = PAPERS[name].source.split()[0].rstrip(","), PAPERS[name].source[-4:]
            assert author in doc and year in doc, name


def test_explanations_name_kernels_that_exist():
    names = {kernel.name for kernel in inventory.kernels()}
    for shown in explanations.EXPLANATIONS.values():
        assert set(shown) <= names


def test_explain_prints(run):
    status, out, err = run("explain", "im2col", "--size", 5, "--kernel", 3, "--stride", 2,
                           "--padding", 1)  # fmt: skip
    assert status == 0 and err == ""
    assert out.splitlines()[1] == "x (1, 1, 5, 5), kernel 3, stride 2, padding 1, dilation 1"
    assert "Of 81 entries 49 land in the image, and 32 in the padding" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", explanations.EXPLANATIONS)
def test_defaults_of_the_command_are_those_of_the_function(run, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("explain", name)
    expected = [line.plain for line in lines(explanations.explanation(name), 80)]
    assert out.splitlines() == expected


def test_flags_are_off_unless_given(run):
    _, out, _ = run("explain", "avg_pool2d", "--exclude-pad")
    assert "ceil_mode no," in out and "count_include_pad no" in out
    assert dict(explanations.explanation("max_pool2d").settings)["ceil_mode"] == "no"


def test_options_take_one_number_or_several(run):
    _, square, _ = run("explain", "im2col", "--kernel", "2", "--padding", "1,1,1,1")
    _, same, _ = run("explain", "im2col", "--kernel", "2x2", "--padding", "1,1")
    _, other, _ = run("explain", "im2col", "--kernel", "2,3", "--padding", "1")
    assert square == same != other


def test_a_kernel_is_found_by_the_explanation_that_shows_it(run):
    assert run("explain", "lrn_backward") == run("explain", "lrn")


def test_explain_writes_a_page(run, tmp_path):
    path = tmp_path / "below" / "page.html"
    status, out, _ = run("explain", "max_pool2d", "--ceil-mode", "--size", 6, "--html", path)
    assert status == 0 and out == f"{path}\n"
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert os.listdir(path.parent) == ["page.html"]


def test_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, out, err = run("explain", "lrn", "--html", path)
    assert status == 2 and out == "" and "No space left" in err and len(err.splitlines()) == 1
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page.html"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["explain", "transformer"], "no explanation of 'transformer': there are im2col"),
        (["explain", "adam_step"], "no explanation of 'adam_step'"),
        (["explain", "im2col", "--size", "a"], "'a' is not an integer"),
        (["explain", "im2col", "--size", "1000000"], "the padded image would have"),
        (["explain", "im2col", "--kernel", "9"], "does not fit into the 5x5 input"),
        (["explain", "im2col", "--channels", "0"], "--channels"),
        (["explain", "im2col", "--colour", "red"], "--colour"),
        (["explain", "lrn", "--alpha", "much"], "--alpha"),
        (["explain", "lrn", "--html", "FILE/below"], "File exists"),
        (["explain", "conv2d_winograd", "--tile", "3"], "--tile"),
        (["sing"], "sing"),
    ],
)
def test_misuse_is_one_line(run, tmp_path, arguments, expected):
    (tmp_path / "file").touch()
    status, out, err = run(*(a.replace("FILE", str(tmp_path / "file")) for a in arguments))
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and expected in err


def test_what_a_check_finds_keeps_its_lines(run, tmp_path):
    path = tmp_path / "lrn.py"
    assert run("exercise", "lrn", "--out", path)[0] == 0
    status, _, err = run("exercise", "lrn", "--check", path)
    assert status == 2 and err.startswith("Error: not right yet\ncase 1 of ")


@pytest.mark.parametrize("arguments", [[], ["explain"]])
def test_help_where_the_command_is_missing(run, arguments):
    _, out, err = run(*arguments)
    assert "im2col" in out + err or "explain" in out + err
    assert "Error" not in out + err


def test_only_what_is_needed_is_imported():
    code = (
        "import sys; from kernels.__main__ import main; "
        "main(['list'], standalone_mode=False); "
        "print([m for m in ('numba', 'cupy', 'rich', 'minidl') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
