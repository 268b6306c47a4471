// Reads the page's data: facts and sentences from JSON, attention maps from base64 when a sentence is first shown.

export const DATA = JSON.parse(document.getElementById("explorer-data").textContent);
export const HEADS = DATA.layers * DATA.heads_a_layer;

const cache = new Map();

// Returns the weights of one head in one sentence as a function of query and key.
export function weights(sentence, head) {
  const n = sentence.tokens.length;
  if (!cache.has(sentence.maps)) {
    const text = atob(document.getElementById(`maps-${sentence.maps}`).textContent);
    cache.set(sentence.maps, Uint8Array.from(text, (c) => c.charCodeAt(0)));
  }
  const bytes = cache.get(sentence.maps);
  const start = head * ((n * (n + 1)) / 2);
  return (query, key) => (bytes[start + (query * (query + 1)) / 2 + key] / 255) ** 2;
}

// Converts a weight for a view: unchanged, without position 0, or in multiples of uniform attention.
export function viewed(weight, view, query, key) {
  const p = weight(query, key);
  if (view === "raw") return p;
  if (view === "relative") return p * (query + 1);
  if (key === 0) return query === 0 ? p : 0;
  const rest = 1 - weight(query, 0);
  return rest > 0.002 ? Math.min(1, p / rest) : 0;
}

// Returns a token's text; a token of only spaces or line ends becomes visible.
export function shown(token) {
  if (token === "<|endoftext|>") return "‹start›";
  const text = token.trim();
  return text || (token.includes("\n") ? "⏎" : "·");
}
