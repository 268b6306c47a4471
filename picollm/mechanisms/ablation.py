"""Ablation: how much the loss rises without a head, in nats per token, with an interval over windows of text.

The model with a head replaced and the complete model read the same windows, and only differences are compared. Windows
are resampled rather than tokens, because the tokens of one window depend on each other.

Shape suffixes: W window, T position, H head (layers flattened), L layer, K head width, R replicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from picollm.mechanisms.intervention import BATCH_TOKENS, baseline, batches, each_head, without
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.redundancy import Interactions, interactions
from picollm.mechanisms.targets import KINDS as TARGETS
from picollm.mechanisms.targets import target_kinds
from picollm.model.foreign import Examined
from picollm.progress import progress
from picollm.stats import SIGNIFICANT, Effect, finite, number_or_none, per_head, resampled

FORMAT = 2
RANDOM_SETS = 100
STRONGEST = 10  # heads whose pairs are ablated in the default run; `make study` uses all


def effects(
    model: Examined, ids_WT: NDArray, kind: str, means_LHK: Tensor, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nats of each next token of the complete model, [W, T - 1], and the rise without each head, [H, W, T - 1]."""
    whole, more = [], []
    for ids in progress(batches(ids_WT, device), unit=" batches", desc=f"{kind} ablation"):
        nats_WT = baseline(model, ids)
        whole.append(nats_WT.double().cpu())
        more.append((each_head(model, ids, kind, means_LHK) - nats_WT).double().cpu())
    return torch.cat(whole).numpy(), torch.cat(more, 1).numpy()


class TargetKind(TypedDict):
    definition: str
    share: float
    loss: float | None


class KindEffect(TypedDict):
    """Rise in nats on the targets of one kind, with its interval."""

    delta: float
    low: float
    high: float


class HeadEffect(Effect):
    perplexity: float
    share: float


class Ablated(TypedDict):
    """Effects of one kind of ablation."""

    windows: int
    loss: float
    median_half_width: float
    heads: list[HeadEffect]


class HeadEffects(HeadEffect):
    on: dict[str, KindEffect]


class AblationReport(TypedDict):
    """Contents of ablation.json."""

    format: int
    kind: str
    tokens: int
    mean_tokens: int
    windows: int
    loss: float
    median_half_width: float
    heads: list[HeadEffects]
    targets: dict[str, TargetKind]
    interactions: Interactions | None


class GroupEffect(TypedDict):
    heads: int
    delta: float
    low: float
    high: float
    sets: int
    random_median: float | None
    random_95: float | None
    p: float
    least_p: float


