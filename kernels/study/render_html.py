"""An explanation as one self-contained HTML page: pictures to step through, play and point at.

The page holds every grid as a table, so that it can be read without JavaScript too; page.js marks
the cells of one frame after another, and draws arrows between the cells that belong together.
"""

import json
from html import escape
from pathlib import Path

from kernels.study.explanations.model import Explanation, Grid, Step

# A grid of more columns gets smaller cells.
_DENSE = 20
_HERE = Path(__file__).parent
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<div class="page">
<header>
<p>python -m kernels explain {name}</p>
<h1>{title}</h1>
<dl class="settings">{settings}</dl>
</header>
<nav aria-label="Steps"><ol>{buttons}</ol></nav>
<main>
{steps}
</main>
</div>
<div class="controls" role="group" aria-label="Move through the frames"><div>
<button id="previous" type="button" aria-label="Previous frame" title="Previous (left arrow)">\
&#8592;</button>
<button id="play" type="button" aria-pressed="false" title="Play or pause (space)">&#9654; Play\
</button>
<button id="next" type="button" aria-label="Next frame" title="Next (right arrow)">&#8594;</button>
<input id="slider" type="range" min="0" max="0" value="0" step="1" aria-label="Frame">
<span id="position"></span>
</div></div>
<script type="application/json" id="model">{model}</script>
<script>
{script}</script>
</body>
</html>
"""
_ARROW = (
    '<svg class="curves" aria-hidden="true"><defs><marker id="arrow{number}" viewBox="0 0 8 8" '
    'refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z"/>'
    "</marker></defs><g></g></svg>"
)


def page(explanation: Explanation) -> str:
    """The text of the page, which loads nothing from elsewhere."""
    settings = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in explanation.settings
    )
    buttons = "".join(
        f'<li><button type="button">{number}. {escape(step.title)}</button></li>'
        for number, step in enumerate(explanation.steps, 1)
    )
    return _PAGE.format(
        title=escape(explanation.title),
        name=escape(explanation.name),
        settings=settings,
        buttons=buttons,
        steps="\n".join(_section(n, step) for n, step in enumerate(explanation.steps, 1)),
        model=_model(explanation),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )


def _section(number: int, step: Step) -> str:
    parts = [f'<h2 id="step{number}">{number}. {escape(step.title)}</h2>']
    parts += [_paragraph(paragraph) for paragraph in step.text]
    if step.frames:
        parts.append('<p class="caption" aria-live="polite"></p>')
    if step.grids:
        grids = "".join(_grid(grid, f"g{number}-{n}") for n, grid in enumerate(step.grids))
        parts.append(f'<div class="figure">{_ARROW.format(number=number)}{grids}</div>')
    if step.links:
        parts.append(
            '<p class="hint">Point at a cell, or walk there with Tab and the arrow keys, to see '
            "the cells that it is computed from or goes into.</p>"
        )
    body = "\n".join(parts)
    return f'<section class="step" aria-labelledby="step{number}">\n{body}\n</section>'


def _paragraph(paragraph: str) -> str:
    if paragraph.startswith("    "):
        lines = "\n".join(line[4:] for line in paragraph.split("\n"))
        return f'<div class="formula">{escape(lines)}</div>'
    return f"<p>{escape(paragraph)}</p>"


def _grid(grid: Grid, name: str) -> str:
    labels = "".join(f'<th scope="col">{escape(label)}</th>' for label in grid.column_labels)
    rows = "".join(_row(grid, number) for number in range(grid.shape[0]))
    dense = " dense" if grid.shape[1] > _DENSE else ""
    return (
        f'<div class="grid {grid.kind}{dense}"><p class="name" id="{name}">{escape(grid.title)}</p>'
        f'<table role="grid" aria-labelledby="{name}" data-grid="{escape(grid.name)}">'
        f"<thead><tr><td></td>{labels}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(grid: Grid, number: int) -> str:
    cells = []
    for column, cell in enumerate(grid.cells[number]):
        tone = f' class="{cell.tone}"' if cell.tone else ""
        level = "" if cell.level is None else f' style="--level:{cell.level:.3g}"'
        at = f'{tone}{level} data-at="{number},{column}"'
        cells.append(f'<td tabindex="-1"{at}>{escape(cell.text)}</td>')
    label = escape(grid.row_labels[number])
    return f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>'


def _model(explanation: Explanation) -> str:
    """What page.js needs to know, as JSON that can stand in a script element."""
    steps = [
        {
            "title": step.title,
            "links": [
                {
                    "source": link.source,
                    "target": link.target,
                    "pairs": [[*here, *there] for here, there in link.pairs],
                }
                for link in step.links
            ],
            "frames": [
                {
                    "caption": frame.caption,
                    "marks": frame.marks,
                    "strong": frame.strong,
                    "texts": {
                        name: [[*at, text] for at, text in changes.items()]
                        for name, changes in frame.texts.items()
                    },
                }
                for frame in step.frames
            ],
        }
        for step in explanation.steps
    ]
    text = json.dumps({"steps": steps}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
