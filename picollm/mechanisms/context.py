"""Context use: the same targets, predicted from only the last 1, 2, 4, ... tokens before them.

Shape suffixes: W window, N target (TARGETS of each window), T position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm.mechanisms.intervention import baseline, batches
from picollm.model.foreign import Examined
from picollm.stats import finite, resampled

TARGETS = 3  # per window, in its last quarter, so that all have a long context


def target_places(windows: int, T: int, seed: int) -> NDArray[np.int64]:
    """Draws [W, TARGETS] positions of targets in rows of T + 1 ids, or fewer if the last quarter has fewer."""
    late = np.arange(max(1, T - T // 4), T + 1)
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(late, min(TARGETS, len(late)), replace=False) for _ in range(windows)])


def lengths(T: int) -> list[int]:
    """Powers of 2 up to the shortest full context of a target."""
    longest = max(1, T - T // 4)
    return [2**n for n in range(longest.bit_length()) if 2**n <= longest]


def truncated_nats(
    model: Examined,
    windows_WT: NDArray,
    tokens: Sequence[int | None],
    *,
    seed: int,
    device: torch.device,
    losses: Callable[[Examined, Tensor, Tensor], Tensor] = baseline,
) -> dict[int | None, NDArray[np.float64]]:
    """Computes nats of the targets, averaged over each window, [..., W], by tokens of context; None means all tokens.

    `losses` maps a model, ids [B, T + 1] and a mask of the targets [B, T] to [..., B, T], 0 outside the mask.
    """
    W, T = windows_WT.shape[0], windows_WT.shape[1] - 1
    place_WN = target_places(W, T, seed)
    N, by_context = place_WN.shape[1], {}
    for k in tokens:
        if k is None:
            rows, target_WN, each = windows_WT, place_WN, 1
        else:
            rows = np.stack([windows_WT[w, p - k : p + 1] for w in range(W) for p in place_WN[w]])
            target_WN, each = np.full((W * N, 1), k), N
        scored = np.zeros((len(rows), rows.shape[1] - 1), dtype=bool)
        np.put_along_axis(scored, target_WN - 1, True, axis=1)
        parts = batches(rows, device)
        masks = torch.from_numpy(scored).to(device).split(len(parts[0]))
        nats = [losses(model, *pair).double().sum(-1).cpu().numpy() for pair in zip(parts, masks, strict=True)]
        total = np.concatenate(nats, axis=-1)
        by_context[k] = total.reshape(*total.shape[:-1], W, each).sum(-1) / N
    return by_context


class ContextCost(TypedDict):
    tokens: int
    cost: float
    low: float
    high: float


class ContextCurve(TypedDict):
    """Contents of `context` in mechanisms.json."""

    windows: int
    targets: int
    loss: float
    curve: list[ContextCost]
    enough: int | None


def context_curve(model: Examined, windows_WT: NDArray, *, seed: int, device: torch.device) -> ContextCurve:
    """Returns for each number of tokens the targets' extra cost over the full context, with intervals over windows.

    `enough` is the smallest number from which no further gain is detectable: no interval is above 0.
    """
    tokens = lengths(windows_WT.shape[1] - 1)
    nats = truncated_nats(model, windows_WT, [*tokens, None], seed=seed, device=device)
    cost_KW = np.stack([nats[k] for k in tokens]) - nats[None]
    low, high = resampled(cost_KW, seed)
    costly = [k for k, value in zip(tokens, low, strict=True) if value > 0]
    return {
        "windows": len(windows_WT),
        "targets": target_places(len(windows_WT), windows_WT.shape[1] - 1, seed).size,
        "loss": finite(nats[None].mean()),
        "curve": [
            {"tokens": k, "cost": finite(cost), "low": finite(least), "high": finite(most)}
            for k, cost, least, most in zip(tokens, cost_KW.mean(1), low, high, strict=True)
        ],
        "enough": 2 * max(costly) if costly and 2 * max(costly) in tokens else (None if costly else 1),
    }
