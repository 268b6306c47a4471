// Draws arcs over the text, from each word to where one head looks above twice chance; a click shows one word's row.
// Without the sink, they are of the weights without position 0.

import { DATA, shown, viewed, weights } from "./data.js";
import { sentence, state } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";
const CHARACTER = 8.2; // pixels of 13 px type, wide enough for any font
const GAP = 13;
const LEAST = 2; // times uniform
const MOST = 3; // arcs per word

function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function paint(place, choose) {
  const { tokens } = sentence();
  const words = tokens.map(shown);
  let x = 10;
  const middle = words.map((word) => {
    const width = Math.max(1, word.length) * CHARACTER;
    const at = x + width / 2;
    x += width + GAP;
    return at;
  });
  const heads = state.pin === null ? [state.head] : [state.head, state.pin];
  const reach = Math.min(120, 22 + x / 14);
  const height = reach + 26 + (heads.length > 1 ? reach : 0);
  x = Math.max(x, 280); // room for the message if there are no arcs
  const svg = node("svg", { width: x, height, viewBox: `0 0 ${x} ${height}`, role: "group", "aria-label": "Sentence" });
  const base = reach + 4;
  heads.forEach((head, side) => {
    const colour = `var(--${DATA.facts[head].label})`;
    for (const [query, key, weight] of edges(head, tokens.length)) {
      const up = side === 0 ? -1 : 1;
      const y = side === 0 ? base : base + 20;
      const [a, b] = [middle[key], middle[query]];
      const rise = Math.min(reach - 6, 10 + Math.abs(b - a) * 0.22);
      const path = a === b
        ? `M ${a - 5} ${y} a 5 5 0 1 ${side === 0 ? 1 : 0} 10 0`
        : `M ${a} ${y} C ${a} ${y + up * rise * 1.3}, ${b} ${y + up * rise * 1.3}, ${b} ${y}`;
      svg.append(node("path", { d: path, fill: "none", stroke: colour, "stroke-width": (0.6 + 4 * weight).toFixed(2), "stroke-opacity": (0.35 + 0.6 * weight).toFixed(2) }));
    }
  });
  if (!svg.childElementCount) {
    const who = heads.map((head) => DATA.facts[head].name).join(" and ");
    svg.append(node("text", { x: x / 2, y: base - 22, "text-anchor": "middle", class: "none" }, `${who}: no word gets twice chance`));
  }
  words.forEach((word, k) => {
    const label = node("text", { x: middle[k], y: base + 14, "text-anchor": "middle", class: state.word === k ? "on" : "", tabindex: 0, role: "button", "aria-pressed": state.word === k, "data-word": k }, word);
    label.addEventListener("click", () => choose(k));
    label.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // a space would scroll
      choose(k);
    });
    svg.append(label);
  });
  place.replaceChildren(svg);
}

// Returns [query, key, weight] of the strongest arcs of each word.
function edges(head, n) {
  const raw = weights(sentence(), head);
  const weight = (query, key) => viewed(raw, state.view === "no-sink" ? "no-sink" : "raw", query, key);
  const found = [];
  for (let query = 1; query < n; query++) {
    if (state.word !== null && state.word !== query) continue;
    const row = Array.from({ length: query + 1 }, (_, key) => [query, key, weight(query, key)]);
    row.sort((a, b) => b[2] - a[2]);
    const least = state.word === null ? LEAST / (query + 1) : 0.02;
    found.push(...row.filter((edge) => edge[2] >= least).slice(0, state.word === null ? MOST : n));
  }
  return found;
}
