"use strict";
// Everything shown comes from #data. Text reaches the page as text nodes only, so no name can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KINDS = [
  { key: "tp", title: "true positive", colour: "#3b9dff" },
  { key: "fading", title: "fading", colour: "#ffb000" },
  { key: "fp", title: "false positive", colour: "#b8bec6" },
  { key: "exacerbated", title: "exacerbated", colour: "#ff4d4d" },
  { key: "ignored", title: "in a crowd", colour: "#a88bfa" },
];
const TRUTH = "#2fd46c", POINT = "#ff5cf0";
const FILTERS = [
  ["all", "all images"], ["fading", "fading detections"], ["exacerbated", "exacerbated detections"],
  ["missed", "missed objects"], ["recoverable", "recoverable misses"], ["best", "best images first"], ["worst", "worst images first"],
];
const colour = (run) => `var(--run${run % 4})`;

function make(space, tag, attributes, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => make(null, tag, attributes, children);
const sv = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));

// --- The image browser

const state = { image: 0, stage: Math.max(...data.runs.map((r) => r.stages)), threshold: 0.3, filter: "all", truth: true,
  points: true, shown: new Set(KINDS.map((k) => k.key)), chosen: null };

function order() {
  const places = data.images.map((_, i) => i);
  const count = (i, key) => data.images[i].runs.reduce((sum, run) => sum + run.counts[key], 0);
  const quality = (i) => data.images[i].runs[data.images[i].runs.length - 1].ap;
  if (state.filter === "all") return places;
  if (state.filter === "best" || state.filter === "worst") {
    const known = places.filter((i) => quality(i) !== null);
    return known.sort((a, b) => (state.filter === "best" ? quality(b) - quality(a) : quality(a) - quality(b)));
  }
  return places.filter((i) => count(i, state.filter) > 0).sort((a, b) => count(b, state.filter) - count(a, state.filter));
}

let listed = [];
function fillList() {
  listed = order();
  const buttons = listed.map((i) => {
    const image = data.images[i];
    const facts = image.runs.map((run) =>
      `AP ${percent(run.ap, 0)}, ${run.counts.fading} fading, ${run.counts.exacerbated} exacerbated, ${run.counts.missed} missed`);
    return el("button", { type: "button", "data-image": i, click: () => show(i) }, image.file,
      ...facts.map((fact, r) => el("small", {}, data.runs.length > 1 ? `${data.runs[r].name}: ${fact}` : fact)));
  });
  $("list").replaceChildren(...(buttons.length ? buttons : [el("p", { class: "explain" }, "No image has any.")]));
  if (listed.length && !listed.includes(state.image)) state.image = listed[0];
}

function show(image) {
  state.image = image;
  state.chosen = null;
  draw();
}

function step(by) {
  if (!listed.length) return;
  const place = listed.indexOf(state.image);
  show(listed[(place + by + listed.length) % listed.length]);
}

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Int16Array(bytes.buffer);
}

function overlap(box, truth) {
  const w = Math.min(box[2], truth[0] + truth[2]) - Math.max(box[0], truth[0]);
  const h = Math.min(box[3], truth[1] + truth[3]) - Math.max(box[1], truth[1]);
  if (w <= 0 || h <= 0) return 0;
  return (w * h) / ((box[2] - box[0]) * (box[3] - box[1]) + truth[2] * truth[3] - w * h);
}

function rectangle(x1, y1, x2, y2, attributes, title) {
  const size = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
  return sv("rect", { ...size, ...attributes }, sv("title", {}, title));
}

