"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;  // never markup: names may hold any
  if (parent) parent.append(made);
  return made;
}

function table(parent, rows) {  // rows of {heading: cell}
  if (!rows.length) { element("p", "None.", parent); return; }
  const made = element("table", undefined, parent), head = element("tr", undefined, element("thead", undefined, made));
  const text = Object.keys(rows[0]).map(h => rows.some(r => r[h]) && rows.every(r => !/^[-+±]?[.\d]/.test(r[h] ?? "")));  // else numbers
  const cell = (tag, shown, i, line) => { if (text[i]) element(tag, shown, line).className = "text"; else element(tag, shown, line); };
  Object.keys(rows[0]).forEach((h, i) => cell("th", h.trim(), i, head));
  const body = element("tbody", undefined, made);
  rows.forEach(row => { const line = element("tr", undefined, body); Object.values(row).forEach((v, i) => cell("td", v, i, line)); });
}

function look(extra) {  // what all plots share
  const grid = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  const base = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 10, r: 10, t: 30, b: 10 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") } };
  const made = { ...base, ...extra };
  for (const key of ["xaxis", "yaxis", ...Object.keys(made).filter(k => /^[xy]axis\d/.test(k))]) made[key] = { ...grid, ...(extra[key] || {}) };
  return made;
}
const NARROW = window.innerWidth < 600;
const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"], ...(NARROW ? { displayModeBar: false } : {}) };

function spread(values, log) {  // range with a margin
  let low = Math.min(...values), high = Math.max(...values);
  if (log) { low = Math.log10(low); high = Math.log10(high); }
  const room = 0.06 * (high - low || 1);
  return [low - room, high + room];
}

const QUALITIES = { divergence: `${data.far} from dense${data.unit && `, ${data.unit}`}`, metric: "task metric, %", drop: "metric lost, points" };
const value = (p, key) => key === "divergence" ? Math.max(p.divergence, data.floor) : p[key];
const cost = (p, metric) => at("absolute").checked ? p.costs[metric][0] : 100 * p.costs[metric][1];

function drawFront() {
  const x = at("x").value, y = at("y").value, logx = at("logx").checked, logy = at("logy").checked && y === "divergence";
  const shown = data.points.filter(p => value(p, y) !== null);
  const traces = data.styles.filter(s => shown.some(p => p.source === s.name)).map(s => {
    const own = shown.filter(p => p.source === s.name), bars = own.map(p => y === "divergence" ? p.divergence_error : p.metric_error);
    return { name: s.name, mode: "markers", type: "scatter", x: own.map(p => cost(p, x)), y: own.map(p => value(p, y)), customdata: own.map(p => p.id),
      text: own.map(p => p.about), hoverinfo: "text",
      error_y: { type: "data", array: bars, visible: at("errors").checked && bars.some(b => b), color: s.color, thickness: 0.8, width: 0 },
      marker: { color: s.color === "#000000" ? css("--ink") : s.color, symbol: s.symbol, size: own.map(p => p.front ? 10 : 7), opacity: own.map(p => p.front ? 1 : 0.6), ...(s.symbol.endsWith("open") ? { line: { width: 2 } } : {}) } };
  });
  const line = shown.filter(p => p.front && !p.at_chance && p.source !== "recovered").sort((a, b) => cost(a, x) - cost(b, x));
  traces.unshift({ name: "front", mode: "lines", type: "scatter", hoverinfo: "skip", line: { color: "#1f77b4", width: 1 }, visible: x === data.objectives[1] ? true : "legendonly",
    x: line.map(p => cost(p, x)), y: line.map(p => value(p, y)) });
  const useful = shown.filter(p => !p.at_chance && (p.front || p.near)), framed = useful.length ? useful : shown;
  const xs = spread(framed.map(p => cost(p, x)), logx), ys = spread(framed.map(p => value(p, y)), logy);
  const inside = (v, range, log) => { const u = log ? Math.log10(v) : v; return u >= range[0] && u <= range[1]; };
  const out = shown.filter(p => !inside(cost(p, x), xs, logx) || !inside(value(p, y), ys, logy)).length;
  const floored = y === "divergence" && shown.some(p => p.divergence < data.floor);
  at("clipped").textContent = (out ? `${out} of ${shown.length} plans, at chance or far from the front, are beyond these axes: double-click to see all. ` : "")
    + (floored ? `Divergences below ${data.floor} are drawn there: rounding leaves no more to tell.` : "");
  const shapes = [], limit = data.limits[x];
  if (limit) shapes.push({ type: "rect", xref: "x", yref: "paper", x0: at("absolute").checked ? limit[0] : 100 * limit[1], x1: 1e15, y0: 0, y1: 1, fillcolor: "#d62728", opacity: 0.1, line: { width: 0 } });
  const across = at("absolute").checked ? `${data.metrics[x].title}, ${data.metrics[x].unit}` : data.metrics[x].axis;
  Plotly.react("front", traces, look({ shapes, uirevision: [x, y, logx, logy, at("absolute").checked].join(),
    xaxis: { title: { text: across }, type: logx ? "log" : "linear", range: xs },
    yaxis: { title: { text: QUALITIES[y], standoff: 14 }, type: logy ? "log" : "linear", range: ys, exponentformat: "power" } }), CONFIG);
}

