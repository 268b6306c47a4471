"""reports/heads.json: for every head its statistics with 95 % intervals, its label, and how certain the label is.

Reads data/attention/*.npz, and the model for its controls (picollm.attention.controls).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.controls import (
    by_threshold,
    category_effects,
    peaked_models,
    shuffled,
    untrained_models,
    values_of,
    without_separator,
)
from picollm.attention.extraction import attention_maps
from picollm.attention.key_sets import every_key_set
from picollm.attention.key_tokens import key_tokens
from picollm.attention.labels import (
    LABELS,
    RAW_RULE,
    RULE,
    SINK_FLAG,
    STABLE,
    Thresholds,
    assign,
    assign_raw,
    counts,
    effective_thresholds,
    margins,
    percentiles_99,
    stability,
    strongest_kappa,
    tags,
    threshold_origins,
)
from picollm.attention.maps import CategoryMaps, every_map, name_of, numbering
from picollm.attention.measures import (
    DEFINITIONS,
    NAMES,
    Sums,
    by_name,
    category_values,
    first_replicate,
    local_kappa,
    macro_mean,
    sentence_sums,
)
from picollm.attention.relations import effects, relations
from picollm.model.foreign import Examined
from picollm.stats import (
    SIGNIFICANT,
    bootstrap_counts,
    interval,
    interval_columns,
    number_or_none,
    percentile_99,
)

FORMAT = 3
WINDOWS = (2, 4, 8)  # of the local offsets, for the sensitivity
BY_CATEGORY = ("kappa_self", "kappa_prev", "kappa_local", "broad", "content")  # told for each category


@dataclass(frozen=True)
class HeadStatistics:
    """What is known of each head before it is written down; shapes end in the number of heads."""

    values: Mapping[str, NDArray]
    replicates: Mapping[str, NDArray]
    thresholds: Thresholds
    labels_H: NDArray
    labels_RH: NDArray
    labels_CH: NDArray
    by_category: Sequence[Mapping[str, NDArray]]  # of BY_CATEGORY: value, low and high, [3, H]


def classify_heads(
    categories: Sequence[CategoryMaps], model: Examined | None, cfg: Mapping, device: torch.device
) -> dict:
    """The content of heads.json, from the maps of `model` and the config's `heads` section.

    Without the model there are no untrained ones to compare with, and nothing is said of the separator.
    """
    number, keys = numbering(categories), list(every_key_set(categories))
    sums = sentence_sums(every_map(categories), number, window=cfg["window"], keys=keys)
    null = peaked = bare = None
    null_effects: list[dict[str, NDArray]] = []
    if model:
        ids = [sequence for category in categories for sequence in category.ids]
        untrained = {"models": cfg["null_models"], "seed": cfg["seed"]}
        shared = {"keys": keys, "window": cfg["window"], "device": device}
        null = values_of(untrained_models(model, **untrained), ids, number, **shared)
        broad_H = first_replicate(macro_mean(sums))["broad"]
        which, golds = marked_sentences(categories)
        some, rows = [ids[k] for k in which], []
        for other in peaked_models(model, broad_H, ids, device=device, **untrained):  # one in memory at a time
            rows.append(values_of([other], ids, number, **shared))
            if some:
                null_effects.append(effects(list(attention_maps(other, some, device)), golds))
        peaked = {name: np.concatenate([row[name] for row in rows]) for name in NAMES}
        bare = without_separator(model, ids, number, **shared)
    return describe_heads(
        categories,
        sums,
        null=null,
        peaked=peaked,
        bare=bare,
        null_effects=null_effects,
        configured=Thresholds(cfg["kappa"], cfg["content"], cfg["broad"], cfg["sink"]),
        window=cfg["window"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )


def describe_heads(
    categories: Sequence[CategoryMaps],
    sums: Sums,
    *,
    null: Mapping[str, NDArray] | None,
    peaked: Mapping[str, NDArray] | None,
    bare: Mapping[str, NDArray] | None,
    null_effects: Sequence[Mapping[str, NDArray]],
    configured: Thresholds,
    window: int,
    bootstraps: int,
    seed: int,
) -> dict:
    """The content of heads.json.

    `sums` are the categories' own. `null` and `peaked` are what `values_of` returns for the same sentences and window,
    of untrained models as they are and as peaked as this one, `bare` what `without_separator` does; maps of one's own
    may come without them, and the thresholds then stand on the shuffled rows and their configured sizes.
    `null_effects` are those of picollm.attention.relations, one for each of the peaked models.
    Every bootstrap keeps the thresholds and the positional kernels: intervals are over the choice of sentences alone.
    """
    number = numbering(categories)
    permuted = first_replicate(macro_mean(sentence_sums(shuffled(every_map(categories), seed), number, window=window)))
    permuted_kappa = percentile_99(strongest_kappa(permuted))
    of_no_model = {name: np.empty((0, len(permuted["broad"]))) for name in NAMES}
    null, peaked = null or of_no_model, peaked or of_no_model
    band = percentiles_99(null)
    thresholds = effective_thresholds(configured, band, peaked, permuted_kappa)
    values = first_replicate(macro_mean(sums))
    labels_CH = np.stack([assign(by_name(ratio[0]), thresholds) for ratio in category_values(sums)])
    counts_RS = bootstrap_counts(sums.category, replicates=bootstraps, seed=seed)
    replicates = macro_mean(sums, counts_RS)
    labels = assign(values, thresholds), assign(replicates, thresholds), labels_CH
    found = HeadStatistics(values, replicates, thresholds, *labels, by_category(sums, counts_RS))
    n_layers, n_heads = categories[0].maps[0].shape[:2]
    lengths = [len(ids) for category in categories for ids in category.ids]
    raw = assign_raw(values)
    return {
        "format": FORMAT,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "sample": _sample(categories)
        | {
            "bootstraps": bootstraps,
            "null_models": len(null["broad"]),
            "window": window,
            "seed": seed,
        },
        "definitions": DEFINITIONS,
        "rule": list(RULE),
        "raw_rule": RAW_RULE,
        "thresholds": threshold_origins(configured, thresholds, band, peaked, permuted_kappa),
        "null": _null(null, thresholds),
        "peaked_null": _null(peaked, thresholds),
        "labels": _label_shares(counts(found.labels_H), counts(found.labels_RH)),
        "raw_labels": _by_label(counts(raw)),
        "raw_agreement": number_or_none((found.labels_H == raw).mean()),
        "sensitivity": {
            "thresholds": by_threshold(values, thresholds),
            "window": _by_window(categories, values, thresholds),
        },
        "separator": _separator(found, bare),
        "relations": _relations(categories, n_layers * n_heads, n_heads, null_effects, seed),
        "category_effects": _effects(category_effects(sums, lengths, seed=seed), categories, n_heads),
        "heads": _heads(n_heads, categories, found, raw),
    }


def by_category(sums: Sums, counts_RS: NDArray) -> list[dict[str, NDArray]]:
    """Of each category and statistic of BY_CATEGORY the value and its interval, [3, H]."""
    found = []
    for own, drawn in zip(category_values(sums), category_values(sums, counts_RS), strict=True):
        ratio, replicates = by_name(own[0]), by_name(drawn)
        found.append({name: np.stack([ratio[name], *interval(replicates[name])]) for name in BY_CATEGORY})
    return found


def marked_sentences(categories: Sequence[CategoryMaps]) -> tuple[list[int], list[dict]]:
    """The numbers of the sentences with a gold mark, counted through all categories, and their marks."""
    golds = [gold for category in categories for gold in category.gold]
    which = [number for number, gold in enumerate(golds) if gold]
    return which, [golds[number] for number in which]


def _relations(
    categories: Sequence[CategoryMaps],
    H: int,
    n_heads: int,
    null_effects: Sequence[Mapping[str, NDArray]],
    seed: int,
) -> dict:
    which, golds = marked_sentences(categories)
    maps = [found for number, found in enumerate(every_map(categories)) if number in set(which)]
    names = [name_of(h, n_heads) for h in range(H)]
    return relations(maps, golds, names, null_effects, seed=seed)


def _null(null: Mapping[str, NDArray], thresholds: Thresholds) -> dict:
    return {
        "heads": null["broad"].size,
        "mean_broad": number_or_none(null["broad"].mean()) if null["broad"].size else None,
        "percentile_99": {name: number_or_none(value) for name, value in percentiles_99(null).items()},
        "values": {
            name: [number_or_none(value) for value in values.ravel()]
            for name, values in (("kappa_max", strongest_kappa(null)), ("content", null["content"]))
        },
        "labels": _by_label(counts(assign(null, thresholds)).sum(0)),
        "raw_labels": _by_label(counts(assign_raw(null)).sum(0)),
    }


def _by_window(categories: Sequence[CategoryMaps], values: Mapping[str, NDArray], thresholds: Thresholds) -> list[dict]:
    found = []
    for window in WINDOWS:
        local = local_kappa(every_map(categories), numbering(categories), window=window)
        labels = assign({**values, "kappa_local": local}, thresholds)
        found.append({"window": window, "labels": counts(labels).tolist()})
    return found


def _separator(found: HeadStatistics, bare: Mapping[str, NDArray] | None) -> dict | None:
    """What becomes of the labels where the sentence's first token stands in the separator's place."""
    if bare is None:
        return None
    labels = assign(bare, found.thresholds)
    means = ("non_sink", "broad", "positional", "content", "kappa_sink")
    return {
        "labels": _by_label(counts(labels)),
        "same_label": number_or_none((labels == found.labels_H).mean()),
        "means": {
            name: {"with": number_or_none(found.values[name].mean()), "without": number_or_none(bare[name].mean())}
            for name in means
        },
    }


def _effects(found: Mapping[str, NDArray], categories: Sequence[CategoryMaps], n_heads: int) -> dict:
    significant = [
        {
            "category": categories[c].category,
            "head": name_of(h, n_heads),
            "difference": number_or_none(found["difference"][c, h]),
            "q": number_or_none(found["q"][c, h]),
        }
        for c, h in np.argwhere(found["q"] < SIGNIFICANT)
    ]
    significant.sort(key=lambda row: -abs(row["difference"]))
    return {"tested": int(np.isfinite(found["q"]).sum()), "significant": significant}


def _sample(categories: Sequence[CategoryMaps]) -> dict:
    found = {}
    for category in categories:
        lengths = [len(ids) - 1 for ids in category.ids]  # without the separator
        found[category.category] = {
            "title": category.title,
            "sentences": len(lengths),
            "tokens": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
        }
    return {
        "sentences": sum(entry["sentences"] for entry in found.values()),
        "tokens": sum(entry["tokens"] for entry in found.values()),
        "categories": found,
    }


def _heads(n_heads: int, categories: Sequence[CategoryMaps], found: HeadStatistics, raw: NDArray) -> list[dict]:
    values, labels = found.values, found.labels_H
    bounds = {name: interval(found.replicates[name]) for name in NAMES}
    stable = stability(labels, found.labels_RH)
    tag = tags(values, labels, found.thresholds)
    looked_at = key_tokens(categories, tag)
    margin = margins(values, found.replicates, labels, found.thresholds)
    return [
        {
            "name": name_of(h, n_heads),
            "layer": h // n_heads,
            "head": h % n_heads,
            "label": LABELS[labels[h]],
            "tag": tag[h],
            **looked_at[h],
            "stability": number_or_none(stable[h]),
            "margin": number_or_none(margin[h]),
            "unstable": bool(stable[h] < STABLE),
            "sink_flag": bool(values["kappa_sink"][h] >= SINK_FLAG),
            "raw_label": LABELS[raw[h]],
            "category_labels": {
                c.category: LABELS[label] for c, label in zip(categories, found.labels_CH[:, h], strict=True)
            },
            "by_category": {
                c.category: {name: [number_or_none(x) for x in rows[name][:, h]] for name in BY_CATEGORY}
                for c, rows in zip(categories, found.by_category, strict=True)
            },
            "categories_agreeing": int((found.labels_CH[:, h] == labels[h]).sum()),
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


def heads_csv(report: dict) -> str:
    """heads.csv: one row a head."""
    plain = [key for key, value in report["heads"][0].items() if not isinstance(value, dict | list)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(plain + list(interval_columns(report["heads"][0]["statistics"])))
    for head in report["heads"]:
        writer.writerow([head[key] for key in plain] + list(interval_columns(head["statistics"]).values()))
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
