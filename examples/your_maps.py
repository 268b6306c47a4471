"""Attention maps of a model of your own, whatever computes it, labelled as the pipeline labels its own.

    python examples/your_maps.py

Here the maps are made up: one head of the previous token, one that looks at commas, one that looks everywhere. Yours
are float arrays [layer, head, query, key] a sentence; position 0 is the sink, rows sum to 1, and no row looks ahead.
"""

from __future__ import annotations

import numpy as np

from picollm.attention.analysis import analyse_maps
from picollm.attention.maps import from_arrays

SENTENCES = [
    "<s> The river , which is long , flows north .",
    "<s> Iron , zinc , and lead are heavy , grey metals .",
    "<s> In winter , the lake , a small one , freezes .",
    "<s> Wolves , owls , and bears live here , too .",
    "<s> The old bridge , the new road , and the town .",
    "<s> First , the king left , then the queen , then all .",
    "<s> Copper , unlike wood , conducts heat , and well .",
    "<s> The port , the market , and the hall burned , alas .",
]


def made_up(words: list[str]) -> np.ndarray:
    """[1, 3, n, n]"""
    n = len(words)
    uniform = np.tri(n) / np.arange(1, n + 1)[:, None]
    previous, commas = 0.3 * uniform, 0.4 * uniform
    for query in range(n):
        previous[query, max(query - 1, 0)] += 0.7
        found = [key for key in range(1, query + 1) if words[key] == ","]
        commas[query, found or [0]] += 0.6 / max(1, len(found))
    return np.stack([previous, commas, uniform])[None]


def main() -> None:
    words = [sentence.split() for sentence in SENTENCES]
    vocabulary = sorted({word for sentence in words for word in sentence})
    ids = [[vocabulary.index(word) for word in sentence] for sentence in words]
    heads, families, _ = analyse_maps(
        [from_arrays([made_up(sentence) for sentence in words], ids, words)],
        heads={"kappa": 0.25, "content": 0.15, "broad": 0.8, "sink": 0.1, "window": 4, "bootstraps": 500, "seed": 1},
        clusters={"max_k": 2, "bootstraps": 20, "seed": 1},
    )
    for head in heads["heads"]:
        print(f"{head['name']}: {head['label']}{', ' + head['tag'] if head['tag'] else ''}, seen at {head['seen'][:3]}")
    print(f"families: {'found' if families['structure']['found'] else 'none'}")


if __name__ == "__main__":
    main()
