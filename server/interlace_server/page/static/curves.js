// Curves over steps or layers, by uPlot: of what a job measures while it runs, and of tables that are marked so.
"use strict";

(() => {
  const MOST = 8, TALL = 190;
  const drawn = new Set();
  const tint = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const short = (value) => value == null ? "–" : String(Number(value.toPrecision(4)));

  function curve(parent, over, name) {
    const box = parent.appendChild(document.createElement("div"));
    box.className = "curve";
    box.tabIndex = 0;
    box.setAttribute("role", "img");
    const one = { box, over, name, data: [[], []], plot: null };
    box.addEventListener("keydown", (event) => walk(one, event));
    new ResizeObserver(() => one.plot?.setSize({ width: box.clientWidth, height: TALL })).observe(box);
    drawn.add(one);
    return one;
  }

  function draw(one) {
    const axis = { stroke: tint("soft"), grid: { stroke: tint("line"), width: 1 }, ticks: { stroke: tint("line"), width: 1 } };
    const said = (_, value) => short(value);
    one.plot?.destroy();
    one.plot = new uPlot({
      width: one.box.clientWidth, height: TALL,
      scales: { x: { time: false } },
      axes: [{ ...axis }, { ...axis, size: 60, values: (_, ticks) => ticks.map(short) }],
      cursor: { sync: { key: one.over }, drag: { x: true, y: false } },
      series: [
        { label: one.over, value: said },
        { label: one.name, value: said, stroke: tint("accent"), width: 2, points: { show: one.data[0].length < 40 } },
      ],
    }, one.data, one.box);
    told(one);
  }

  function told(one) {
    const last = one.data[0].length - 1;
    const now = last < 0 ? "" : `: ${short(one.data[1][last])} at ${one.over} ${short(one.data[0][last])}`;
    one.box.setAttribute("aria-label", `Curve of ${one.name} over ${one.over}${now}. Left and right move along it.`);
  }

  function walk(one, event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !one.plot) return;
    event.preventDefault();
    const last = one.data[0].length - 1;
    const at = Math.min(last, Math.max(0, (one.plot.cursor.idx ?? (by > 0 ? -1 : last + 1)) + by));
    const [left, top] = [one.plot.valToPos(one.data[0][at], "x"), one.plot.valToPos(one.data[1][at] ?? 0, "y")];
    one.plot.setCursor({ left, top });
  }

  const follow = document.getElementById("follow");
  const live = new Map();
  let due = false;
  follow?.addEventListener("progress", ({ detail }) => {
    for (const [name, value] of Object.entries(detail.metrics)) {
      if (!live.has(name) && live.size >= MOST) continue;
      if (!live.has(name)) live.set(name, curve(document.getElementById("curves"), "step", name));
      const [steps, values] = live.get(name).data;
      if (steps.length && detail.step <= steps[steps.length - 1]) steps.length = values.length = 0; // a loop begins anew
      steps.push(detail.step);
      values.push(value);
    }
    if (live.size) follow.hidden = false;
    if (due || !live.size) return;
    due = true;
    requestAnimationFrame(() => { due = false; live.forEach(draw); });
  });

  function tables() {
    for (const table of document.querySelectorAll("table[data-curves]")) {
      const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
      const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.dataset.value ?? ""));
      const parent = document.createElement("div");
      parent.className = "curves";
      table.parentElement.before(parent);
      for (const column of table.dataset.curves.split(" ").map(Number)) {
        const one = curve(parent, names[0], names[column]);
        const number = (text) => text === "" ? null : Number(text);
        one.data = [rows.map((row) => number(row[0])), rows.map((row) => number(row[column]))];
        draw(one);
      }
      table.removeAttribute("data-curves");
    }
    for (const one of drawn) if (!one.box.isConnected) { one.plot?.destroy(); drawn.delete(one); }
  }
  document.addEventListener("DOMContentLoaded", tables);
  document.addEventListener("htmx:afterSettle", tables);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
})();
