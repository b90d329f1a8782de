"use strict";
// Steps through the frames of an explanation. The grids are in the page; the model says which of
// their cells each frame marks and changes, and which cells belong to which.

// More arrows than these, for a frame and for a cell pointed at, would hide what they connect.
const FRAME_CURVES = 20, CELL_CURVES = 48;
const PACE = 1300; // milliseconds a frame while playing
const SVG = "http://www.w3.org/2000/svg";

const model = JSON.parse(document.getElementById("model").textContent);
const sections = [...document.querySelectorAll(".step")];
const stepButtons = [...document.querySelectorAll("nav button")];
const slider = document.getElementById("slider");
const play = document.getElementById("play");
const positionText = document.getElementById("position");

// One entry a position of the slider: a step, and one of its frames (or none).
const positions = model.steps.flatMap((step, s) =>
  step.frames.length ? step.frames.map((_, f) => [s, f]) : [[s, -1]]);
const figures = sections.map((section, s) => figure(section, model.steps[s]));
let current = 0;
let timer = null;

document.documentElement.classList.add("script");

function figure(section, step) {
  const cells = new Map(); // "grid row column" -> the cell
  for (const table of section.querySelectorAll("table")) {
    for (const cell of table.querySelectorAll("td[data-at]")) {
      cell.key = `${table.dataset.grid} ${cell.dataset.at}`;
      cell.stands = cell.textContent;
      cells.set(cell.key, cell);
    }
  }
  const partners = new Map(); // key -> [key, whether the partner is what is computed]
  const add = (from, to, forward) => {
    if (!partners.has(from)) partners.set(from, []);
    partners.get(from).push([to, forward]);
  };
  for (const { source, target, pairs } of step.links) {
    for (const [r, c, row, column] of pairs) {
      add(`${source} ${r},${c}`, `${target} ${row},${column}`, false);
      add(`${target} ${row},${column}`, `${source} ${r},${c}`, true);
    }
  }
  return { section, step, cells, partners, curves: section.querySelector(".curves g"), hot: null };
}

function keys(marks) {
  return Object.entries(marks).flatMap(([grid, at]) => at.map(([r, c]) => `${grid} ${r},${c}`));
}

function show(position) {
  current = Math.min(Math.max(position, 0), positions.length - 1);
  const [s, f] = positions[current];
  sections.forEach((section, i) => section.classList.toggle("current", i === s));
  stepButtons.forEach((button, i) => {
    if (i === s) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  });
  draw(figures[s], f);
  slider.value = current;
  const text = `${current + 1} / ${positions.length}`;
  slider.setAttribute("aria-valuetext", `${text}: ${model.steps[s].title}`);
  positionText.textContent = text;
  document.getElementById("previous").disabled = current === 0;
  document.getElementById("next").disabled = current === positions.length - 1;
}

function draw(shown, f) {
  const { cells, step, section } = shown;
  for (const cell of cells.values()) {
    cell.classList.remove("mark", "strong");
    cell.textContent = cell.stands;
  }
  if (f >= 0) {
    for (const { texts } of step.frames.slice(0, f + 1)) {
      for (const [grid, changes] of Object.entries(texts)) {
        for (const [r, c, text] of changes) cells.get(`${grid} ${r},${c}`).textContent = text;
      }
    }
    const { caption, marks, strong } = step.frames[f];
    for (const key of keys(marks)) cells.get(key).classList.add("mark");
    for (const key of keys(strong)) {
      cells.get(key).classList.remove("mark");
      cells.get(key).classList.add("strong");
    }
    section.querySelector(".caption").textContent = caption;
    reveal(shown);
  }
  shown.frame = f;
  drawCurves(shown);
}

// Scroll grids that are wider than the page to what is marked in them.
function reveal({ section }) {
  for (const box of section.querySelectorAll(".grid")) {
    const marked = box.querySelector("td.strong, td.mark");
    if (!marked || box.scrollWidth <= box.clientWidth) continue;
    const at = marked.offsetLeft;
    if (at < box.scrollLeft || at + marked.offsetWidth > box.scrollLeft + box.clientWidth) {
      box.scrollLeft = at - box.clientWidth / 2;
    }
  }
}

// Arrows run from what is read to what is computed: at the cell pointed at, or between all cells
// that are marked.
function drawCurves(shown) {
  const { section, cells, partners, curves, hot } = shown;
  if (!curves) return; // a step of text alone
  curves.replaceChildren();
  const pairs = hot
    ? (partners.get(hot) ?? []).map(([to, forward]) => forward ? [hot, to] : [to, hot])
    : markedPairs(shown);
  if (pairs.length > (hot ? CELL_CURVES : FRAME_CURVES)) return;
  curves.style.setProperty("--strength", Math.min(0.7, Math.max(0.25, 4 / pairs.length)));
  const frame = section.querySelector(".figure").getBoundingClientRect();
  const arrow = `url(#${section.querySelector("marker").id})`;
  for (const [from, to] of pairs) {
    const a = cells.get(from), b = cells.get(to);
    if (!visible(a) || !visible(b)) continue;
    curves.append(curve(a.getBoundingClientRect(), b.getBoundingClientRect(), frame, arrow));
  }
}