function pane(image, r) {
  const run = data.runs[r], said = image.runs[r];
  const stage = Math.min(state.stage, run.stages) - 1;
  const view = sv("svg", { viewBox: `0 0 ${image.w} ${image.h}`, "data-run": r });
  view.append(sv("image", { href: image.src, width: image.w, height: image.h }));
  const letter = Math.max(image.w, image.h) / 42;
  if (state.truth) {
    image.truth.forEach(([x, y, w, h, label, crowd], t) => {
      const missed = said.missed.includes(t), again = said.recoverable.includes(t);
      const what = `object: ${data.classes[label]}${crowd ? " (crowd)" : again ? ", missed, recoverable" : missed ? ", missed" : ""}`;
      view.append(rectangle(x, y, x + w, y + h, { class: "box truth", stroke: TRUTH,
        "stroke-dasharray": crowd ? "2 3" : missed ? "10 3" : "5 4", style: missed ? "stroke-width: 4" : "" }, what));
    });
  }
  const chosen = said.queries.find((q) => state.chosen && state.chosen.run === r && q.i === state.chosen.query);
  const visible = said.queries.filter((q) => q === chosen || (q.s[stage] >= state.threshold && state.shown.has(KINDS[q.k].key)));
  visible.sort((a, b) => a.s[stage] - b.s[stage]);
  for (const q of visible) {
    const [x1, y1, x2, y2] = q.x[stage], kind = KINDS[q.k];
    const text = `${data.classes[q.l[stage]]} ${q.s[stage].toFixed(2)}`;
    view.append(rectangle(x1, y1, x2, y2, { class: `box${q === chosen ? " chosen" : ""}`, stroke: kind.colour, "data-query": q.i,
      "data-kind": kind.key, "stroke-dasharray": kind.key === "fp" ? "4 2" : undefined,
      click: () => { state.chosen = { run: r, query: q.i }; draw(); } }, `query ${q.i}: ${text}, ${kind.title}`));
    view.append(sv("text", { class: "label", x: Math.max(0, x1) + 2, y: Math.max(letter, y1 - letter / 4), "font-size": letter,
      "stroke-width": letter / 5, style: `fill: ${kind.colour}` }, text));
  }
  if (chosen && state.points && chosen.p) {
    const places = decode(chosen.p[stage]);
    for (let i = 0; i < places.length; i += 2)
      view.append(sv("circle", { class: "point", cx: (places[i] / 1000) * image.w, cy: (places[i + 1] / 1000) * image.h,
        r: image.w / 220, fill: POINT, stroke: "#000", "stroke-width": image.w / 1200 }));
  }
  return el("figure", { class: "pane" }, el("figcaption", {},
    `${run.name}, stage ${stage + 1} of ${run.stages}: ${visible.length} of ${said.total} queries`), view);
}

function detail(image) {
  if (!state.chosen) return [el("p", { class: "explain" }, "Click a box to follow its query through the stages.")];
  const run = data.runs[state.chosen.run];
  const q = image.runs[state.chosen.run].queries.find((one) => one.i === state.chosen.query);
  if (!q) return [];
  const truth = q.m >= 0 ? image.truth[q.m] : null;
  const rows = q.s.map((score, s) => el("tr", {}, el("td", {}, String(s + 1)), el("td", {}, data.classes[q.l[s]]),
    el("td", {}, score.toFixed(3)), el("td", {}, truth ? overlap(q.x[s], truth).toFixed(2) : "–"),
    el("td", {}, s === q.b ? "better here" : s === Math.min(state.stage, run.stages) - 1 ? "shown" : "")));
  return [el("h3", {}, `${run.name}: query ${q.i} ends as ${KINDS[q.k].title}`),
    el("table", {}, el("tr", {}, ...["stage", "class", "score", "IoU with its object", ""].map((t) => el("th", {}, t))), ...rows),
    state.points && !q.p ? el("p", { class: "explain" }, run.points ? "No sampling points were kept for this query." : "This detector's stages do not sample points.") : ""];
}

function draw() {
  const image = data.images[state.image];
  $("stage").value = state.stage;
  $("stage-number").textContent = String(state.stage);
  $("threshold-number").textContent = state.threshold.toFixed(2);
  if (!image) return;
  $("panes").replaceChildren(...data.runs.map((_, r) => pane(image, r)));
  $("detail").replaceChildren(...detail(image));
  const place = listed.indexOf(state.image);
  $("place").textContent = `${place + 1} of ${listed.length}: ${image.file}`;
  for (const button of $("list").querySelectorAll("button"))
    button.setAttribute("aria-current", String(Number(button.dataset.image) === state.image));
}

function control() {
  $("stage").max = state.stage;
  $("stage").addEventListener("input", (e) => { state.stage = Number(e.target.value); draw(); });
  $("threshold").addEventListener("input", (e) => { state.threshold = Number(e.target.value); draw(); });
  $("truth").addEventListener("change", (e) => { state.truth = e.target.checked; draw(); });
  $("points").addEventListener("change", (e) => { state.points = e.target.checked; draw(); });
  $("filter").append(...FILTERS.map(([value, title]) => el("option", { value }, title)));
  $("filter").addEventListener("change", (e) => {
    state.filter = e.target.value; state.chosen = null; fillList();
    if (listed.length) state.image = listed[0];
    draw();
  });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("kinds").append(...KINDS.map((kind) => el("button", { type: "button", class: "kind", "aria-pressed": "true", "data-kind": kind.key,
    style: `border-color: ${kind.colour}`, click: (e) => {
      const on = !state.shown.has(kind.key);
      if (on) state.shown.add(kind.key); else state.shown.delete(kind.key);
      e.currentTarget.setAttribute("aria-pressed", String(on)); draw();
    } }, kind.title)));
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
}

