// Shows the facts of one head: its class, what it looks at, its kappas with intervals, the loss without it.

import { DATA } from "./data.js";
import { state } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";
const KAPPAS = {
  self: "itself", prev: "previous token", local: "nearby", sink: "first position", punctuation: "punctuation",
  "function-word": "function words", duplicate: "same token before", "after-duplicate": "what followed it", rare: "rare tokens",
  coreference: "antecedent",
};

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function signed(value, digits) {
  return value === null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Draws a dot with its interval on an axis; marks `null_band` if there is one.
function strip([value, low, high], least, most, band, colour) {
  const svg = node("svg", { viewBox: "0 0 120 12", width: 120, height: 12, "aria-hidden": "true" });
  const at = (x) => 3 + (114 * (Math.max(least, Math.min(most, x)) - least)) / (most - least);
  svg.append(node("line", { x1: at(0), x2: at(0), y1: 0, y2: 12, stroke: "var(--ink3)" }));
  if (band) svg.append(node("line", { x1: at(band), x2: at(band), y1: 0, y2: 12, stroke: "var(--ink3)", "stroke-dasharray": "2 2" }));
  if (value === null) return svg;
  svg.append(node("line", { x1: at(low), x2: at(high), y1: 6, y2: 6, stroke: colour, "stroke-width": 3, "stroke-opacity": 0.4 }));
  svg.append(node("circle", { cx: at(value), cy: 6, r: 3.2, fill: colour }));
  return svg;
}

function rows(list) {
  const dl = element("dl");
  for (const [key, value] of list) {
    const dd = element("dd");
    dd.append(...(Array.isArray(value) ? value : [value]));
    dl.append(element("dt", key), dd);
  }
  return dl;
}

const opened = new Set(); // what is unfolded stays so for the next head

function folded(title, ...content) {
  const details = element("details");
  details.open = opened.has(title);
  details.addEventListener("toggle", () => opened[details.open ? "add" : "delete"](title));
  details.append(element("summary", title), ...content);
  return details;
}

function line(values, steps, most) {
  const svg = node("svg", { viewBox: "0 0 120 28", width: 120, height: 28, "aria-hidden": "true" });
  const points = values.map((value, k) => `${3 + (114 * k) / Math.max(1, steps.length - 1)},${25 - (22 * Math.max(0, Math.min(most, value ?? 0))) / most}`);
  svg.append(node("polyline", { points: points.join(" "), fill: "none", stroke: "var(--ink2)", "stroke-width": 1.5 }));
  return svg;
}

let painted = null;

export function paint(place) {
  const heads = `${state.head} ${state.pin}`;
  if (heads === painted) return; // another sentence has the same facts
  painted = heads;
  place.replaceChildren(...(state.pin === null ? [about(state.head)] : [about(state.head), about(state.pin)]));
}

function about(number) {
  const head = DATA.facts[number];
  const colour = `var(--${head.label})`;
  const box = element("div");
  const title = element("h3", `${head.name} `);
  title.append(element("small", `${head.original} in the original's numbering`));
  const kind = element("p");
  const chip = element("span", head.label, "chip tag");
  chip.style.setProperty("--c", colour);
  kind.append(chip, ` in ${Math.round(100 * head.stability)} % of resampled sentences${head.tag ? `; ${head.tag}` : ""}${head.sink ? "; much on the first position" : ""}`);
  box.append(title, kind);
  const seen = head.seen.length ? head.seen : head.looks_at.slice(0, 4).map(([token]) => token);
  const where = head.seen.length ? "within its set of tokens" : "beyond what the offset explains";
  if (seen.length) box.append(element("p", `Looks most, ${where}, at: ${seen.map((token) => `“${token.trim() || "·"}”`).join(", ")}`));
  box.append(element("h2", "Attention beyond chance (kappa), 95 %; dashed: what counts as an effect"));
  box.append(rows(Object.entries(KAPPAS).map(([name, words]) => [words, [strip(head.kappas[name], -0.4, 1, DATA.thresholds[name], colour), ` ${signed(head.kappas[name][0], 2)}`]])));
  box.append(element("h2", "What explains it"));
  box.append(rows(Object.entries(head.shares).map(([name, row]) => [`${name} share`, [strip(row, 0, 1, null, colour), ` ${signed(row[0], 2)}`]])));
  box.append(element("h2", "What it causes"));
  const { loss } = head;
  const order = DATA.facts.filter((other) => other.loss.delta > loss.delta).length + 1;
  box.append(rows([
    ["loss without it, nats", `${signed(loss.delta, 4)} (${signed(loss.low, 4)} to ${signed(loss.high, 4)})`],
    ["rank; q", `${order} of ${DATA.facts.length}; ${loss.q === null ? "–" : loss.q < 0.001 ? "< 0.001" : loss.q.toFixed(3)}`],
    ["writes towards the next token", signed(head.direct[0], 3)],
    ["copies (share of 1, chance .5)", head.copying[0] === null ? "–" : head.copying[0].toFixed(2)],
    ["induction score", `${signed(head.scores.induction[0], 3)}${head.induction ? ": an induction head" : ""}`],
  ]));
  box.append(folded("Nats lost, by kind of target", rows(Object.entries(head.on).map(([kind, delta]) => [kind, signed(delta, 3)]))));
  if (DATA.steps.length > 1) {
    box.append(folded(`Over training, to step ${DATA.steps[DATA.steps.length - 1].toLocaleString("en")}`, rows([["strongest positional kappa", line(head.over_time.kappa_max, DATA.steps, 1)], ["strongest set of tokens, times its threshold", line(head.over_time.kappa_set, DATA.steps, 4)], ["content share", line(head.over_time.content, DATA.steps, 1)]])));
  }
  box.append(folded("By category: local kappa, 95 %; the class there", rows(DATA.categories.map((category) => [`${category.title}: ${head.categories[category.name]}`, [strip(head.by_category[category.name].kappa_local, -0.4, 1, DATA.thresholds.local, colour)]]))));
  return box;
}
