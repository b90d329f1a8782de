"""The text and the page that explanations become: both show the model, whole and within bounds."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kernels.study.explanations import EXPLANATIONS, explanation
from kernels.study.explanations.model import texts_at
from kernels.study.render_html import page
from kernels.study.render_text import MAX_FRAMES, lines, show
from minidl.testing import conv2d_parameters, pool2d_parameters

VOID = {"meta", "link", "input", "br", "img", "hr"}


def text_of(shown, width):
    return [line.plain for line in lines(shown, width)]


@pytest.mark.parametrize("width", [60, 80, 132])
@pytest.mark.parametrize("name", EXPLANATIONS)
def test_lines_fit(name, width):
    found = text_of(explanation(name), width)
    assert max(map(len, found)) <= width
    assert all(line == line.rstrip() for line in found)


def test_lines_fit_a_narrow_terminal(monkeypatch, capsys):
    """All but those of tables of three wide columns."""
    monkeypatch.setenv("COLUMNS", "40")
    for name in EXPLANATIONS:
        show(explanation(name), Console())
        wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > 40]
        assert len(wide) <= 9
        assert not wide or name in ("grouped_conv2d", "conv2d_winograd", "lrn", "matmul"), wide


@given(conv2d_parameters(max_batch=1), st.sampled_from(["conv2d", "grouped_conv2d", "im2col"]))
@settings(max_examples=15, deadline=None)
def test_lines_of_any_convolution_fit(p, name):
    options = {"size": p.x_shape[2:], "kernel": p.weight_shape[2:], "stride": p.stride,
               "padding": p.padding, "dilation": p.dilation, "channels": p.x_shape[1]}  # fmt: skip
    if name == "im2col":
        options["batch"] = 2
    else:
        options |= {"outputs": p.weight_shape[0], "groups": p.groups}
    assert max(map(len, text_of(explanation(name, **options), 80))) <= 80


@given(pool2d_parameters(max_batch=1, dilated=False))
@settings(max_examples=15, deadline=None)
def test_lines_of_any_pooling_fit(p):
    options = {"size": p.x_shape[2:], "kernel": p.kernel_size, "stride": p.stride,
               "padding": p.padding, "ceil_mode": p.ceil_mode}  # fmt: skip
    for name in ("max_pool2d", "avg_pool2d"):
        assert max(map(len, text_of(explanation(name, **options), 80))) <= 80


def test_text_shows_titles_cells_and_marks():
    shown = explanation("im2col", size=5, kernel=3, stride=2, padding=1)
    text = "\n".join(text_of(shown, 80))
    for step in shown.steps:
        assert step.title in text
    assert " 0 [ ·][ 0][ 1]  2   3   4   ·" in text  # the first patch of the image
    assert "< 1>" in text
    assert "> column 0 = output (0, 0), rows -1 to 1, columns -1 to 1: · · · · 0 1 · 5 6\n" in text
    assert "  column 8 = output (2, 2), rows 3 to 5, columns 3 to 5" in text


def test_wide_grids_and_long_lists_are_cut():
    shown = explanation("im2col", size=12, kernel=3)
    found = text_of(shown, 80)
    assert max(map(len, found)) <= 80
    rows = [line for line in found if line.startswith("0,0")]
    assert rows and all("…" in row and row.split()[-1] in ("117", "99") for row in rows), rows
    more = [line for line in found if "more ..." in line]
    assert more == [f"  ... {count - MAX_FRAMES + 1} more ..." for count in (100, 144)]


@pytest.mark.parametrize("terminal", [True, False])
def test_colours_only_in_a_terminal(terminal):
    colours = "standard" if terminal else "auto"
    out = io.StringIO()
    show(explanation("max_pool2d"), Console(file=out, width=80, color_system=colours,
                                            force_terminal=terminal))  # fmt: skip
    assert ("\x1b[" in out.getvalue()) == terminal


def test_output_that_takes_ascii_alone():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(explanation("im2col", size=12, padding=1), Console(file=out, width=80))
    out.seek(0)
    text = out.read()
    assert "  . " in text and "~" in text


class Reader(HTMLParser):
    """Checks that tags nest, and collects cells, ids and what elements refer to."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.ids, self.references, self.grid = [], {}, [], [], None
        self.script = ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        for name in ("src", "href", "data", "srcset", "poster"):
            assert not attrs.get(name, "").strip() or attrs[name].startswith("data:"), attrs
        assert not any(name.startswith("on") for name in attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.references += [attrs["aria-labelledby"]] if "aria-labelledby" in attrs else []
        if tag == "table":
            self.grid = (len(self.cells), attrs["data-grid"])
            self.cells[self.grid] = []
        elif tag == "td" and "data-at" in attrs:
            self.cells[self.grid].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td" and self.cells[self.grid]:
            self.cells[self.grid][-1] += data
        if self.open and self.open[-1] == "script":
            self.script += data


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_page(name):
    shown = explanation(name)
    text = page(shown)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.references and set(reader.references) <= set(reader.ids)
    # The SVG namespace is a name, not an address that is fetched.
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(http" not in text
    expected = [
        (grid.name, [cell for row in grid.texts() for cell in row])
        for step in shown.steps
        for grid in step.grids
    ]
    assert [(grid, cells) for (_, grid), cells in reader.cells.items()] == expected


def test_model_in_the_page_is_that_of_the_explanation():
    shown = explanation("matmul")
    text = page(shown)
    (stored,) = re.findall(r'<script type="application/json" id="model">(.*?)</script>', text)
    steps = json.loads(stored)["steps"]
    assert [step["title"] for step in steps] == [step.title for step in shown.steps]
    by_blocks = steps[1]["frames"]
    state = texts_at(shown.steps[1], -1)["y"]
    last = {(r, c): t for frame in by_blocks for r, c, t in frame["texts"]["y"]}
    assert all(state[r][c] == text for (r, c), text in last.items()) and len(last) == 16
    pairs = {tuple(pair) for link in steps[0]["links"] for pair in link["pairs"]}
    assert (1, 2, 1, 5) in pairs  # y[1, 2] reads a[1, 5]


def test_what_is_shown_is_escaped():
    text = page(explanation("dropout"))
    assert "element 0: word" in text
    shown = explanation("lrn")
    hostile = type(shown)(shown.name, "</script><b>&", (("a<b", "\"'"),), shown.steps)
    text = page(hostile)
    assert "</script><b>" not in text and "&lt;/script&gt;&lt;b&gt;&amp;" in text
    assert "<dt>a&lt;b</dt>" in text
