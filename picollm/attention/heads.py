"""Builds reports/heads.json: for every head its statistics with 95 % intervals, its label and the label's certainty.

Reads data/attention/*.npz, and the model for the controls (picollm.attention.controls).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.controls import (
    CategoryEffects,
    Controls,
    Null,
    OtherThreshold,
    OtherWindow,
    Separator,
    by_threshold,
    by_window,
    category_effects,
    controls_of,
    effects_report,
    no_controls,
    null_report,
    separator_report,
    shuffled_kappa,
)
from picollm.attention.key_sets import every_key_set
from picollm.attention.key_tokens import KeyTokens, key_tokens
from picollm.attention.labels import (
    LABELS,
    RAW_RULE,
    RULE,
    SINK_FLAG,
    STABLE,
    Threshold,
    Thresholds,
    assign,
    assign_raw,
    by_label,
    counts,
    effective_thresholds,
    margins,
    percentiles_99,
    stability,
    tags,
    threshold_origins,
)
from picollm.attention.maps import CategoryMaps, every_map, flat, name_of, numbering
from picollm.attention.measures import (
    DEFINITIONS,
    NAMES,
    Sums,
    by_name,
    category_values,
    first_replicate,
    macro_mean,
    sentence_sums,
)
from picollm.attention.relations import Relation, marked_sentences, relations
from picollm.model.foreign import Examined
from picollm.stats import (
    Interval,
    bootstrap_counts,
    finite,
    interval,
    interval_columns,
    number_or_none,
)

FORMAT = 3
BY_CATEGORY = ("kappa_self", "kappa_prev", "kappa_local", "broad", "content")  # reported for each category


class CategorySample(TypedDict):
    title: str
    sentences: int
    tokens: int
    shortest: int
    longest: int


class SentenceSample(TypedDict):
    sentences: int
    tokens: int
    categories: dict[str, CategorySample]


class Sample(SentenceSample):
    bootstraps: int
    null_models: int
    window: int
    seed: int


class LabelShare(TypedDict):
    count: int
    share: float
    low: float
    high: float


class Sensitivity(TypedDict):
    thresholds: list[OtherThreshold]
    window: list[OtherWindow]


class Head(KeyTokens):
    name: str
    layer: int
    head: int
    label: str
    tag: str | None
    stability: float
    margin: float | None
    unstable: bool
    sink_flag: bool
    raw_label: str
    category_labels: dict[str, str]
    by_category: dict[str, dict[str, list[float | None]]]
    categories_agreeing: int
    statistics: dict[str, Interval]


class HeadsReport(TypedDict):
    """Contents of heads.json; labels come from LABELS, statistics from DEFINITIONS."""

    format: int
    n_layers: int
    n_heads: int
    sample: Sample
    definitions: dict[str, str]
    rule: list[str]
    raw_rule: str
    thresholds: dict[str, Threshold]
    null: Null
    sharpened_null: Null
    labels: dict[str, LabelShare]
    raw_labels: dict[str, int]
    raw_agreement: float
    sensitivity: Sensitivity
    separator: Separator | None
    relations: dict[str, Relation]
    category_effects: CategoryEffects
    heads: list[Head]


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of each head before they are written as JSON; the last axis of every array is heads."""

    values: Mapping[str, NDArray]
    replicates: Mapping[str, NDArray]
    thresholds: Thresholds
    labels_H: NDArray
    labels_RH: NDArray
    labels_CH: NDArray
    by_category: Sequence[Mapping[str, NDArray]]  # for BY_CATEGORY: value, low and high, [3, H]


