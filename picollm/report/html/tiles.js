// Draws the grid of all heads: one small map each, arranged as on the first screen.

import { DATA, HEADS, viewed, weights } from "./data.js";
import { painter } from "./colour.js";
import { sentence, state } from "./state.js";

const tiles = [];

export function build(grid, choose) {
  grid.style.gridTemplateColumns = `22px repeat(${DATA.layers}, minmax(0, 1fr))`;
  grid.append(document.createElement("span"));
  const dense = DATA.layers > 12; // no room for a badge, nor for each layer's number
  for (let layer = 0; layer < DATA.layers; layer++) grid.append(text(dense && layer % 2 ? "" : layer));
  for (let row = 0; row < DATA.heads_a_layer; row++) {
    grid.append(text(row));
    for (let layer = 0; layer < DATA.layers; layer++) {
      const head = layer * DATA.heads_a_layer + row;
      const fact = DATA.facts[head];
      const button = document.createElement("button");
      button.type = "button";
      button.style.setProperty("--c", `var(--${fact.label})`);
      button.title = `${fact.name}: ${fact.label}${fact.tag ? ` (${fact.tag})` : ""}${fact.sink ? "; much on the first position" : ""}`;
      button.setAttribute("aria-label", button.title);
      if (fact.stability < 0.8) button.classList.add("unstable");
      const canvas = document.createElement("canvas");
      button.append(canvas);
      if (fact.sink && !dense) {
        const badge = document.createElement("span");
        badge.className = "badge";
        badge.textContent = "s";
        button.append(badge);
      }
      button.addEventListener("click", () => choose(head));
      tiles[head] = { button, canvas };
      grid.append(button);
    }
  }
}

function text(value) {
  const span = document.createElement("span");
  span.textContent = value;
  return span;
}

export function paint() {
  for (let head = 0; head < HEADS; head++) draw(tiles[head].canvas, head);
}

export function mark() {
  for (let head = 0; head < HEADS; head++) {
    const { button } = tiles[head];
    button.setAttribute("aria-pressed", head === state.head);
    button.classList.toggle("pinned", head === state.pin);
    button.tabIndex = head === state.head ? 0 : -1;
  }
}

export function focus() {
  tiles[state.head].button.focus();
}

export function draw(canvas, head) {
  const n = sentence().tokens.length;
  const weight = weights(sentence(), head);
  if (canvas.width !== n) canvas.width = canvas.height = n;
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  const pixels = new Uint32Array(image.data.buffer);
  const paint = painter(state.view, state.scale);
  for (let query = 0; query < n; query++) {
    for (let key = 0; key <= query; key++) pixels[query * n + key] = paint(viewed(weight, state.view, query, key));
  }
  context.putImageData(image, 0, 0);
}
