// Connects the explorer's parts: controls, keys, theme, and redrawing.

import { DATA } from "./data.js";
import { ramp, repaint } from "./colour.js";
import { SCALES, VIEWS, read, sentence, sentences, state, write } from "./state.js";
import * as tiles from "./tiles.js";
import * as heat from "./heat.js";
import * as arcs from "./arcs.js";
import * as facts from "./facts.js";

const at = (id) => document.getElementById(id);

// Redraws everything that a change affects; with `maps` also the small maps.
function show({ maps = false, hash = true } = {}) {
  if (maps) {
    tiles.paint();
    const { background, ends } = ramp(state.view, state.scale);
    const bar = document.createElement("i");
    bar.className = "ramp";
    bar.style.background = background;
    at("ramp").replaceChildren(`${ends[0]} `, bar, ` ${ends[1]}`);
  }
  tiles.mark();
  at("panes").classList.toggle("pinned", state.pin !== null);
  arcs.paint(at("arcs"), chooseWord);
  heat.paint(at("heat"), state.head, chooseWord);
  at("heat2").hidden = state.pin === null;
  if (state.pin !== null) heat.paint(at("heat2"), state.pin, chooseWord);
  facts.paint(at("facts"));
  at("pin").textContent = state.pin === null ? "Compare with another head" : "Stop comparing";
  for (const [id, value] of [["view", state.view], ["scale", state.scale]]) {
    for (const button of at(id).children) button.setAttribute("aria-pressed", button.value === value);
  }
  for (const button of at("scale").children) button.disabled = state.view === "relative"; // its scale is powers of 2
  if (hash) write();
}

function choose(head) {
  state.head = head;
  show();
}

function chooseWord(word) {
  const place = document.activeElement?.closest("#arcs, #heat, #heat2");
  state.word = state.word === word ? null : word;
  show();
  place?.querySelector(`[data-word="${word}"]`)?.focus(); // the word was drawn anew
}

function chooseSentence(category, number) {
  Object.assign(state, { category, sentence: number, word: null });
  fill();
  show({ maps: true });
}

let filled = null;

function fill() {
  at("category").value = state.category;
  if (filled !== state.category) list();
  at("sentence").value = state.sentence;
}

function list() {
  filled = state.category;
  const options = sentences().map((row, k) => new Option(`${k + 1}. ${row.text.length > 90 ? `${row.text.slice(0, 88)}…` : row.text}`, k));
  at("sentence").replaceChildren(...options);
  const { of } = DATA.categories[state.category];
  at("shown").textContent = of > options.length ? `${options.length} of ${of} sentences are in this page` : "";
}

function step(by) {
  const n = sentences().length;
  if (state.sentence + by >= 0 && state.sentence + by < n) return chooseSentence(state.category, state.sentence + by);
  const count = DATA.categories.length;
  for (let k = 1; k < count; k++) {
    const category = (state.category + by * k + count * k) % count;
    const { length } = DATA.categories[category].sentences;
    if (length) return chooseSentence(category, by > 0 ? 0 : length - 1);
  }
}

function move(layers, rows) {
  const per = DATA.heads_a_layer;
  const layer = (Math.floor(state.head / per) + layers + DATA.layers) % DATA.layers;
  const row = ((state.head % per) + rows + per) % per;
  choose(layer * per + row);
  tiles.focus();
}

const KEYS = {
  ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
  "[": () => step(-1), "]": () => step(1),
  Escape: () => { Object.assign(state, state.word === null ? { pin: null } : { word: null }); show(); },
};

function keys(event) {
  const inGrid = at("tiles").contains(document.activeElement);
  // Where [ and ] are typed with AltGr or Option, Alt is down, and with AltGr Ctrl too.
  const typed = event.key === "[" || event.key === "]";
  if (!typed && (event.ctrlKey || event.metaKey || event.altKey)) return;
  if (/^(SELECT|INPUT)$/.test(document.activeElement?.tagName) || !inSight(at("explorer-view"))) return;
  if (!Object.hasOwn(KEYS, event.key) || (event.key.startsWith("Arrow") && !inGrid)) return;
  event.preventDefault();
  KEYS[event.key]();
}

function inSight(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return top < innerHeight && bottom > 0;
}

function choices(id, names, set) {
  for (const [value, text] of Object.entries(names)) {
    const button = Object.assign(document.createElement("button"), { type: "button", value, textContent: text });
    button.addEventListener("click", () => { set(value); show({ maps: true }); });
    at(id).append(button);
  }
}

function theme() {
  const button = at("theme");
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  const changed = () => {
    name();
    repaint();
    if (at("explorer-view")?.hidden === false) show({ maps: true, hash: false });
  };
  name();
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

// Paper has what is folded too.
function unfoldOnPaper() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of folded) part.open = false; });
}

// A hash of the explorer sets its state; any other is an anchor in the page.
function follow() {
  if (!read(location.hash)) return;
  fill();
  show({ maps: true, hash: false });
  at("explorer-view").parentElement.scrollIntoView();
}

function start() {
  theme();
  unfoldOnPaper();
  if (!DATA.categories.some((category) => category.sentences.length)) return;
  at("explorer-view").hidden = false;
  state.category = DATA.categories.findIndex((category) => category.sentences.length);
  state.head = DATA.first;
  at("category").append(...DATA.categories.map((category, k) => Object.assign(new Option(category.title, k), { disabled: !category.sentences.length })));
  at("category").addEventListener("change", (event) => chooseSentence(Number(event.target.value), 0));
  at("sentence").addEventListener("change", (event) => chooseSentence(state.category, Number(event.target.value)));
  at("pin").addEventListener("click", () => {
    state.pin = state.pin === null ? state.head : null;
    show();
  });
  choices("view", VIEWS, (value) => { state.view = value; });
  choices("scale", SCALES, (value) => { state.scale = value; });
  tiles.build(at("tiles"), choose);
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => { // a link to where the page already is changes no hash
    const link = event.target.closest?.("a[href^='#head=']");
    if (link && link.getAttribute("href") === location.hash) follow();
  });
  addEventListener("resize", () => show({ hash: false }));
  if (read(location.hash)) follow();
  else {
    fill();
    show({ maps: true, hash: false });
  }
}

start();