// --- Numbers

function measureText(m, signed) {
  if (!m || m.value === null) return "–";
  const value = (signed && m.value > 0 ? "+" : "") + percent(m.value);
  return m.low === null ? value : `${value} (${percent(m.low)} to ${percent(m.high)})`;
}

function measures() {
  const titles = [...new Set(data.runs.flatMap((run) => Object.keys(run.summary.measures)))];
  const compared = data.differences !== null;
  const head = el("tr", {}, el("th", {}, "percent"), ...data.runs.map((run) => el("th", {}, run.name)),
    compared ? el("th", {}, "difference") : null);
  const rows = titles.map((title) => el("tr", {}, el("td", {}, title),
    ...data.runs.map((run) => el("td", {}, measureText(run.summary.measures[title]))),
    compared ? el("td", {}, measureText(data.differences[title], true)) : null));
  const note = "In brackets the 95 % bootstrap interval over images." + (compared ? " Differences are paired: both runs on the same resampled images." : "");
  return [el("div", { class: "scroll" }, el("table", {}, head, ...rows)), data.resampled ? el("p", { class: "explain" }, note) : ""];
}

const WIDE = 420, HIGH = 220, LEFT = 46, FOOT = 34, TOP = 10, SIDE = 10;

function ticks(low, high, count = 4) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { found, step, top: Math.ceil(high / step - 1e-9) * step };
}

function frame(xs, ys, xTitle, xTicks, yFormat) {
  const [x0, x1] = xs, y0 = ys[0], scale = ticks(ys[0], ys[1]), y1 = scale.top;
  const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (WIDE - LEFT - SIDE);
  const py = (y) => HIGH - FOOT - ((y - y0) / (y1 - y0 || 1)) * (HIGH - FOOT - TOP);
  const view = sv("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  for (const y of ticks(y0, y1).found) {
    view.append(sv("line", { class: "axis", x1: LEFT, x2: WIDE - SIDE, y1: py(y), y2: py(y) }),
      sv("text", { x: LEFT - 5, y: py(y) + 4, "text-anchor": "end" }, yFormat(y, scale.step < 0.01 ? 1 : 0)));
  }
  for (const [x, text] of xTicks) view.append(sv("text", { x: px(x), y: HIGH - FOOT + 15, "text-anchor": "middle" }, text));
  view.append(sv("text", { x: (LEFT + WIDE) / 2, y: HIGH - 3, "text-anchor": "middle" }, xTitle));
  return { view, px, py };
}

function legend(series) {
  return el("div", { class: "legend" }, ...series.filter((s) => s.name).map((s) =>
    el("span", {}, el("i", { style: `background: ${s.colour}; opacity: ${s.dashed ? 0.55 : 1}` }), s.name + (s.dashed ? " (dashed)" : ""))));
}

function figure(title, view, series, explain) {
  view.setAttribute("aria-label", title);
  return el("figure", { class: "chart" }, el("figcaption", {}, title), view, series.length > 1 ? legend(series) : "",
    explain ? el("p", { class: "explain" }, explain) : "");
}

