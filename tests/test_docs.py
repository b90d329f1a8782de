"""The pages: their Python blocks run, their links and anchors lead somewhere, the site builds.

A page's Python blocks run as they stand, from top to bottom, in one namespace. One that cannot is
preceded by a line ``<!-- not run: REASON -->``.
"""

import functools
import html
import http.server
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import threading
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from kernels import reference
from kernels.__main__ import COMMANDS, main
from kernels.study.exercises import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CHAPTERS = [page for page in sorted((DOCS / "kernels").glob("*.md")) if page.stem != "index"]
BLOCK = re.compile(r"(<!-- not run: (.+?) -->\n+)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def read(page):
    return page.read_text(encoding="utf-8")


def name(page):
    return page.relative_to(ROOT).as_posix()


def code_blocks(text):
    return [match[3] for match in BLOCK.finditer(text) if not match[1]]


def prose(page):
    """The text without its code."""
    return re.sub(r"^```.*?^```|^(?: {4}.*\n)+|`[^`\n]*`", "", read(page), flags=re.S | re.M)


@cache
def anchors(page):
    """The anchors of a page's headings, as Markdown's table of contents makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", read(page), flags=re.S | re.M),
                          re.MULTILINE)  # fmt: skip
    plain = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")) for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading.strip().lower()) for heading in plain}


@pytest.mark.parametrize("page", [p for p in PAGES if code_blocks(read(p))], ids=name)
def test_code_runs(page):
    names = {}
    for block in code_blocks(read(page)):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """Those to pictures are looked at in the built pages: some are drawn as the site is built."""
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", CHAPTERS, ids=name)
def test_a_chapter_is_complete(page):
    text = read(page)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[-3:] == ["The code", "Pitfalls", "Exercises"]
    if page.stem != "optimisers":  # whose steps are not differentiated
        assert headings[0] == "Forward" and "Backward" in headings
    assert code_blocks(text), "no example that runs"
    assert re.search(r"^\{\{ picture \w+ \}\}$", text, re.MULTILINE)
    assert re.search(r"^\{\{ (code|source) .+ \}\}$", text, re.MULTILINE)


def test_every_exercise_is_named_in_a_chapter_and_exists():
    named = {word for page in CHAPTERS
             for word in re.findall(r"python -m kernels exercise (\w+)", read(page))}  # fmt: skip
    assert named == set(EXERCISES)


def commands():
    """Every `python -m kernels COMMAND ...` in the pages, without what stands around it."""
    lines = (line for page in PAGES for line in read(page).splitlines())
    found = (re.findall(r"python -m kernels (\w[^`#|&<]*)", line) for line in lines)
    return sorted({command.strip() for row in found for command in row})


@pytest.mark.parametrize("command", commands())
def test_commands_exist_and_take_their_options(command):
    """Parsed alone, for --help runs nothing: some measure for minutes."""
    arguments = shlex.split(command)
    if arguments[0] not in COMMANDS:
        pytest.skip(f"there is no python -m kernels {arguments[0]} here yet")
    done = CliRunner().invoke(main, [*arguments, "--help"])
    assert done.exit_code == 0, done.output


def test_blocks_can_be_marked_as_not_run():
    text = "```python\na\n```\n\n<!-- not run: needs a GPU -->\n```python\nb\n```\n"
    assert code_blocks(text) == ["a\n"]


class Page(HTMLParser):
    """What a built page loads, its ids, and whether each tag that must be closed is."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.ids, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.append(attributes.get("id"))
        if tag == "a":
            self.links.append(attributes.get("href") or "")
        elif tag in ("link", "script", "img", "iframe", "source"):
            self.loaded += [attributes.get("src") or "", attributes.get("href") or ""]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "pymdownx", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml",
         "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def hooks(monkeypatch):
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    return importlib.import_module("hooks")


def test_code_that_is_not_there_stops_the_build(hooks):
    with pytest.raises(KeyError, match="lrn.py defines no lrm, only check_lrn"):
        hooks.side_by_side("lrn: lrm | _lrn")
    with pytest.raises(FileNotFoundError):
        hooks.side_by_side("lrm: lrn | _lrn")


def test_cuda_code_is_shown_where_there_is_some(hooks, monkeypatch, tmp_path):
    assert "CUDA" in hooks.side_by_side("lrn: lrn | _lrn") or not (
        hooks.kernel_file("cuda", "lrn").exists()
    )
    path = tmp_path / "lrn.cu"
    path.write_text("__global__ void lrn(int n)\n{\n}\n\n__device__ int other()\n{\n}\n")
    (tmp_path / "common.cuh").write_text("__device__ int shared()\n{\n}\n")
    monkeypatch.setattr(hooks, "kernel_file", lambda backend, stem: tmp_path / f"{stem}.cu")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks._cuda("lrn", ["lrn", "x"]) == [("lrn.cu:1", "__global__ void lrn(int n)\n{\n}")]
    chosen = hooks._cuda("lrn", ["x"], ["other", "common.shared"])
    assert [where for where, _ in chosen] == ["lrn.cu:5", "common.cuh:1"]
    assert hooks._cuda("winograd", ["x"]) == []
    with pytest.raises(KeyError, match="lrn.cu defines none of x"):
        hooks._cuda("lrn", ["x"])
    with pytest.raises(KeyError, match="missing"):
        hooks._cuda("lrn", ["x"], ["missing"])


def test_measured_lines_are_those_of_the_baseline(hooks):
    text = hooks.speed("ResNet-18, ResNet-50")
    assert text.count("| ResNet-18 (") == text.count("| ResNet-50 (") == 2
    assert "benchmarks/baseline.md" in text and "cores" in text
    with pytest.raises(KeyError, match="no line on ResNet"):
        hooks.speed("ResNet")


def test_every_kernel_has_its_three_codes_in_a_chapter():
    text = "".join(map(read, CHAPTERS))
    shown = {name.strip() for names in re.findall(r"\{\{ code \w+: ([^|]*)\|", text)
             for name in names.split(",")}  # fmt: skip
    assert set(reference.__all__) | {"conv2d_winograd"} <= shown


def test_the_menu_holds_whatever_pages_there_are(hooks, monkeypatch, tmp_path):
    for page in ("index", "kernels/new", "kernels/lrn", "kernels/index", "networks/vgg",
                 "networks/index", "kernels/conv2d-ladder", "other"):  # fmt: skip
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / f"{page}.md").write_text("# Page\n")
    monkeypatch.setattr(hooks, "DOCS", tmp_path)
    assert hooks.menu() == [
        {"Home": "index.md"},
        {"Kernels": ["kernels/index.md", "kernels/lrn.md", "kernels/new.md"]},
        {"Ladders": ["kernels/conv2d-ladder.md"]},
        {"Networks": ["networks/index.md", "networks/vgg.md"]},
        {"More": ["other.md"]},
    ]