def classify_heads(
    categories: Sequence[CategoryMaps], model: Examined | None, cfg: Mapping, device: torch.device
) -> HeadsReport:
    """Returns the contents of heads.json from the maps of `model` and the config's `heads` section.

    Without a model there are no untrained models to compare with and no results about the separator.
    """
    keys = list(every_key_set(categories))
    sums = sentence_sums(every_map(categories), numbering(categories), window=cfg["window"], keys=keys)
    broad_H = first_replicate(macro_mean(sums))["broad"]
    controls = controls_of(model, categories, broad_H, keys, cfg, device) if model else no_controls(len(broad_H))
    return describe_heads(
        categories,
        sums,
        controls,
        configured=Thresholds(cfg["kappa"], cfg["content"], cfg["broad"], cfg["sink"]),
        window=cfg["window"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )


def describe_heads(
    categories: Sequence[CategoryMaps],
    sums: Sums,
    controls: Controls,
    *,
    configured: Thresholds,
    window: int,
    bootstraps: int,
    seed: int,
) -> HeadsReport:
    """Returns the contents of heads.json. `sums` belong to `categories`; `controls` use the same sentences and window.

    Thresholds and positional kernels are fixed across bootstraps: intervals cover only the choice of sentences.
    """
    permuted_kappa = shuffled_kappa(every_map(categories), numbering(categories), window=window, seed=seed)
    null, sharpened = controls.null, controls.sharpened
    band = percentiles_99(null)
    thresholds = effective_thresholds(configured, band, sharpened, permuted_kappa)
    computed = statistics(sums, thresholds, bootstraps=bootstraps, seed=seed)
    n_layers, n_heads = categories[0].maps[0].shape[:2]
    lengths = [len(ids) for category in categories for ids in category.ids]
    raw = assign_raw(computed.values)
    return {
        "format": FORMAT,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "sample": {
            **_sample(categories),
            "bootstraps": bootstraps,
            "null_models": len(null["broad"]),
            "window": window,
            "seed": seed,
        },
        "definitions": DEFINITIONS,
        "rule": list(RULE),
        "raw_rule": RAW_RULE,
        "thresholds": threshold_origins(configured, thresholds, band, sharpened, permuted_kappa),
        "null": null_report(null, thresholds),
        "sharpened_null": null_report(sharpened, thresholds),
        "labels": _label_shares(counts(computed.labels_H), counts(computed.labels_RH)),
        "raw_labels": by_label(counts(raw)),
        "raw_agreement": finite((computed.labels_H == raw).mean()),
        "sensitivity": {
            "thresholds": by_threshold(computed.values, thresholds),
            "window": by_window(categories, computed.values, thresholds),
        },
        "separator": separator_report(computed.values, computed.labels_H, controls.bare, thresholds),
        "relations": _relations(categories, n_heads, controls.effects, seed),
        "category_effects": effects_report(category_effects(sums, lengths, seed=seed), categories, n_heads),
        "heads": _heads(n_heads, categories, computed, raw),
    }


def statistics(sums: Sums, thresholds: Thresholds, *, bootstraps: int, seed: int) -> HeadStatistics:
    counts_RS = bootstrap_counts(sums.category, replicates=bootstraps, seed=seed)
    values, replicates = first_replicate(macro_mean(sums)), macro_mean(sums, counts_RS)
    return HeadStatistics(
        values,
        replicates,
        thresholds,
        labels_H=assign(values, thresholds),
        labels_RH=assign(replicates, thresholds),
        labels_CH=np.stack([assign(by_name(ratio[0]), thresholds) for ratio in category_values(sums)]),
        by_category=by_category(sums, counts_RS),
    )


def by_category(sums: Sums, counts_RS: NDArray) -> list[dict[str, NDArray]]:
    """Returns the value and its interval, [3, H], of each BY_CATEGORY statistic, one dict per category."""
    rows = []
    for own, drawn in zip(category_values(sums), category_values(sums, counts_RS), strict=True):
        ratio, replicates = by_name(own[0]), by_name(drawn)
        rows.append({name: np.stack([ratio[name], *interval(replicates[name])]) for name in BY_CATEGORY})
    return rows


def _relations(
    categories: Sequence[CategoryMaps], n_heads: int, null_effects: Sequence[Mapping[str, NDArray]], seed: int
) -> dict[str, Relation]:
    marked_numbers, golds = marked_sentences(categories)
    maps = [weights for k, weights in enumerate(every_map(categories)) if k in set(marked_numbers)]
    names = [name_of(h, n_heads) for h in range(len(flat(categories[0].maps[0])))]
    return relations(maps, golds, names, null_effects, seed=seed)


def _sample(categories: Sequence[CategoryMaps]) -> SentenceSample:
    samples: dict[str, CategorySample] = {}
    for category in categories:
        lengths = [len(ids) - 1 for ids in category.ids]  # without the separator
        samples[category.category] = {
            "title": category.title,
            "sentences": len(lengths),
            "tokens": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
        }
    return {
        "sentences": sum(entry["sentences"] for entry in samples.values()),
        "tokens": sum(entry["tokens"] for entry in samples.values()),
        "categories": samples,
    }


def _heads(n_heads: int, categories: Sequence[CategoryMaps], computed: HeadStatistics, raw: NDArray) -> list[Head]:
    values, labels = computed.values, computed.labels_H
    bounds = {name: interval(computed.replicates[name]) for name in NAMES}
    stable = stability(labels, computed.labels_RH)
    tag = tags(values, labels, computed.thresholds)
    looked_at = key_tokens(categories, tag)
    margin = margins(values, computed.replicates, labels, computed.thresholds)
    return [
        {
            "name": name_of(h, n_heads),
            "layer": h // n_heads,
            "head": h % n_heads,
            "label": LABELS[labels[h]],
            "tag": tag[h],
            **looked_at[h],
            "stability": finite(stable[h]),
            "margin": number_or_none(margin[h]),
            "unstable": bool(stable[h] < STABLE),
            "sink_flag": bool(values["kappa_sink"][h] >= SINK_FLAG),
            "raw_label": LABELS[raw[h]],
            "category_labels": {
                c.category: LABELS[label] for c, label in zip(categories, computed.labels_CH[:, h], strict=True)
            },
            "by_category": {
                c.category: {name: [number_or_none(x) for x in rows[name][:, h]] for name in BY_CATEGORY}
                for c, rows in zip(categories, computed.by_category, strict=True)
            },
            "categories_agreeing": int((computed.labels_CH[:, h] == labels[h]).sum()),
            "statistics": {
                name: {
                    "value": number_or_none(values[name][h]),
                    "low": number_or_none(bounds[name][0][h]),
                    "high": number_or_none(bounds[name][1][h]),
                }
                for name in NAMES
            },
        }
        for h in range(len(labels))
    ]


def _label_shares(counted: NDArray, replicates: NDArray) -> dict[str, LabelShare]:
    total = counted.sum()
    low, high = interval(replicates / total)
    return {
        label: {
            "count": int(counted[k]),
            "share": finite(counted[k] / total),
            "low": finite(low[k]),
            "high": finite(high[k]),
        }
        for k, label in enumerate(LABELS)
    }


def heads_csv(report: HeadsReport) -> str:
    """Returns the contents of heads.csv, one row per head."""
    heads: list[dict[str, Any]] = [dict(head) for head in report["heads"]]
    plain = [key for key, value in heads[0].items() if not isinstance(value, dict | list)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(plain + list(interval_columns(heads[0]["statistics"])))
    for head in heads:
        writer.writerow([head[key] for key in plain] + list(interval_columns(head["statistics"]).values()))
    return file.getvalue()


def metrics(report: HeadsReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`."""
    heads, null = report["heads"], report["null"]

    def mean(name: str) -> float:
        values = (head["statistics"][name]["value"] for head in heads)
        defined = [value for value in values if value is not None]
        return round(float(np.mean(defined)), 6) if defined else 0.0

    return {
        "heads": len(heads),
        **{f"share_{label.replace('-', '_')}": report["labels"][label]["share"] for label in LABELS},
        "share_unstable": round(sum(h["unstable"] for h in heads) / len(heads), 6),
        "mean_broad": mean("broad"),
        "mean_positional": mean("positional"),
        "mean_content": mean("content"),
        "mean_non_sink": mean("non_sink"),
        "threshold_kappa": report["thresholds"]["kappa"]["value"],
        "threshold_content": report["thresholds"]["content"]["value"],
        "null_share_global": round(null["labels"]["global"] / null["heads"], 6),
        "null_raw_share_global": round(null["raw_labels"]["global"] / null["heads"], 6),
        "sentences": report["sample"]["sentences"],
        "tokens": report["sample"]["tokens"],
    }
