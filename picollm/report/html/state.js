// The explorer's state, stored in the URL's hash: #head=L0H3&category=0&sentence=2&view=raw&scale=sqrt&pin=L1H0&word=4

import { DATA } from "./data.js";

export const VIEWS = { raw: "Raw", "no-sink": "Without the sink", relative: "Relative to chance" };
export const SCALES = { linear: "Linear", sqrt: "Square root", log: "Log" };

export const state = { head: 0, category: 0, sentence: 0, view: "raw", scale: "sqrt", pin: null, word: null };

const names = DATA.facts.map((head) => head.name);

function number(text, below, otherwise) {
  const value = Number.parseInt(text, 10);
  return value >= 0 && value < below ? value : otherwise;
}

// Reads a hash; returns true if it names a head, and so is one of the explorer.
export function read(hash) {
  const given = new URLSearchParams(hash.slice(1));
  const head = names.indexOf(given.get("head"));
  if (head < 0) return false;
  const whole = given.has("sentence"); // a link to a head alone keeps the rest
  state.head = head;
  state.category = number(given.get("category"), DATA.categories.length, state.category);
  if (!sentences().length) state.category = DATA.categories.findIndex((category) => category.sentences.length);
  state.sentence = number(given.get("sentence"), sentences().length, whole ? 0 : state.sentence);
  state.view = Object.hasOwn(VIEWS, given.get("view")) ? given.get("view") : state.view;
  state.scale = Object.hasOwn(SCALES, given.get("scale")) ? given.get("scale") : state.scale;
  if (whole) {
    const pin = names.indexOf(given.get("pin"));
    state.pin = pin < 0 ? null : pin;
    state.word = number(given.get("word"), sentence().tokens.length, null);
  }
  return true;
}

let waiting = null;

// Delayed until changes pause: a browser refuses hundreds in a row, and each takes longer than drawing a map.
export function write() {
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", hash()), 100);
}

function hash() {
  const parts = { head: names[state.head], category: state.category, sentence: state.sentence, view: state.view, scale: state.scale };
  if (state.pin !== null) parts.pin = names[state.pin];
  if (state.word !== null) parts.word = state.word;
  return `#${new URLSearchParams(parts)}`;
}

export function sentences() {
  return DATA.categories[state.category].sentences;
}

export function sentence() {
  return sentences()[state.sentence];
}