function markedPairs({ cells, partners }) {
  const marked = (key) => cells.get(key).matches(".mark, .strong");
  return [...partners].flatMap(([key, others]) => marked(key)
    ? others.filter(([to, forward]) => forward && marked(to)).map(([to]) => [key, to]) : []);
}

function visible(cell) {
  const box = cell.closest(".grid").getBoundingClientRect(), at = cell.getBoundingClientRect();
  return at.left >= box.left - 4 && at.right <= box.right + 4;
}

function curve(a, b, frame, arrow) {
  const x = (box) => box.left + box.width / 2 - frame.left;
  const y = (box) => box.top + box.height / 2 - frame.top;
  const beside = a.right < b.left || b.right < a.left;
  const sign = (beside ? x(b) > x(a) : y(b) > y(a)) ? 1 : -1;
  const start = beside ? [x(a) + sign * a.width / 2, y(a)] : [x(a), y(a) + sign * a.height / 2];
  const end = beside ? [x(b) - sign * b.width / 2, y(b)] : [x(b), y(b) - sign * b.height / 2];
  const bend = sign * Math.max(24, Math.abs(beside ? end[0] - start[0] : end[1] - start[1]) / 2);
  const [dx, dy] = beside ? [bend, 0] : [0, bend];
  // Level with each other, the two would be joined by a line through what stands between them.
  const level = beside && Math.abs(end[1] - start[1]) < a.height;
  const lift = level ? Math.min(48, Math.abs(end[0] - start[0]) / 5) : 0;
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", `M${start} C${start[0] + dx},${start[1] + dy - lift} ` +
    `${end[0] - dx},${end[1] - dy - lift} ${end}`);
  path.setAttribute("marker-end", arrow);
  return path;
}

function point(shown, cell) {
  const key = cell?.key ?? null;
  if (key === shown.hot) return;
  shown.hot = shown.partners.has(key) ? key : null;
  for (const other of shown.cells.values()) other.classList.remove("hot", "linked");
  if (shown.hot) {
    cell.classList.add("hot");
    for (const [to] of shown.partners.get(shown.hot)) shown.cells.get(to).classList.add("linked");
  }
  drawCurves(shown);
}

function walk(cell, key) {
  const [r, c] = cell.dataset.at.split(",").map(Number);
  const [dr, dc] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
  const next = cell.closest("table").querySelector(`td[data-at="${r + dr},${c + dc}"]`);
  if (!next) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function setPlaying(on) {
  clearInterval(timer);
  timer = null;
  if (on) {
    if (current === positions.length - 1) show(0);
    timer = setInterval(() => {
      show(current + 1);
      if (current === positions.length - 1) setPlaying(false);
    }, PACE);
  }
  play.textContent = on ? "❚❚ Pause" : "▶ Play";
  play.setAttribute("aria-pressed", on);
}

function go(position) {
  setPlaying(false);
  show(position);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const cell = event.target.closest?.("td[data-at]");
  if (cell && event.key.startsWith("Arrow")) walk(cell, event.key);
  else if (cell && event.key === "Escape") cell.blur();
  else if (event.target === slider) return;
  else if (event.key === "ArrowRight") go(current + 1);
  else if (event.key === "ArrowLeft") go(current - 1);
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(positions.length - 1);
  else if (event.key === " " && event.target.tagName !== "BUTTON") setPlaying(timer === null);
  else return;
  event.preventDefault();
}

for (const shown of figures) {
  const area = shown.section.querySelector(".figure");
  if (!area) continue;
  for (const table of area.querySelectorAll("table")) {
    const first = table.querySelector("td[data-at]");
    if (first && shown.partners.size) first.tabIndex = 0;
  }
  area.addEventListener("mouseover", (event) => point(shown, event.target.closest("td[data-at]")));
  area.addEventListener("mouseleave", () => point(shown, null));
  area.addEventListener("focusin", (event) => point(shown, event.target.closest("td[data-at]")));
  area.addEventListener("focusout", () => point(shown, null));
  area.addEventListener("scroll", () => drawCurves(shown), true);
}
slider.max = positions.length - 1;
slider.addEventListener("input", () => go(Number(slider.value)));
document.getElementById("previous").addEventListener("click", () => go(current - 1));
document.getElementById("next").addEventListener("click", () => go(current + 1));
play.addEventListener("click", () => setPlaying(timer === null));
stepButtons.forEach((button, s) =>
  button.addEventListener("click", () => go(positions.findIndex(([step]) => step === s))));
document.addEventListener("keydown", onKey);
window.addEventListener("resize", () => drawCurves(figures[positions[current][0]]));
show(0);
