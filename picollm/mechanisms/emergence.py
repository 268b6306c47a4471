"""Emergence of heads: statistics and scores at the snapshots of training, and the onset of each.

An effect is larger than the minimum size that the labels require and than 99 % of untrained heads. An onset is the
first snapshot from which a head's complete interval stays above that.

Shape suffixes: N snapshot, S sequence, T position, H head (layers flattened), R replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.extraction import attention_maps
from picollm.attention.labels import Thresholds, strongest_kappa, strongest_set
from picollm.attention.maps import CategoryMaps
from picollm.attention.measures import first_replicate, macro_mean, sentence_sums
from picollm.attention.sample import Sample, sample_of
from picollm.mechanisms import repeats
from picollm.mechanisms.context import lengths, truncated_nats
from picollm.mechanisms.intervention import baseline, batches
from picollm.mechanisms.model_and_text import ModelAndText, spread
from picollm.model.transformer import Transformer
from picollm.progress import progress
from picollm.stats import bootstrap_counts, finite, interval, resampled

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport

STATISTICS = ("kappa_max", "kappa_set", "content", "kappa_sink", *repeats.SCORES)
SHARES = ("broad", "positional")  # of a head's entropy, in addition to content; they have no threshold and so no onset
FORMAT = 3
BOOTSTRAPS = 200
SAMPLE = 4
WINDOWS = 16  # windows of the validation split
CONTEXT_WINDOWS = 32
CONTEXTS = (1, 4, 16)  # tokens kept before a target, to measure the gain from longer contexts


class Snapshot(TypedDict):
    step: int
    loss: float
    context_cost: dict[str, float]
    effects: dict[str, int]  # heads with an effect
    mean: dict[str, float]
    heads: dict[str, list[float]]


class EmergenceReport(TypedDict):
    """Contents of emergence.json, for each of STATISTICS."""

    format: int
    sentences: int
    windows: int
    context_windows: int
    threshold: dict[str, float]
    snapshots: list[Snapshot]
    onset: dict[str, list[int | None]]
    median_onset: dict[str, float | None]


def trace_emergence(
    s: ModelAndText,
    snapshots: Iterable[tuple[int, Transformer]],
    categories: Sequence[CategoryMaps],
    threshold: Mapping[str, float],
    labels: Thresholds,
    window: int,
) -> EmergenceReport:
    """Measures snapshots in order of steps, on every SAMPLE-th sentence of each category, some repeats and some
    validation windows; `threshold` comes from `thresholds`, `labels` from heads.json. Without snapshots no head has an
    onset."""
    sample = sample_of(
        (c, *row)
        for c, category in enumerate(categories)
        for row in zip(*(part[::SAMPLE] for part in (category.ids, category.tokens, category.gold)), strict=True)
    )
    length = max(repeats.lengths(s.model.config.context, s.counts, s.tokenizer.start))
    ids_ST = repeats.sequences(s.counts, length, seed=s.cfg["seed"], start=s.tokenizer.start)[: repeats.FEW]
    windows, many = spread(s.validation, WINDOWS), spread(s.validation, CONTEXT_WINDOWS)
    contexts = [k for k in CONTEXTS if k in lengths(many.shape[1] - 1)]
    steps, nats, truncated, measurements = [], [], [], []
    for step, model in progress(snapshots, desc="emergence", unit=" snapshots"):
        steps.append(step)
        model = model.to(s.device)
        nats.append(torch.cat([baseline(model, part) for part in batches(windows, s.device)]).double().cpu().numpy())
        truncated.append(truncated_nats(model, many, [*contexts, None], seed=s.cfg["seed"], device=s.device))
        measurements.append(measured(model, sample, ids_ST, labels, window, seed=s.cfg["seed"], device=s.device))
    H = s.model.config.n_layers * s.model.config.n_heads
    above = {
        name: np.reshape([low[name] for _, low in measurements], (-1, H)) > threshold[name] for name in STATISTICS
    }  # fmt: skip
    onset = {name: [None if n is None else steps[n] for n in onsets(above[name])] for name in STATISTICS}
    return {
        "format": FORMAT,
        "sentences": len(sample.ids),
        "windows": len(windows),
        "context_windows": len(many),
        "threshold": {name: finite(threshold[name]) for name in STATISTICS},
        "snapshots": [
            {
                "step": step,
                "loss": finite(nats_WT.mean()),
                "context_cost": {str(k): finite((truncated[n][k] - truncated[n][None]).mean()) for k in contexts},
                "effects": {name: int(above[name][n].sum()) for name in STATISTICS},
                "mean": {name: finite(values[name].mean()) for name in (*STATISTICS, *SHARES)},
                "heads": {name: [finite(value) for value in values[name]] for name in STATISTICS},
            }
            for n, (step, nats_WT, (values, _)) in enumerate(zip(steps, nats, measurements, strict=True))
        ],
        "onset": onset,
        "median_onset": {
            name: median(without_none(onset[name])) if without_none(onset[name]) else None for name in STATISTICS
        },
    }


def without_none(values: Sequence[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def thresholds(heads: HeadsReport, null: Mapping[str, float]) -> dict[str, float]:
    """Returns the size of an effect for each statistic, from heads.json and the scores' null in mechanisms.json."""
    kappa, content = (heads["thresholds"][name]["value"] for name in ("kappa", "content"))
    sink = max(kappa, heads["null"]["percentile_99"]["kappa_sink"] or 0.0)
    scores = {name: max(repeats.LEAST, null[name]) for name in repeats.SCORES}
    return {"kappa_max": kappa, "kappa_set": 1.0, "content": content, "kappa_sink": sink, **scores}


def measured(
    model: Transformer,
    sample: Sample,
    ids_ST: NDArray,
    labels: Thresholds,
    window: int,
    *,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Computes the values of STATISTICS and SHARES, and the lower 95 % interval ends of STATISTICS, [H] each.

    `kappa_set` is the largest kappa of a set of keys, in multiples of its threshold.
    """
    maps = attention_maps(model, sample.ids, device)
    sums = sentence_sums(maps, sample.category, window=window, keys=sample.keys)
    drawn = macro_mean(sums, bootstrap_counts(sums.category, replicates=BOOTSTRAPS, seed=seed))
    values = first_replicate(macro_mean(sums))
    for table in (values, drawn):
        table["kappa_max"], table["kappa_set"] = strongest_kappa(table), strongest_set(table, labels)[0]
    scores = repeats.scores(model, ids_ST, device)
    low = {name: interval(drawn[name])[0] for name in STATISTICS if name not in scores}
    low |= {name: resampled(score_SH.T, seed)[0] for name, score_SH in scores.items()}
    values |= {name: score_SH.mean(0) for name, score_SH in scores.items()}
    kept = {name: np.nan_to_num(values[name]) for name in (*STATISTICS, *SHARES)}
    return kept, {name: np.nan_to_num(low[name]) for name in low}


def onsets(above_NH: NDArray[np.bool_]) -> list[int | None]:
    """Returns for each head the first snapshot from which it stays above to the end."""
    staying_NH = np.logical_and.accumulate(above_NH[::-1])[::-1]
    return [int(column.argmax()) if column.any() else None for column in staying_NH.T]
