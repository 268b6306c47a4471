// Colours of weights: one hue for weights, two for multiples of chance. They come from the style sheet, so that the dark
// page can have others.

const RELATIVE = 3; // powers of 2 on either side of chance

function channel(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
}

let palette = null;
const tables = new Map();

export function repaint() {
  tables.clear();
  palette = { low: channel("--low"), high: channel("--high"), below: channel("--below"), above: channel("--above") };
}

function mix(from, to, share) {
  return from.map((value, k) => Math.round(value + (to[k] - value) * share));
}

export function shade(value, view, scale) {
  if (!palette) repaint();
  if (view === "relative") {
    const power = Math.max(-RELATIVE, Math.min(RELATIVE, Math.log2(Math.max(value, 1e-6))));
    return power < 0 ? mix(palette.low, palette.below, -power / RELATIVE) : mix(palette.low, palette.above, power / RELATIVE);
  }
  const share = scale === "linear" ? value : scale === "sqrt" ? Math.sqrt(value) : Math.max(0, 1 + Math.log10(Math.max(value, 1e-3)) / 3);
  return mix(palette.low, palette.high, Math.min(1, share));
}

const LEVELS = 254; // size of a table; even, so that chance has its own level

// Returns a function from a value to its colour as stored in canvases (four bytes in one number). It uses a table,
// because a sentence has thousands of weights.
export function painter(view, scale) {
  const key = `${view} ${scale}`;
  if (!tables.has(key)) tables.set(key, Uint32Array.from({ length: LEVELS + 1 }, (_, level) => packed(shade(value(level, view), view, scale))));
  const table = tables.get(key);
  if (view === "relative") return (p) => table[Math.round((Math.max(-1, Math.min(1, Math.log2(Math.max(p, 1e-6)) / RELATIVE)) + 1) * (LEVELS / 2))];
  return (p) => table[Math.round(Math.sqrt(p) * LEVELS)];
}

function value(level, view) {
  return view === "relative" ? 2 ** ((level / (LEVELS / 2) - 1) * RELATIVE) : (level / LEVELS) ** 2;
}

function packed(rgb) {
  return new Uint32Array(Uint8Array.of(...rgb, 255).buffer)[0];
}

export function css(rgb) {
  return `rgb(${rgb.join(", ")})`;
}

export function ramp(view, scale) {
  const stops = Array.from({ length: 9 }, (_, k) => {
    const value = view === "relative" ? 2 ** (((k - 4) / 4) * RELATIVE) : k / 8;
    return css(shade(value, view, scale));
  });
  const ends = view === "relative" ? ["⅛ of chance", "8 times"] : ["0", "1"];
  return { background: `linear-gradient(90deg, ${stops.join(", ")})`, ends };
}