def part_of_effects(s: ModelAndText, number: int, parts: int) -> dict[str, NDArray[np.float64]]:
    """Runs `effects` on one share of the windows, in complete batches, so that the shares together have the same
    floats; empty if there are fewer batches than shares."""
    of_batches = np.array_split(np.arange(len(batches(s.windows, s.device))), parts)[number]
    rows = max(1, BATCH_TOKENS // s.windows.shape[1])
    windows = s.windows[of_batches[0] * rows : (of_batches[-1] + 1) * rows] if len(of_batches) else s.windows[:0]
    if not len(windows):
        heads, targets = len(s.names), s.windows.shape[1] - 1
        return {"whole": np.empty((0, targets)), "rise": np.empty((heads, 0, targets))}
    whole_WT, rise_HWT = effects(s.model, windows, "mean", s.means, s.device)
    return {"whole": whole_WT, "rise": rise_HWT}


def ablate_heads(s: ModelAndText, parts: Sequence[Mapping[str, NDArray]] = ()) -> AblationReport:
    """Returns the contents of ablation.json: mean ablation of every head on the validation windows.

    `parts` holds the results of `part_of_effects` for each share of the windows; without it, all work is done here.
    """
    parts = parts or [part_of_effects(s, 0, 1)]
    whole_WT = np.concatenate([part["whole"] for part in parts])
    rise_HWT = np.concatenate([part["rise"] for part in parts], 1)
    seed, rise_HW = s.cfg["seed"], rise_HWT.mean(-1)
    strongest = np.argsort(-np.abs(rise_HW.mean(1)), kind="stable")[:STRONGEST]
    effects_report = summary(whole_WT.mean(-1), rise_HW, s.names, seed=seed)
    kinds, by_head = by_kind(whole_WT, rise_HWT, target_kinds(s.windows, s.counts), seed=seed)
    return {
        "format": FORMAT,
        "kind": "mean",
        "tokens": int(s.windows[:, 1:].size),
        "mean_tokens": int(s.mean_windows.size),
        "windows": effects_report["windows"],
        "loss": effects_report["loss"],
        "median_half_width": effects_report["median_half_width"],
        "heads": [{**head, "on": on} for head, on in zip(effects_report["heads"], by_head, strict=True)],
        "targets": kinds,
        "interactions": interactions(s, sorted(strongest.tolist())) if len(strongest) > 1 else None,
    }


def by_kind(
    whole_WT: NDArray, rise_HWT: NDArray, kinds: Mapping[str, NDArray], *, seed: int
) -> tuple[dict[str, TargetKind], list[dict[str, KindEffect]]]:
    """Returns the share and loss of each kind of target, and for each head the rise on targets of each kind."""
    about: dict[str, TargetKind] = {}
    columns: dict[str, list[KindEffect]] = {}
    for kind, there_WT in kinds.items():
        number_W = there_WT.sum(-1)
        about[kind] = {
            "definition": TARGETS[kind],
            "share": finite(there_WT.mean()),
            "loss": finite(whole_WT[there_WT].mean()) if number_W.any() else None,
        }
        if number_W.any():
            lost_HW = (rise_HWT * there_WT).sum(-1)
            low_H, high_H = resampled(lost_HW, seed, of_W=number_W)
            rows = zip(lost_HW.sum(-1) / number_W.sum(), low_H, high_H, strict=True)
            columns[kind] = [{"delta": finite(x), "low": finite(low), "high": finite(high)} for x, low, high in rows]
    return about, [{kind: column[h] for kind, column in columns.items()} for h in range(len(rise_HWT))]


def summary(whole_W: NDArray, rise_HW: NDArray, names: Sequence[str], *, seed: int) -> Ablated:
    """Summarises the effects of one kind of ablation as JSON."""
    heads = per_head(rise_HW, names, seed=seed)
    positive = np.maximum(rise_HW.mean(1), 0)
    share_H = positive / positive.sum() if positive.any() else positive
    return {
        "windows": len(whole_W),
        "loss": finite(whole_W.mean()),
        "median_half_width": finite(np.median([(head["high"] - head["low"]) / 2 for head in heads])),
        "heads": [
            {**head, "perplexity": finite(math.expm1(head["delta"])), "share": finite(share)}
            for head, share in zip(heads, share_H, strict=True)
        ],
    }


def agreement(kinds: Mapping[str, Ablated]) -> dict[str, float | None]:
    """Spearman's rank correlation between the effects of each kind of ablation and those of the mean."""
    delta = {kind: [head["delta"] for head in effects_of_kind["heads"]] for kind, effects_of_kind in kinds.items()}
    return {
        kind: number_or_none(spearmanr(delta["mean"], values).statistic)
        for kind, values in delta.items()
        if kind != "mean"
    }


def set_loss(
    model: Examined, ids_WT: NDArray, heads_LH: NDArray, means_LHK: Tensor, device: torch.device
) -> NDArray[np.float64]:
    """Mean nats of each window, [W], with a set of heads, a mask [L, H], replaced by their means."""
    mask = torch.from_numpy(heads_LH).to(device)
    return np.concatenate(
        [
            without(model, ids, mask, means_LHK).double().mean(-1).cpu().numpy()
            for ids in batches(ids_WT, device)
        ]
    )  # fmt: skip


def other_sets(heads_LH: NDArray, *, sets: int, seed: int) -> list[NDArray[np.bool_]]:
    """Returns distinct other sets, [L, H] each, with as many heads of each layer: all of them if there are at most
    `sets`, otherwise that many drawn at random. Empty for complete layers."""
    n_heads, counts = heads_LH.shape[1], heads_LH.sum(1)
    if math.prod(math.comb(n_heads, int(k)) for k in counts) - 1 <= sets:
        layers = [list(combinations(range(n_heads), int(k))) for k in counts]
        every = (mask_of(chosen, heads_LH.shape) for chosen in product(*layers))
        return [mask for mask in every if not np.array_equal(mask, heads_LH)]
    generator, masks = np.random.default_rng(seed), {heads_LH.tobytes(): heads_LH}
    while len(masks) <= sets:
        drawn = generator.permuted(heads_LH, axis=1)
        masks[drawn.tobytes()] = drawn
    return list(masks.values())[1:]


def mask_of(chosen: Sequence[Sequence[int]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    for layer, heads in enumerate(chosen):
        mask[layer, list(heads)] = True
    return mask


def group_effect(loss_without: Callable[[NDArray], NDArray], heads_LH: NDArray, *, seed: int, sets: int) -> GroupEffect:
    """Cost of ablating a group of heads, a mask [L, H], compared with other sets with as many heads of each layer.

    `loss_without` maps a mask to a loss per window (or sequence), [W]. `p` is the share of all sets, including this
    one, that cost as much, and `least_p` the smallest p that so many sets can give: 1 without other sets.
    """
    whole_W = loss_without(np.zeros_like(heads_LH))
    rise_W = loss_without(heads_LH) - whole_W
    others = np.array([(loss_without(mask) - whole_W).mean() for mask in other_sets(heads_LH, sets=sets, seed=seed)])
    (low,), (high,) = resampled(rise_W[None], seed)
    return {
        "heads": int(heads_LH.sum()),
        "delta": finite(rise_W.mean()),
        "low": finite(low),
        "high": finite(high),
        "sets": len(others),
        "random_median": finite(np.median(others)) if len(others) else None,
        "random_95": finite(np.quantile(others, 0.95)) if len(others) else None,
        "p": finite((1 + (others >= rise_W.mean() - 1e-9).sum()) / (1 + len(others))),
        "least_p": finite(1 / (1 + len(others))),
    }


def metrics(report: AblationReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`."""
    heads = report["heads"]
    worse = [head for head in heads if head["q"] < SIGNIFICANT and head["delta"] > 0]
    return {
        "loss": report["loss"],
        "heads_that_matter": len(worse),
        "heads_in_the_way": sum(head["q"] < SIGNIFICANT and head["delta"] < 0 for head in heads),
        "largest_delta": max(head["delta"] for head in heads),
        "median_half_width": report["median_half_width"],
        "tokens": report["tokens"],
    }
