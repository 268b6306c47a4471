// Colours of weights: one hue for weights, two for multiples of chance. They come from the style sheet, so that the dark
// page has its own.

const RELATIVE = 3; // powers of 2 on either side of chance

function channel(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
}

let palette = null;

export function repaint() {
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