function lines(title, series, { xTitle = "", yRange = null, xTicks = null, format = percent, explain = "" } = {}) {
  const points = series.flatMap((s) => s.points).filter((p) => p[1] !== null);
  if (!points.length) return null;
  const xs = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const low = series.flatMap((s) => (s.band || []).flat()).concat(points.map((p) => p[1])).filter((v) => v !== null);
  const ys = yRange || [Math.min(0, ...low), Math.max(...low) || 1];
  const under = xTicks || ticks(xs[0], xs[1], 5).found.map((x) => [x, xs[1] > 10 ? x.toFixed(0) : x.toFixed(1)]);
  const { view, px, py } = frame(xs, ys, xTitle, under, format);
  for (const s of series) {
    const known = s.points.filter((p) => p[1] !== null);
    if (s.band) known.forEach(([x], i) => s.band[i][0] !== null && view.append(sv("line", { x1: px(x), x2: px(x), y1: py(s.band[i][0]),
      y2: py(s.band[i][1]), stroke: s.colour, "stroke-width": 6, opacity: 0.25 })));
    view.append(sv("polyline", { fill: "none", stroke: s.colour, "stroke-width": 1.8, "stroke-dasharray": s.dashed ? "5 4" : undefined,
      points: known.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ") }));
    if (known.length <= 12) known.forEach(([x, y]) => view.append(sv("circle", { cx: px(x), cy: py(y), r: 3, fill: s.colour }, sv("title", {}, `${s.name}: ${format(y)}`))));
  }
  return figure(title, view, series, explain);
}

function bars(title, labels, series, { format, explain = "", xTitle = "" }) {
  const top = Math.max(...series.flatMap((s) => s.values)) || 0.01;
  const { view, py } = frame([0, labels.length], [0, top], xTitle, [], format);
  const slot = (WIDE - LEFT - SIDE) / labels.length, wide = (slot * 0.75) / series.length;
  labels.forEach((label, i) => {
    series.forEach((s, r) => view.append(sv("rect", { x: LEFT + i * slot + slot * 0.125 + r * wide, width: wide * 0.94, y: py(s.values[i]),
      height: Math.max(0, py(0) - py(s.values[i])), fill: s.colour }, sv("title", {}, `${s.name}, ${label}: ${format(s.values[i], 2)}`))));
    const text = sv("text", { x: LEFT + (i + 0.5) * slot, y: HIGH - FOOT + 14, "text-anchor": "middle" }, label);
    if (slot < 75 && label.length > 9) text.setAttribute("style", "font-size: 9px");
    view.append(text);
  });
  return figure(title, view, series, explain);
}

function charts() {
  const runs = data.runs, found = [];
  const stageTicks = Array.from({ length: Math.max(...runs.map((r) => r.stages)) }, (_, s) => [s + 1, String(s + 1)]);
  const perStage = runs.map((run, r) => {
    const ms = run.summary.stages.map((_, s) => run.summary.measures[`AP of stage ${s + 1}`]);
    return { name: run.name, colour: colour(r), points: ms.map((m, s) => [s + 1, m.value]), band: ms.map((m) => [m.low, m.high]) };
  });
  const oracle = runs.map((run, r) => ({ name: `${run.name}, oracle`, colour: colour(r), dashed: true,
    points: [[1, run.summary.measures["oracle AP"].value], [run.stages, run.summary.measures["oracle AP"].value]] }));
  found.push(lines("AP per decoder stage", [...perStage, ...oracle], { xTitle: "stage", xTicks: stageTicks,
    explain: "Each stage alone, post-processed as usual. Dashed: the best-stage oracle, an upper bound on re-ranking." }));
  const stages = stageTicks.map((t) => `stage ${t[1]}`);
  for (const kind of ["true positives", "false positives", "images"]) {
    const series = runs.map((run, r) => {
      const counts = run.summary.best_stage[kind], whole = counts.reduce((a, b) => a + b, 0) || 1;
      return { name: run.name, colour: colour(r), values: stages.map((_, s) => (counts[s] || 0) / whole) };
    });
    const what = { "true positives": "where the final true positives (IoU 0.75) had their highest score",
      "false positives": "where the final false positives had their lowest score", images: "the stage with the highest AP on each image" }[kind];
    found.push(bars(`Best stage for ${kind}`, stages, series, { format: (v, d = 0) => `${percent(v, d)} %`, explain: `Share: ${what}.` }));
  }
  const kinds = Object.keys(runs[0].summary.errors.kinds);
  found.push(bars("Errors by kind (TIDE)", kinds, runs.map((run, r) => ({ name: run.name, colour: colour(r),
    values: kinds.map((k) => run.summary.errors.kinds[k].ap) })), { format: percent, explain: "AP50 that mending this kind of error alone would give." }));
  const recall = (values) => values.map((p, i) => [i / 100, p]);
  found.push(lines("Precision and recall", runs.flatMap((run, r) => ["0.50", "0.75"].filter((t) => run.summary.errors.precision_recall_by_iou[t]).map((t) => ({
    name: `${run.name}, IoU ${t}`, colour: colour(r), dashed: t === "0.75", points: recall(run.summary.errors.precision_recall_by_iou[t]) }))),
    { xTitle: "recall", yRange: [0, 1], explain: "Mean over classes, final stage." }));
  found.push(lines("Calibration", [{ name: "perfect", colour: "var(--soft)", dashed: true, points: [[0, 0], [1, 1]] },
    ...runs.map((run, r) => ({ name: `${run.name} (error ${percent(run.summary.errors.calibration.error)})`, colour: colour(r),
      points: run.summary.errors.calibration.bins.filter((b) => b.count).map((b) => [b.score, b.accuracy]) }))],
    { xTitle: "score", yRange: [0, 1], explain: "How often a detection of that score is right, at IoU 0.5." }));
  for (const [key, title, format] of [["loss", "Loss in training", (y) => String(Number(y.toPrecision(3)))], ["AP", "AP in training", percent], ["AP50", "AP50 in training", percent]]) {
    const series = runs.map((run, r) => ({ name: run.name, colour: colour(r), points: run.curves[key] || [] }));
    found.push(lines(title, series, { xTitle: "step", format, explain: key === "loss" ? "With recollection the loss sums over more groups: not comparable between the runs." : "" }));
  }
  return found.filter((f) => f !== null);
}

function tables() {
  const parts = [];
  const sizes = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];
  parts.push(el("h3", {}, "Every stage, all sizes"), el("div", { class: "scroll" }, el("table", {},
    el("tr", {}, el("th", {}, "stage"), ...sizes.map((s) => el("th", {}, s))),
    ...data.runs.flatMap((run) => run.summary.stages.map((stats, s) => el("tr", {},
      el("td", {}, `${run.name}, stage ${s + 1}`), ...sizes.map((k) => el("td", {}, percent(stats[k])))))))));
  const names = Object.keys(data.runs[0].summary.per_class);
  parts.push(el("details", names.length <= 20 ? { open: "" } : {}, el("summary", {}, `AP per class (${names.length})`), el("div", { class: "scroll" }, el("table", {},
    el("tr", {}, el("th", {}, "class"), el("th", {}, "objects"), ...data.runs.flatMap((run) => [`${run.name} AP`, "AP50", "AR"].map((t) => el("th", {}, t)))),
    ...names.map((name) => el("tr", {}, el("td", {}, name), el("td", {}, String(data.runs[0].summary.per_class[name].objects)),
      ...data.runs.flatMap((run) => { const row = run.summary.per_class[name] || {}; return [row.AP, row.AP50, row.AR].map((v) => el("td", {}, percent(v))); })))))));
  data.runs.forEach((run) => parts.push(confusion(run)));
  return parts;
}

function confusion(run) {
  const { names, matrix, score } = run.summary.errors.confusion;
  const titles = [...names, "nothing"];
  const title = `${run.name}: what objects are taken for (rows objects, columns detections above score ${score})`;
  if (names.length <= 20) {
    const rows = matrix.map((row, i) => {
      const whole = row.reduce((a, b) => a + b, 0) || 1;
      return el("tr", {}, el("td", {}, titles[i]), ...row.map((n, j) => el("td", { class: "cell",
        style: n ? `background: color-mix(in srgb, ${i === j ? "#2fa85c" : "#e0533d"} ${Math.round(8 + (62 * n) / whole)}%, transparent)` : "" }, n ? String(n) : "")));
    });
    return el("details", { open: "" }, el("summary", {}, title), el("div", { class: "scroll" }, el("table", {},
      el("tr", {}, el("th", {}, ""), ...titles.map((t) => el("th", {}, t))), ...rows)));
  }
  const pairs = matrix.flatMap((row, i) => row.map((n, j) => [n, titles[i], titles[j], i !== j])).filter((p) => p[3] && p[0]);
  pairs.sort((a, b) => b[0] - a[0]);
  return el("details", {}, el("summary", {}, `${title}: the 40 most frequent confusions`), el("table", {},
    el("tr", {}, ...["object", "taken for", "times"].map((t) => el("th", {}, t))),
    ...pairs.slice(0, 40).map(([n, a, b]) => el("tr", {}, el("td", {}, a), el("td", {}, b), el("td", {}, String(n))))));
}

$("subtitle").textContent = data.subtitle;
$("measures").replaceChildren(...measures());
$("charts").replaceChildren(...charts());
$("tables").replaceChildren(...tables());
control();
fillList();
draw();
document.documentElement.dataset.ready = "yes";
