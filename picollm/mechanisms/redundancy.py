"""Redundancy of heads: the cost of ablating a pair, beyond the costs of its two heads separately.

The interaction of a pair is D(a, b) - D(a) - D(b), where D is the cost of mean-ablating a set of heads. Above 0, each
hides the loss of the other: they are redundant. Below 0, they work in series: without one, the other is less useful.

Shape suffixes: P pair, W window, T position, L layer, H head of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.mechanisms.intervention import batches, each_set
from picollm.mechanisms.model_and_text import ModelAndText, spread
from picollm.progress import progress
from picollm.stats import SIGNIFICANT, DefinedInterval, Effect, finite, per_head, resampled, sign_flip_p

WINDOWS = 16  # windows of the validation split
EVERY = 8  # one target in 8 is scored: the vocabulary head is the expensive part


class MeanInteraction(DefinedInterval):
    p: float


class Interactions(TypedDict):
    heads: list[str]
    pairs: int
    windows: int
    tokens: int
    mean: MeanInteraction
    redundant: int
    serial: int
    largest: list[Effect]  # `name` names two heads


def interactions(s: ModelAndText, heads: Sequence[int]) -> Interactions:
    """Computes the interactions of all pairs among some heads (numbers as in `s.names`) and their mean, with intervals
    over windows; `redundant` and `serial` count pairs above and below 0 at a false discovery rate of SIGNIFICANT."""
    chosen = list(combinations(heads, 2))
    windows = spread(s.validation, WINDOWS)
    rise_W = {tuple(members): row for members, row in cost_of(s, windows, [*((h,) for h in heads), *chosen])}
    both_PW = np.stack([rise_W[pair] - rise_W[pair[:1]] - rise_W[pair[1:]] for pair in chosen])
    rows = per_head(both_PW, [f"{s.names[a]} {s.names[b]}" for a, b in chosen], seed=s.cfg["seed"])
    (low,), (high,) = resampled(both_PW.mean(0, keepdims=True), s.cfg["seed"])
    certain = [row for row in rows if row["q"] < SIGNIFICANT]
    return {
        "heads": [s.names[h] for h in heads],
        "pairs": len(chosen),
        "windows": len(windows),
        "tokens": len(windows) * len(range(EVERY - 1, windows.shape[1] - 1, EVERY)),
        "mean": {
            "value": finite(both_PW.mean()), "low": finite(low), "high": finite(high),
            "p": finite(sign_flip_p(both_PW.mean(0, keepdims=True), s.cfg["seed"])[0]),
        },
        "redundant": sum(row["delta"] > 0 for row in certain),
        "serial": sum(row["delta"] < 0 for row in certain),
        "largest": sorted(rows, key=lambda row: -abs(row["delta"]))[:20],
    }  # fmt: skip


def cost_of(s: ModelAndText, windows: NDArray, sets: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], NDArray]]:
    """Returns each set with the rise in the windows' loss without its heads, [W]."""
    config = s.model.config
    masks = []
    for members in sets:
        mask = torch.zeros(config.n_layers * config.n_heads, dtype=torch.bool, device=s.device)
        mask[list(members)] = True
        masks.append(mask.view(config.n_layers, config.n_heads))
    none = torch.zeros_like(masks[0])
    parts = []
    for ids in progress(batches(windows, s.device), unit=" batches", desc="pairs of heads"):
        scored = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
        scored[:, EVERY - 1 :: EVERY] = True
        whole, *without = (
            nats.double().sum(-1) / scored.sum(-1) for nats in each_set(s.model, ids, [none, *masks], s.means, scored)
        )
        parts.append(torch.stack(without) - whole)
    return list(zip(sets, torch.cat(parts, dim=1).cpu().numpy(), strict=True))
