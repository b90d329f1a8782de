"""The pages in a real browser: every frame of every explanation, and what happens on the way."""

import math

import numpy as np
import pytest

from kernels import reference
from kernels.study.explanations import EXPLANATIONS, explanation
from kernels.study.explanations.model import texts_at
from kernels.study.render_html import page

pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[browser]'")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

# What the page shows: the step, the line below it, the marked cells, and all texts.
STATE = """
const section = document.querySelector(".step.current");
const numbers = (cell) => cell.dataset.at.split(",").map(Number);
const at = (cell) => [cell.closest("table").dataset.grid, ...numbers(cell)];
const all = (selector) => [...section.querySelectorAll(selector)].map(at);
return {
  title: section.querySelector("h2").textContent,
  caption: section.querySelector(".caption")?.textContent ?? null,
  mark: all("td.mark"), strong: all("td.strong"), linked: all("td.linked"), hot: all("td.hot"),
  curves: section.querySelectorAll(".curves g path").length,
  texts: Object.fromEntries([...section.querySelectorAll("table")].map((table) => [
    table.dataset.grid,
    [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((c) => c.textContent))])),
  position: document.getElementById("position").textContent,
  slider: Number(document.getElementById("slider").value),
};
"""


@pytest.fixture
def visit(browser, tmp_path):
    """Open the page of an explanation; afterwards the console must be empty."""

    def open_page(name, **options):
        shown = explanation(name, **options)
        path = tmp_path / f"{name}.html"
        path.write_text(page(shown), encoding="utf-8")
        browser.get(path.as_uri())
        return shown

    yield open_page
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def state(browser):
    return browser.execute_script(STATE)


def click(browser, button):
    """The state after a click, in one call: there are hundreds of them."""
    return browser.execute_script(f"arguments[0].click();{STATE}", button)


def spots(cells):
    """Cells as a set of (grid, row, column)."""
    return {tuple(cell) for cell in cells}


def marked(marks):
    return {(name, *at) for name, cells in marks.items() for at in cells}


def frames(shown):
    """(number of the step, step, number of the frame or None) of all positions of the slider."""
    for number, step in enumerate(shown.steps, 1):
        for frame in range(len(step.frames)) or (None,):
            yield number, step, frame


def check_frame(seen, number, step, frame):
    assert seen["title"] == f"{number}. {step.title}"
    if frame is None:
        assert seen["mark"] == seen["strong"] == []
        return
    now = step.frames[frame]
    assert seen["caption"] == " ".join(now.caption.split())
    assert spots(seen["strong"]) == marked(now.strong)
    assert spots(seen["mark"]) == marked(now.marks) - marked(now.strong)
    assert seen["texts"] == texts_at(step, frame)


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_every_frame_forward_and_back(browser, visit, name):
    shown = visit(name)
    positions = list(frames(shown))
    following, previous = (browser.find_element(By.ID, b) for b in ("next", "previous"))
    assert not previous.is_enabled()
    check_frame(state(browser), *positions[0])
    for index, position in enumerate(positions[1:], 1):
        seen = click(browser, following)
        check_frame(seen, *position)
        assert seen["position"] == f"{index + 1} / {len(positions)}" and seen["slider"] == index
    assert not following.is_enabled()
    for position in reversed(positions[:-1]):
        check_frame(click(browser, previous), *position)
    assert not previous.is_enabled()


def cell(browser, grid, row, column):
    return browser.find_element(
        By.CSS_SELECTOR, f'.current table[data-grid="{grid}"] td[data-at="{row},{column}"]'
    )


def hover(browser, *at):
    ActionChains(browser, duration=0).move_to_element(cell(browser, *at)).perform()
    return state(browser)


