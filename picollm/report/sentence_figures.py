"""Draws one sentence: the maps of all heads, the flow graph between its words, and the rollout."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from unicodedata import east_asian_width

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from picollm.report.style import ACCENT, MUTED, SMALLEST, every, legible, plt, scaled

FLOW_CHANCE = 2.0  # an edge is drawn if its attention is at least this many times uniform ...
TILE_MARGIN = 0.25  # distance between the maps of two heads, in widths of a map
LINE = 110  # maximum characters of a heading
FLOW_EDGES = 2  # ... and it is among this many strongest edges of its query


def readable(text: str) -> str:
    """Converts a token or a sentence to text that a figure can show."""
    return legible(text.replace("\n", "⏎").replace("<|endoftext|>", "⟨eot⟩").strip()) or "·"


def heading(text: str) -> str:
    """Cuts a sentence to one line; Chinese, Japanese and Korean characters count as two."""
    shown = readable(text)
    ends = list(accumulate(1 + (east_asian_width(char) in "FW") for char in shown))
    return shown if ends[-1] <= LINE else shown[: bisect(ends, LINE - 1)] + "…"


def heat_maps(weights_LHQK: NDArray, text: str, names: list[list[str]]) -> Figure:
    """Draws all heads on one sentence, one row per layer. Colour: attention over causal-uniform, i.e. weight x (i+1).

    Raw weights would mainly show the length of the row and the first token. `text` is the sentence, which
    picollm.report.figures chooses; `names` labels each head.
    """
    n_layers, n_heads, n, _ = weights_LHQK.shape
    ratio = weights_LHQK * np.arange(1, n + 1)[:, None]
    ratio[..., np.triu(np.ones((n, n), bool), 1)] = np.nan
    # One axis for all tiles: a separate axis for each of 56 heads took three seconds per figure.
    high, wide = 1 + TILE_MARGIN, 1 + TILE_MARGIN / 3
    figure, axis = plt.subplots(figsize=scaled(n_heads * wide, n_layers * high * 0.95))
    norm = LogNorm(0.1, 10, clip=True)
    for layer, head in np.ndindex(n_layers, n_heads):
        left, top = head * wide, layer * high
        image = axis.imshow(
            ratio[layer, head], cmap="RdBu_r", norm=norm, interpolation="nearest", extent=(left, left + 1, top + 1, top)
        )
        axis.text(left + 0.5, top - 0.04, names[layer][head], fontsize=SMALLEST, ha="center", va="bottom")
    axis.set(xlim=(0, n_heads * wide), ylim=(n_layers * high, -TILE_MARGIN))
    axis.set_axis_off()
    bar = figure.colorbar(image, ax=axis, shrink=0.4, aspect=30, ticks=[0.1, 1, 10])
    bar.ax.set_yticklabels(["≤ 0.1", "1", "≥ 10"])
    bar.set_label("times uniform", color=MUTED)
    figure.suptitle(heading(text), fontsize=8, color=MUTED)
    return figure


def flow_graph(weights_LHQK: NDArray) -> nx.DiGraph:
    """Builds a graph of token nodes (layer, position) with the strongest above-chance edges from key to query, averaged
    over heads.

    The first position, the sink, is removed and rows are renormalised before edges are compared with chance.
    """
    mean_LQK = weights_LHQK.mean(1)
    graph = nx.DiGraph()
    n_layers, n, _ = mean_LQK.shape
    graph.add_nodes_from((layer, i) for layer in range(n_layers + 1) for i in range(1, n))
    for layer in range(n_layers):
        for i in range(1, n):
            row = mean_LQK[layer, i, 1 : i + 1]
            row = row / max(row.sum(), 1e-12)
            for j in np.argsort(-row, kind="stable")[:FLOW_EDGES]:
                if row[j] * i >= FLOW_CHANCE:
                    graph.add_edge((layer, int(j) + 1), (layer + 1, i), weight=float(row[j]))
    return graph


def rollout(weights_LHQK: NDArray) -> NDArray[np.float64]:
    """Computes how much of each input reaches each position through all layers, [Q, K]: the product over layers of half
    the mean attention plus half the identity, for the residual (Abnar & Zuidema 2020)."""
    mean_LQK = weights_LHQK.mean(1, dtype=np.float64)
    reached_QK = np.eye(mean_LQK.shape[1])
    for mean_QK in mean_LQK:
        reached_QK = (0.5 * mean_QK + 0.5 * np.eye(len(mean_QK))) @ reached_QK
    return reached_QK


def relative_rollout(weights_LHQK: NDArray) -> NDArray[np.float64]:
    """Divides the rollout by that of as many layers of uniform causal attention, [Q, K], because alone it mainly shows
    the length of the row and the residual; undefined (NaN) for later positions."""
    n_layers, n = weights_LHQK.shape[0], weights_LHQK.shape[-1]
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    with np.errstate(invalid="ignore"):
        return rollout(weights_LHQK) / rollout(np.broadcast_to(uniform, (n_layers, 1, n, n)))


def flow_figure(weights_LHQK: NDArray, tokens: list[str]) -> Figure:
    """Draws the flow graph (left) and the rollout through all layers, relative to the uniform one (right)."""
    graph = flow_graph(weights_LHQK)
    n_layers, n = weights_LHQK.shape[0], len(tokens)
    figure, (axis, right) = plt.subplots(1, 2, figsize=scaled(max(5.5, 0.42 * n) + 4.4, 3.8),
                                         width_ratios=(max(5.5, 0.42 * n), 4.4))  # fmt: skip
    position = {(layer, i): (i, layer) for layer, i in graph.nodes}
    edges = list(graph.edges(data="weight"))
    same = [a[1] == b[1] for a, b, _ in edges]
    nx.draw_networkx_nodes(graph, position, node_size=9, node_color=MUTED, ax=axis)
    nx.draw_networkx_edges(
        graph, position, edgelist=[(a, b) for a, b, _ in edges], width=[0.4 + 2.6 * w for *_, w in edges],
        edge_color=[MUTED if own else ACCENT for own in same], arrows=False, alpha=0.75, ax=axis,
    )  # fmt: skip
    words = [readable(token) for token in tokens]
    axis.set_xticks(range(1, n), words[1:], rotation=60, ha="right", fontsize=SMALLEST)
    axis.set_yticks(range(n_layers + 1), ["input", *map(str, range(n_layers))], fontsize=SMALLEST)
    axis.set_ylabel("after layer")
    axis.tick_params(left=True, bottom=True, labelleft=True, labelbottom=True)
    axis.set_frame_on(False)
    image = right.imshow(relative_rollout(weights_LHQK), cmap="RdBu_r", norm=LogNorm(0.25, 4, clip=True))
    shown = every(words, 2.4)
    right.set_yticks(shown, [words[i] for i in shown], fontsize=SMALLEST)
    right.set_xticks(shown, [words[i] for i in shown], fontsize=SMALLEST, rotation=90)
    bar = figure.colorbar(image, ax=right, shrink=0.6, ticks=[0.25, 1, 4])
    bar.ax.set_yticklabels(["≤ ¼", "1", "≥ 4"])
    bar.ax.minorticks_off()
    bar.set_label("rollout, times the uniform one", color=MUTED)
    return figure


def flow_table(weights_LHQK: NDArray, tokens: list[str]) -> pd.DataFrame:
    """Tabulates the flow graph's edges (`layer` counts the layers before), then the rollout, which has no layer."""
    edges = [
        {"layer": layer, "from": key, "to": query, "share": weight}
        for (layer, key), (_, query), weight in flow_graph(weights_LHQK).edges(data="weight")
    ]
    relative_QK = relative_rollout(weights_LHQK)
    reached = [
        {"from": key, "to": query, "rollout_over_uniform": relative_QK[query, key]}
        for query, key in zip(*np.tril_indices(len(tokens)), strict=True)
    ]
    table = pd.DataFrame([*edges, *reached], columns=["layer", "from", "to", "share", "rollout_over_uniform"])
    return table.assign(**{f"{end}_token": [tokens[i] for i in table[end]] for end in ("from", "to")}).astype(
        {"layer": "Int64"}
    )


def map_table(weights_LHQK: NDArray, tokens: list[str]) -> pd.DataFrame:
    """Tabulates the weights of all heads, one row per query; columns `k0`, `k1`, ... are the keys."""
    n_layers, n_heads, n, _ = weights_LHQK.shape
    layer, head, query = (axis.ravel() for axis in np.indices((n_layers, n_heads, n)))
    about = pd.DataFrame({"layer": layer, "head": head, "query": query, "token": np.array(tokens, dtype=object)[query]})
    keys = pd.DataFrame(weights_LHQK.reshape(-1, n), columns=[f"k{k}" for k in range(n)]).astype(float).round(4)
    return about.join(keys.where(np.arange(n)[None, :] <= query[:, None]))