def built(site, page):
    return (site / page.relative_to(DOCS)).with_suffix(".html")


def test_every_page_is_built_and_in_the_menu(site):
    menu = read(site / "index.html")
    for page in PAGES[1:]:
        assert built(site, page).exists(), name(page)
        assert f'href="{page.relative_to(DOCS).with_suffix(".html").as_posix()}"' in menu or (
            page == DOCS / "index.md"
        ), name(page)


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for target in Page(read(path)).loaded:
            assert "//" not in target, f"{path.name} loads {target}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", read(path)), path.name


def test_links_and_anchors_of_the_built_pages(site):
    pages = {path: Page(read(path)) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:", target) or not target:
                continue
            file, _, anchor = html.unescape(target).partition("#")
            there = (path.parent / file).resolve() if file else path
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{path.name}: {target}"
            if anchor and there in pages:
                assert anchor in pages[there].ids, f"{path.name}: {target}"


@pytest.mark.parametrize("page", CHAPTERS, ids=name)
def test_a_built_chapter_shows_code_pictures_and_equations(site, page):
    text = read(built(site, page))
    assert "{{ " not in text and "\\(" not in text and "\\[" not in text
    assert "<math" in text and "<svg" in text
    assert 'class="where">' in text or "class=where" in text
    # No command of LaTeX's was left over in an equation, and no dollar in the prose.
    assert not re.search(r"<m[a-z]+[^>]*>\\", text)
    article = text[text.index("<article") : text.index("</article")]
    prose = re.sub(r"<pre.*?</pre>|<code.*?</code>|<svg.*?</svg>", "", article, flags=re.DOTALL)
    assert "$" not in prose
    ids = [i for i in Page(article).ids if i]
    assert len(ids) == len(set(ids)), "an id stands twice"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Where the built pages are served."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# What sticks out of the window and cannot be scrolled to, and the left edges of columns of code.
LAYOUT = """
const inside = (e) => e.getBoundingClientRect().right <= innerWidth + 1;
const scrolls = (e) => e && (getComputedStyle(e).overflowX != "visible" && inside(e)
                             || scrolls(e.parentElement));
const lefts = (e) => [...e.children].map((c) => Math.round(c.getBoundingClientRect().left));
return {
  width: document.documentElement.scrollWidth,
  outside: [...document.querySelectorAll(".md-content *")]
      .filter((e) => !inside(e) && !scrolls(e)).map((e) => e.outerHTML.slice(0, 80)),
  broken: [...document.querySelectorAll(".md-content img")]
      .filter((e) => !e.complete || !e.naturalWidth).map((e) => e.src),
  columns: [...document.querySelectorAll(".side-by-side")].map(lefts),
  loaded: performance.getEntriesByType("resource").map((e) => e.name),
};
"""


@pytest.mark.parametrize("width", [1280, 400])
def test_pages_in_a_browser(site, address, browser, width):
    """Columns stand side by side, or in a narrow window below each other; nothing sticks out."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for page in PAGES[1:]:
        browser.get(f"{address}/{built(site, page).relative_to(site).as_posix()}")
        layout = browser.execute_script(LAYOUT)
        assert layout["width"] <= width and not layout["outside"], (name(page), layout["outside"])
        assert not layout["broken"], name(page)
        assert all(loaded.startswith(address) for loaded in layout["loaded"]), name(page)
        for lefts in layout["columns"]:
            assert len(set(lefts)) == (len(lefts) if width > 500 else 1), name(page)
        assert browser.get_log("browser") == [], name(page)