def go_to_step(browser, number):
    browser.find_elements(By.CSS_SELECTOR, "nav button")[number - 1].click()


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_pointing_shows_the_linked_cells(browser, visit, name):
    shown = visit(name)
    for number, step in enumerate(shown.steps, 1):
        go_to_step(browser, number)
        partners = {}
        for link in step.links:
            for here, there in link.pairs:
                source, target = (link.source, *here), (link.target, *there)
                partners.setdefault(source, set()).add(target)
                partners.setdefault(target, set()).add(source)
        chosen = sorted(partners)[:: max(1, len(partners) // 5)]
        for at in chosen:
            seen = hover(browser, *at)
            assert spots(seen["hot"]) == {at} and spots(seen["linked"]) == partners[at], at
            assert seen["curves"] in (len(partners[at]), 0)
        if chosen:
            ActionChains(browser).move_to_element(
                browser.find_element(By.CSS_SELECTOR, ".current h2")
            ).perform()
            seen = state(browser)
            assert seen["hot"] == seen["linked"] == []


def test_linked_cells_are_those_that_the_kernel_reads(browser, visit):
    """im2col and back on uneven settings, straight against the reference."""
    shape, kernel, settings = (1, 1, 5, 4), (3, 2), ((2, 1), (1, 0, 0, 1), (1, 2))
    visit("im2col", size=shape[2:], kernel=kernel, stride=settings[0], padding=settings[1],
          dilation=settings[2])  # fmt: skip
    cols = reference.im2col(
        np.arange(1.0, math.prod(shape) + 1).reshape(shape), kernel, *settings
    )
    top, _, left, _ = settings[1]
    for pixel in np.ndindex(shape[2:]):
        number = 1 + pixel[0] * shape[3] + pixel[1]
        entries = {tuple(map(int, at)) for at in zip(*np.nonzero(cols == number), strict=True)}
        place = (pixel[0] + top, pixel[1] + left)
        for step, (image, matrix) in ((2, ("x", "cols")), (4, ("dx", "dcols"))):
            go_to_step(browser, step)
            seen = hover(browser, image, *place)
            assert spots(seen["linked"]) == {(matrix, *at) for at in entries}
            count = seen["texts"][image][place[0]][place[1]]
            assert step == 2 or int(count) == len(entries)


def test_keys_slider_and_play(browser, visit):
    shown = visit("matmul")
    last = len(list(frames(shown))) - 1
    body = browser.find_element(By.TAG_NAME, "body")

    def now():
        return state(browser)["slider"]

    for key, expected in [
        (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1), (Keys.END, last),
        (Keys.ARROW_RIGHT, last), (Keys.HOME, 0), (Keys.ARROW_LEFT, 0),
    ]:  # fmt: skip
        body.send_keys(key)
        assert now() == expected
    slider = browser.find_element(By.ID, "slider")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert now() == 1
    assert slider.get_attribute("aria-valuetext") == f"2 / {last + 1}: {shown.steps[0].title}"
    play = browser.find_element(By.ID, "play")
    play.click()
    assert play.get_attribute("aria-pressed") == "true" and "Pause" in play.text
    WebDriverWait(browser, 20).until(lambda _: now() >= 2)
    play.click()
    assert play.get_attribute("aria-pressed") == "false" and "Play" in play.text
    body.send_keys(Keys.END)
    before = now()
    assert before == last
    body.send_keys(Keys.SPACE)  # playing from the end starts anew
    assert now() == 0 and "Pause" in play.text
    body.send_keys(Keys.ARROW_RIGHT)  # and a step by hand stops it
    assert now() == 1 and "Play" in play.text


def test_cells_can_be_walked_with_the_keyboard(browser, visit):
    visit("lrn")
    first = cell(browser, "y", 0, 0)
    browser.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    cell(browser, "y", 0, 1).send_keys(Keys.ARROW_RIGHT)
    seen = state(browser)
    assert spots(seen["hot"]) == {("y", 0, 2)}
    assert spots(seen["linked"]) == {("x", row, 0) for row in range(3)}
    assert seen["slider"] == 0  # the arrows have moved in the grid, not through the frames
    cell(browser, "y", 0, 2).send_keys(Keys.ESCAPE)
    assert state(browser)["hot"] == []


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)"."""
    parts = [float(p) / 255 for p in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(p * w for p, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_both_schemes_can_be_read(browser, visit, scheme):
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},  # no colours on their way
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        visit("im2col", size=5, kernel=3, stride=2, padding=1)
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.END)
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (luminance(ground) < 0.5) == (scheme == "dark")
        readable = "td.mark", "td.strong", "td[style]", "h1", ".caption", "nav [aria-current]"
        for selector in readable:
            element = browser.find_element(By.CSS_SELECTOR, f".current {selector}, {selector}")
            ink, paper = browser.execute_script(
                "const s = getComputedStyle(arguments[0]); return [s.color, s.backgroundColor]",
                element,
            )
            paper = ground if paper == "rgba(0, 0, 0, 0)" else paper
            light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, ink, paper)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("name", ["conv2d", "grouped_conv2d", "dropout"])
def test_narrow_windows_scroll_grids_not_the_page(browser, visit, name):
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        shown = visit(name)
        for number in range(1, len(shown.steps) + 1):
            browser.execute_script(f"document.querySelectorAll('nav button')[{number - 1}].click()")
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_can_be_read_without_script(browser, visit):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown = visit("batchnorm")
        assert [h.text for h in browser.find_elements(By.TAG_NAME, "h2")] == [
            f"{number}. {step.title}" for number, step in enumerate(shown.steps, 1)
        ]
        assert not browser.find_element(By.ID, "play").is_displayed()
        tables = browser.find_elements(By.TAG_NAME, "table")
        assert len(tables) == sum(len(step.grids) for step in shown.steps)
        assert all(table.is_displayed() for table in tables)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