function showPlan(id) {
  const point = data.points.find(p => p.id === id), panel = at("plan");
  panel.replaceChildren();
  if (!point) { element("p", "No plan.", panel); return; }
  element("strong", point.about.split("<br>")[0], panel);
  point.about.split("<br>").slice(1).forEach(line => element("div", line, panel));
  if (point.model) element("div", point.model, panel).className = "soft";
  const rows = (point.plan || []).map((text, i) => ({ layer: data.layers[i] ? data.layers[i].layer : i, becomes: text }));
  if (rows.length) table(panel, rows.filter(r => r.becomes !== "dense").length ? rows.filter(r => r.becomes !== "dense") : rows.slice(0, 1));
}

function heat(id, key, title) {
  const members = data.points.filter(p => p.front && p.plan && p.source !== "recovered" && !p.at_chance).sort((a, b) => a.costs[data.objectives[1]][1] - b.costs[data.objectives[1]][1]);
  const names = data.layers.map(l => l.layer), step = Math.ceil(members.length / (NARROW ? 6 : 14)), some = members.map((_, i) => i).filter(i => i % step === 0);
  const costs = members.map(p => 100 * p.costs[data.objectives[1]][1]);
  const digits = [0, 1, 2].find(d => new Set(some.map(i => costs[i].toFixed(d))).size === some.length) ?? 2;  // so that labels differ
  const height = Math.max(260, 60 + 13 * names.length), z = names.map((_, i) => members.map(p => p[key][i]));
  at(id).style.height = `${height}px`;
  Plotly.react(id, [{ type: "heatmap", x: members.map((p, i) => i), y: names, z, zmin: 0, zmax: Math.max(0.05, ...z.flat()), colorscale: "Viridis",
    text: names.map((_, i) => members.map(p => `${p.about.split("<br>")[1]}: ${p.plan[i]}`)), hovertemplate: "%{y}<br>%{text}<extra></extra>",
    colorbar: { thickness: 10, len: 0.9 } }],
    look({ title: { text: title, font: { size: 13 }, x: 0, xanchor: "left" }, height,
      xaxis: { tickvals: some, ticktext: some.map(i => `${costs[i].toFixed(digits)} %`), tickangle: -60, title: { text: data.metrics[data.objectives[1]].axis } },
      yaxis: { autorange: "reversed", tickfont: { size: 9 }, dtick: 1, tickvals: names, ticktext: names.map(n => n.length > 24 ? "…" + n.slice(-23) : n) } }), CONFIG);
}

function figures(section) {
  data.figures[section].forEach((f, i) => {
    const id = `${section}-${i}`, { title, width, height, template, ...layout } = f.layout;
    if (!at(id)) element("h3", title ? title.text : "", at(section));
    const place = at(id) || element("div", undefined, element("div", undefined, at(section)));
    place.className = "plot"; place.id = id; place.parentNode.className = "wide";
    if (layout.xaxis2) place.style.minWidth = "760px";  // panels side by side
    if (NARROW) place.style.height = `${340 + 20 * f.data.length}px`;  // the legend is as long as there are lines
    const inked = part => JSON.parse(JSON.stringify(part).replaceAll("#000000", css("--ink")));
    Plotly.react(place, inked(f.data), look(inked(layout)), CONFIG);
  });
  if (!data.figures[section].length && at(section)) at(section).remove();
}

function drawVolume() {
  const timed = at("over").value === "minutes", v = data.volume;
  const text = v.plans.map((n, i) => `${n} plans${v.minutes[i] === null ? "" : `, after ${v.minutes[i].toFixed(1)} minutes`}`);
  Plotly.react("volume", [{ type: "scatter", mode: "lines", x: timed ? v.minutes : v.plans, y: v.volume, line: { shape: "hv", color: "#1f77b4" }, text,
    hovertemplate: "%{text}: %{y:.4f}<extra></extra>" }],
    look({ xaxis: { title: { text: timed ? "minutes since the first trial ended" : "finished plans" } }, yaxis: { title: { text: "hypervolume" } }, showlegend: false }), CONFIG);
}

function drawAll() {
  drawFront();
  if (data.layers.length && data.points.some(p => p.front && p.plan)) { heat("ranks", "ranks", "Rank of L"); heat("densities", "densities", "Density of S"); } else if (at("budgets")) at("budgets").remove();
  drawVolume(); figures("latency"); figures("fidelity");
}

for (const [key, text] of data.header) { element("dt", key, at("header")); element("dd", text, at("header")); }
for (const metric of Object.keys(data.metrics)) element("option", data.metrics[metric].title, at("x")).value = metric;
for (const [key, text] of Object.entries(QUALITIES)) if (data.points.some(p => value(p, key) !== null)) element("option", text, at("y")).value = key;
at("x").value = data.objectives[1]; at("y").value = data.objectives[0]; at("logy").checked = true;
for (const id of ["x", "y", "logx", "logy", "absolute", "errors"]) at(id).addEventListener("change", drawFront);
at("over").addEventListener("change", drawVolume);
if (!data.volume.minutes.some(m => m !== null)) at("over").disabled = true;
table(at("choices"), data.choices); data.notes.forEach(note => element("div", note, at("notes")));
if (data.layers.length) table(at("layers"), data.layers); else at("layers-section").remove();
table(at("comparison"), data.comparison);
if (data.rungs.length > 1) table(at("rungs"), data.rungs); else at("rungs-section").remove();
table(at("table"), data.front);
if (data.certificates.length) data.certificates.forEach(c => {
  element("h3", c.title, at("certificates"));
  const wide = element("div", undefined, at("certificates"));
  wide.className = "wide"; table(wide, c.rows);
}); else at("certificates").remove();
drawAll();
at("front").on("plotly_click", event => showPlan(event.points[0].customdata));
showPlan(data.start);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
