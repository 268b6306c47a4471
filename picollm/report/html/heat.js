// Draws one head's map at a readable size: queries from top to bottom, keys from left to right, words along both.

import { DATA, shown, viewed, weights } from "./data.js";
import { draw } from "./tiles.js";
import { sentence, state } from "./state.js";

const LABEL = 92; // pixels for the words on the left

export function paint(place, head, choose) {
  const { tokens } = sentence();
  const n = tokens.length;
  const room = Math.max(180, Math.min(place.clientWidth || 420, 620) - LABEL - 40);
  const cell = Math.max(6, Math.min(26, Math.floor(room / n)));
  const size = Math.max(9, Math.min(12, cell - 1));
  place.replaceChildren();
  const title = document.createElement("p");
  title.className = "caption";
  title.textContent = `${DATA.facts[head].name}: each row is a word, looking back`;
  const box = document.createElement("div");
  box.style.cssText = `position: relative; height: ${n * cell + 70}px; overflow-x: auto`;
  const canvas = document.createElement("canvas");
  draw(canvas, head);
  canvas.style.cssText = `position: absolute; left: ${LABEL}px; top: 0; width: ${n * cell}px; height: ${n * cell}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Attention map of ${DATA.facts[head].name}`);
  const weight = weights(sentence(), head);
  canvas.addEventListener("mousemove", (event) => {
    const [key, query] = [event.offsetX, event.offsetY].map((at) => Math.floor(at / cell));
    canvas.title = key <= query && query < n
      ? `${shown(tokens[query])} → ${shown(tokens[key])}: ${weight(query, key).toFixed(3)}` +
        (state.view === "raw" ? "" : `, shown ${viewed(weight, state.view, query, key).toFixed(3)}`)
      : "";
  });
  box.append(canvas);
  const every = cell < size ? Math.ceil(size / cell) : 1; // words that don't fit are left out
  tokens.forEach((token, k) => {
    if (k % every) return;
    const row = document.createElement("button");
    row.type = "button";
    row.className = `row${state.word === k ? " on" : ""}`;
    row.dataset.word = k;
    row.textContent = shown(token).slice(0, 12);
    row.style.cssText = `left: 0; width: ${LABEL - 6}px; top: ${k * cell + (cell - size) / 2}px; font-size: ${size}px`;
    row.addEventListener("click", () => choose(k));
    const column = document.createElement("span");
    column.className = "col";
    column.textContent = shown(token).slice(0, 10);
    column.style.cssText = `left: ${LABEL + (k + 0.55) * cell}px; top: ${n * cell + 6}px; font-size: ${size}px`;
    column.setAttribute("aria-hidden", "true");
    box.append(row, column);
  });
  place.append(title, box);
}
