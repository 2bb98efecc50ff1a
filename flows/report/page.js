// Draws the plots and filters tables, examples and plots by text, dataset and cluster. All data is in the page.
(() => {
"use strict";
const plots = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();
const state = { text: "", s: null, c: null };
const field = (id) => document.getElementById("filter-" + id);

function theme() {
  const css = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => css.getPropertyValue(name).trim());
  const font = "system-ui, sans-serif";
  return {
    background: "transparent", font, view: { stroke: "transparent" }, rule: { color: soft },
    axis: { labelColor: ink, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
    legend: { labelColor: ink, titleColor: soft, titleFontWeight: "normal" },
  };
}

const inCluster = (row) => state.c === null || row.c === undefined || row.c === state.c;
const inDataset = (row) => state.s === null || row.s === undefined || row.s === state.s;
const filtered = {
  rows: (rows) => rows.filter((row) => inDataset(row) && inCluster(row)),
  parts: (rows) => rows.filter(inCluster).flatMap((row) => {
    if (state.s === null) return [row];
    return row.parts.filter((part) => part[0] === state.s)
      .map(([, size, selected]) => ({ ...row, size, selected, share: selected / size }));
  }),
  histogram: (rows) => {
    const mine = rows.filter(inDataset), bins = new Map();
    const totals = { pool: 0, selected: 0 };
    for (const row of mine) {
      const bin = bins.get(row.low) ?? { low: row.low, high: row.high, pool: 0, selected: 0 };
      for (const who of ["pool", "selected"]) { bin[who] += row[who]; totals[who] += row[who]; }
      bins.set(row.low, bin);
    }
    return [...bins.values()].flatMap(({ low, high, pool, selected }) => [
      { low, high, who: "pool", count: pool, share: pool / totals.pool },
      { low, high, who: "selection", count: selected, share: totals.selected ? selected / totals.selected : 0 },
    ]);
  },
};

// New objects each time: Vega marks those it has seen, and takes one that comes back for one that goes.
function rowsOf(plot) {
  const fresh = (rows) => rows.map((row) => ({ ...row }));
  return { rows: fresh(filtered[plot.kind](plot.rows)), overall: fresh(state.c === null ? plot.overall : []) };
}

// Of bars: the axis and the legend take 70 pixels. (Vega-Lite's own height by step does not go with a width that fits.)
function height(plot, rows) {
  return plot.step * Math.max(new Set(rows.map((row) => row.name)).size, 1) + 70;
}

async function draw(plot) {
  const place = document.getElementById("plot-" + plot.id);
  views.get(plot.id)?.finalize();
  views.delete(plot.id);
  try {
    const datasets = rowsOf(plot);
    const spec = { ...plot.spec, description: plot.label, datasets };
    if (plot.step) spec.height = height(plot, datasets.rows);
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: theme(),
      tooltip: { theme: dark.matches ? "dark" : "light" } };
    const drawn = await vegaEmbed(place, spec, options);
    if (field("cluster")) drawn.view.addEventListener("click", (_, item) => choose(item?.datum?.c));
    views.set(plot.id, drawn);
  } catch (error) {
    place.textContent = "This plot could not be drawn; the tables hold its numbers.";
    throw error;
  }
}

function refresh(plot) {
  const view = views.get(plot.id)?.view;
  if (!view) return undefined;
  const { rows, overall } = rowsOf(plot);
  view.data("rows", rows);
  if (plot.overall.length) view.data("overall", overall);
  if (plot.step) view.height(height(plot, rows)).resize();
  return view.runAsync();
}

// A cluster that is clicked is the only one left; clicked again, all are back.
function choose(cluster) {
  if (cluster === undefined) return;
  field("cluster").value = state.c === cluster ? "" : cluster;
  filter();
}

// The text is searched in examples only: tables of files and settings have nothing to do with it.
function matches(item, searched) {
  const { s, parts, c } = item.dataset;
  if (state.s !== null && s !== undefined && Number(s) !== state.s) return false;
  if (state.s !== null && parts !== undefined && !parts.includes(` ${state.s} `)) return false;
  if (state.c !== null && c !== undefined && Number(c) !== state.c) return false;
  return !searched || !state.text || (item.textContent + " " + (item.dataset.id ?? "")).toLowerCase().includes(state.text);
}

function filter() {
  const number = (id) => (field(id)?.value ? Number(field(id).value) : null);
  Object.assign(state, { text: field("text").value.trim().toLowerCase(), s: number("dataset"), c: number("cluster") });
  for (const table of document.querySelectorAll("details.table")) {
    const rows = [...table.querySelectorAll("tbody tr")];
    for (const row of rows) row.hidden = !matches(row, false);
    table.querySelector(".shown").textContent = rows.filter((row) => !row.hidden).length;
  }
  const examples = [...document.querySelectorAll(".example")];
  for (const example of examples) example.hidden = !matches(example, true);
  const any = Boolean(state.text) || state.s !== null || state.c !== null;
  for (const group of document.querySelectorAll(".group, .changed")) {
    group.hidden = !group.querySelector(".example:not([hidden])");
    if (any) group.open = true;
  }
  const left = examples.filter((example) => !example.hidden).length;
  document.getElementById("filter-says").textContent = any ? `${left} of ${examples.length} examples` : "";
  const now = JSON.stringify(state);
  Promise.all(plots.map(refresh)).then(() => { document.documentElement.dataset.shows = now; });
}

function sortable(table) {
  const collator = new Intl.Collator(undefined, { numeric: true });
  table.querySelectorAll("th").forEach((head, at) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
    const body = table.tBodies[0];
    const key = (row) => row.cells[at].dataset.v ?? row.cells[at].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not there comes last
      const numeric = a.cells[at].dataset.v !== undefined;
      return down * (numeric ? x - y : collator.compare(x, y));
    };
    body.append(...[...body.rows].sort(compare));
  }));
}

document.querySelectorAll("table").forEach(sortable);
const form = document.querySelector(".filters");
let waiting;
form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
dark.addEventListener("change", () => plots.forEach(draw));
Promise.all(plots.map(draw)).then(() => { document.documentElement.dataset.drawn = plots.length; filter(); });
})();
