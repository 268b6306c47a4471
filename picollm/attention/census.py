"""The census of heads: statistics with intervals, labels with confidence, and what a reader needs to judge them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from picollm.attention.labels import (
    CONFIDENT,
    LABELS,
    RAW_RULE,
    RULE,
    SINK_FLAG,
    Thresholds,
    assign,
    assign_raw,
    confidence,
    counts,
    in_force,
    is_previous_token,
    percentiles_99,
)
from picollm.attention.maps import CategoryMaps, flatten
from picollm.attention.statistics import (
    DEFINITIONS,
    NAMES,
    bootstrap_counts,
    category_values,
    interval,
    macro_mean,
    named,
    sentence_sums,
)

FORMAT = 1


def census(
    categories: Sequence[CategoryMaps],
    *,
    null: Mapping[str, NDArray],
    configured: Thresholds,
    window: int,
    bootstraps: int,
    seed: int,
) -> dict:
    """The content of heads.json; `null` is what `null_values` returns for the same sentences and window.

    Every bootstrap keeps the thresholds and the positional kernels: intervals are over the choice of sentences alone.
    """
    maps, _, number = flatten(categories)
    n_layers, n_heads = maps[0].shape[:2]
    sums = sentence_sums(maps, number, window=window)
    replicates = macro_mean(sums, bootstrap_counts(sums.category, replicates=bootstraps, seed=seed))
    values = {name: value[0] for name, value in macro_mean(sums).items()}

    band = percentiles_99(null)
    thresholds = in_force(configured, band)
    labels, labels_RH = assign(values, thresholds), assign(replicates, thresholds)
    raw = assign_raw(values)
    labels_CH = np.stack([assign(named(ratio[0]), thresholds) for ratio in category_values(sums)])

    sample = {category.category: _sample(category) for category in categories}
    return {
        "format": FORMAT,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "sample": {
            "sentences": len(maps),
            "tokens": sum(entry["tokens"] for entry in sample.values()),
            "bootstraps": bootstraps,
            "null_models": len(null["broad"]),
            "window": window,
            "seed": seed,
            "categories": sample,
        },
        "definitions": DEFINITIONS,
        "rule": list(RULE),
        "raw_rule": RAW_RULE,
        "thresholds": _threshold_origins(configured, thresholds, band),
        "null": {
            "heads": null["broad"].size,
            "percentile_99": {name: number_or_none(value) for name, value in band.items()},
            "labels": _by_label(counts(assign(null, thresholds)).sum(0)),
            "raw_labels": _by_label(counts(assign_raw(null)).sum(0)),
        },
        "labels": _label_shares(counts(labels), counts(labels_RH)),
        "raw_labels": _by_label(counts(raw)),
        "raw_agreement": number_or_none((labels == raw).mean()),
        "heads": _heads(n_heads, categories, values, replicates, labels, labels_RH, labels_CH, raw),
    }


def _sample(category: CategoryMaps) -> dict:
    lengths = [len(sequence) - 1 for sequence in category.ids]  # without the separator
    return {
        "title": category.title,
        "sentences": len(lengths),
        "tokens": sum(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
    }


def _heads(
    n_heads: int,
    categories: Sequence[CategoryMaps],
    values: Mapping[str, NDArray],
    replicates: Mapping[str, NDArray],
    labels: NDArray,
    labels_RH: NDArray,
    labels_CH: NDArray,
    raw: NDArray,
) -> list[dict]:
    bounds = {name: interval(replicates[name]) for name in NAMES}
    sure, previous = confidence(labels, labels_RH), is_previous_token(values, labels)
    return [
        {
            "name": f"L{h // n_heads}H{h % n_heads}",
            "layer": h // n_heads,
            "head": h % n_heads,
            "label": LABELS[labels[h]],
            "tag": "previous-token" if previous[h] else None,
            "confidence": number_or_none(sure[h]),
            "uncertain": bool(sure[h] < CONFIDENT),
            "sink_flag": bool(values["kappa_sink"][h] >= SINK_FLAG),
            "raw_label": LABELS[raw[h]],
            "category_labels": {
                c.category: LABELS[label] for c, label in zip(categories, labels_CH[:, h], strict=True)
            },
            "categories_agreeing": int((labels_CH[:, h] == labels[h]).sum()),
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


def _threshold_origins(configured: Thresholds, used: Thresholds, band: Mapping[str, float]) -> dict:
    null = {"kappa": band["kappa_max"], "content": band["content"]}
    return {
        name: {
            "value": number_or_none(getattr(used, name)),
            "configured": getattr(configured, name),
            "null_percentile_99": number_or_none(null[name]) if name in null else None,
            "source": "configured" if getattr(used, name) == getattr(configured, name) else "null",
        }
        for name in ("kappa", "content", "broad", "sink")
    }


def _label_shares(found: NDArray, replicates: NDArray) -> dict:
    total = found.sum()
    low, high = interval(replicates / total)
    return {
        label: {
            "count": int(found[k]),
            "share": number_or_none(found[k] / total),
            "low": number_or_none(low[k]),
            "high": number_or_none(high[k]),
        }
        for k, label in enumerate(LABELS)
    }


def _by_label(found: NDArray) -> dict[str, int]:
    return {label: int(n) for label, n in zip(LABELS, found, strict=True)}


def number_or_none(value: float) -> float | None:
    """Six decimals: beyond the last place that another thread count or BLAS may change. None for what is undefined."""
    return round(float(value), 6) if np.isfinite(value) else None


def table(report: dict) -> str:
    """The heads of a census as CSV, one row a head."""
    plain = [key for key, value in report["heads"][0].items() if not isinstance(value, dict)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(plain + [f"{name}{part}" for name in NAMES for part in ("", "_low", "_high")])
    for head in report["heads"]:
        statistics = [head["statistics"][name][part] for name in NAMES for part in ("value", "low", "high")]
        writer.writerow([head[key] for key in plain] + statistics)
    return file.getvalue()


def metrics(report: dict) -> dict[str, float]:
    """Flat scalars with stable names for `dvc metrics diff`."""
    heads, null = report["heads"], report["null"]

    def mean(name: str) -> float:
        found = [h["statistics"][name]["value"] for h in heads if h["statistics"][name]["value"] is not None]
        return round(float(np.mean(found)), 6) if found else 0.0

    return {
        "heads": len(heads),
        **{f"share_{label.replace('-', '_')}": report["labels"][label]["share"] for label in LABELS},
        "share_uncertain": round(sum(h["uncertain"] for h in heads) / len(heads), 6),
        "raw_agreement": report["raw_agreement"],
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
