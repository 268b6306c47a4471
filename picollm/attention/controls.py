"""Controls for the labels: shuffled rows, untrained models, no separator, other thresholds, permuted categories.

Untrained models attend uniformly because their logits are near 0. A second kind therefore has its queries scaled until
each layer is as far from uniform as the trained model's: these sharpened models show what random projections of random
embeddings give.

Shape suffixes: S sentence, H head of a layer (or layers flattened), Q query, K key, L layer, R permutation, C category,
N set of keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from picollm.attention.extraction import attention_maps
from picollm.attention.labels import (
    Thresholds,
    assign,
    assign_raw,
    by_label,
    counts,
    percentiles_99,
    strongest_kappa,
)
from picollm.attention.maps import CategoryMaps, every_map, name_of, numbering
from picollm.attention.measures import NAMES, Sums, first_replicate, local_kappa, macro_mean, sentence_sums
from picollm.attention.relations import effects, marked_sentences
from picollm.model.foreign import Examined
from picollm.progress import progress
from picollm.stats import SIGNIFICANT, false_discovery_rate, finite, number_or_none, percentile_99

WINDOWS = (2, 4, 8)  # windows of local offsets tried in the sensitivity analysis
M = TypeVar("M", bound=Examined)
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
LENGTH_BANDS = 4
PERMUTATIONS = 40  # per pair of head and category: the smallest possible p times the number of pairs must be below .05
AT_ONCE = 500
FITTED = 32  # sentences used to fit the scale of a layer
SCALES = (1e-4, 1e8)  # bracket for the scale of a layer's logits that makes it as sharp as the trained layer


@dataclass(frozen=True)
class Controls:
    """Statistics of the control models on the same sentences. User-supplied maps may have none; then their own shuffled
    rows are the only comparison."""

    null: Mapping[str, NDArray]  # each statistic of untrained models, [models, H]
    sharpened: Mapping[str, NDArray]  # the same of sharpened untrained models
    effects: Sequence[Mapping[str, NDArray]]  # picollm.attention.relations' effects for each of the sharpened models
    bare: Mapping[str, NDArray] | None  # statistics of the model without the separator, [H]


def no_controls(heads: int) -> Controls:
    none = {name: np.empty((0, heads)) for name in NAMES}
    return Controls(none, none, [], None)


def controls_of(
    model: Examined, categories: Sequence[CategoryMaps], broad_H: NDArray, keys: Sequence[NDArray], cfg: Mapping,
    device: torch.device,
) -> Controls:  # fmt: skip
    """Computes the controls with the config's `heads` section; `broad_H` is the model's own broad share, `keys` are as
    in `sentence_sums`. One model is in memory at a time."""
    ids, number = [sequence for category in categories for sequence in category.ids], numbering(categories)
    count = cfg["null_models"]
    untrained = {"models": count, "seed": cfg["seed"]}
    shared = {"keys": keys, "window": cfg["window"], "device": device}
    marked_numbers, golds = marked_sentences(categories)
    sharpened_effects: list[dict[str, NDArray]] = []

    def compared() -> Iterator[Examined]:
        for other in sharpened_models(model, broad_H, ids, device=device, **untrained):
            yield other  # the consumer computes its statistics before this resumes
            if marked_numbers:
                sharpened_effects.append(
                    effects(list(attention_maps(other, [ids[k] for k in marked_numbers], device)), golds)
                )

    return Controls(
        null=values_of(untrained_models(model, **untrained), ids, number, total=count, **shared),
        sharpened=values_of(compared(), ids, number, desc="sharpened untrained models", total=count, **shared),
        effects=sharpened_effects,
        bare=without_separator(model, ids, number, **shared),
    )


def shuffled(maps: Iterable[NDArray], seed: int) -> Iterator[NDArray]:
    """Yields the maps with each row's weights permuted over its keys 1 ... i: keeps sink and entropy, not positions."""
    generator = np.random.default_rng(seed)
    for weights in maps:
        place = generator.random(weights.shape, dtype=np.float32)
        place[..., 0] = -1
        place[..., np.triu(np.ones(weights.shape[-2:], dtype=bool), 1)] = 2
        yield np.take_along_axis(weights, place.argsort(axis=-1), axis=-1)


def shuffled_kappa(maps: Iterable[NDArray], category: Sequence[int], *, window: int, seed: int) -> float:
    """Returns the 99th percentile over heads of the strongest kappa after shuffling each row's keys."""
    sums = sentence_sums(shuffled(maps, seed), category, window=window)
    return percentile_99(strongest_kappa(first_replicate(macro_mean(sums))))


class OtherThreshold(TypedDict):
    threshold: str
    value: float
    labels: list[int]  # heads, in the order of LABELS


def by_threshold(values: Mapping[str, NDArray], thresholds: Thresholds) -> list[OtherThreshold]:
    """Counts heads by label with one threshold at a time scaled by FACTORS and the others unchanged."""
    rows: list[OtherThreshold] = []
    for name in ("kappa", "content", "broad", "sink"):
        for value in dict.fromkeys(min(1.0, getattr(thresholds, name) * factor) for factor in FACTORS):
            labels = assign(values, replace(thresholds, **cast(Any, {name: value})))
            rows.append({"threshold": name, "value": round(value, 6), "labels": counts(labels).tolist()})
    return rows


class OtherWindow(TypedDict):
    window: int
    labels: list[int]


def by_window(
    categories: Sequence[CategoryMaps], values: Mapping[str, NDArray], thresholds: Thresholds
) -> list[OtherWindow]:
    rows: list[OtherWindow] = []
    for window in WINDOWS:
        local = local_kappa(every_map(categories), numbering(categories), window=window)
        labels = assign({**values, "kappa_local": local}, thresholds)
        rows.append({"window": window, "labels": counts(labels).tolist()})
    return rows


def category_effects(sums: Sums, lengths: Sequence[int], *, seed: int) -> dict[str, NDArray]:
    """Tests if a head is broader or narrower on one category's sentences: `difference` and `q`, both [C, H].

    `difference` is the broad share of the category minus its mean when categories are permuted among sentences of
    similar length (quartiles); p comes from these permutations, then Benjamini-Hochberg over all heads and categories
    (1995). NaN if a head has no non-sink attention.
    """
    k = NAMES.index("broad")
    numerator_SH, denominator_SH = sums.numerator[:, k], sums.denominator[:, k]
    member_CS = (np.unique(sums.category)[:, None] == sums.category).astype(float)
    band_S = np.searchsorted(np.quantile(lengths, np.linspace(0, 1, LENGTH_BANDS + 1)[1:-1]), lengths)
    generator = np.random.default_rng(seed)

    def shares(member_RCS: NDArray) -> NDArray:
        """Broad share in each category's sentences, [R, C, H]."""
        numerator, denominator = member_RCS @ numerator_SH, member_RCS @ denominator_SH
        return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)

    drawn = []
    for _ in range(-(-PERMUTATIONS * numerator_SH.shape[1] * len(member_CS) // AT_ONCE)):
        order_RS = np.tile(np.arange(len(band_S)), (AT_ONCE, 1))
        for band in np.unique(band_S):
            inside = band_S == band
            order_RS[:, inside] = generator.permuted(order_RS[:, inside], axis=1)
        drawn.append(shares(member_CS[:, order_RS].transpose(1, 0, 2)).astype(np.float32))
    drawn_RCH = np.concatenate(drawn)
    expected_CH = drawn_RCH.mean(0, dtype=np.float64)
    difference_CH = shares(member_CS[None])[0] - expected_CH
    as_large_CH = (np.abs(drawn_RCH - expected_CH.astype(np.float32)) >= np.abs(difference_CH) - 1e-6).sum(0)
    p_CH = np.where(np.isfinite(difference_CH), (1 + as_large_CH) / (1 + len(drawn_RCH)), np.nan)
    return {"difference": difference_CH, "q": false_discovery_rate(p_CH)}


class CategoryEffect(TypedDict):
    category: str
    head: str
    difference: float
    q: float


class CategoryEffects(TypedDict):
    tested: int
    significant: list[CategoryEffect]


def effects_report(effects: Mapping[str, NDArray], categories: Sequence[CategoryMaps], n_heads: int) -> CategoryEffects:
    significant: list[CategoryEffect] = [
        {
            "category": categories[c].category,
            "head": name_of(h, n_heads),
            "difference": finite(effects["difference"][c, h]),
            "q": finite(effects["q"][c, h]),
        }
        for c, h in np.argwhere(effects["q"] < SIGNIFICANT)
    ]
    significant.sort(key=lambda row: -abs(row["difference"]))
    return {"tested": int(np.isfinite(effects["q"]).sum()), "significant": significant}


def untrained_models(model: M, *, models: int, seed: int) -> Iterator[M]:
    """Yields freshly initialised models of the same shape; leaves the global random state unchanged."""
    for state in np.random.SeedSequence(seed).generate_state(models):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state))
            fresh = model.untrained()
        yield cast(M, fresh)


@torch.no_grad()
def sharpen(model: Examined, broad_L: Sequence[float], ids: Sequence[Sequence[int]], device: torch.device) -> Examined:
    """Scales the model's queries in place so that each layer's heads together have this broad share on `ids`."""
    ids_ST = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)  # right padding does not affect the ids before
    for s, sequence in enumerate(ids):
        ids_ST[s, : len(sequence)] = torch.tensor(sequence)
    length_S = torch.tensor([len(sequence) for sequence in ids], device=device)
    model = model.to(device=device)
    x, *rest = model.start(ids_ST.to(device))
    for layer, (block, broad) in enumerate(zip(model.layers, broad_L, strict=True)):
        logits_SHQK = block.explicit(x, *rest)[1].double().log()  # up to a constant per row: softmax ignores it

        def excess(log_scale: float, logits: Tensor = logits_SHQK, broad: float = broad) -> float:
            return broad_share(logits * math.exp(log_scale), length_S) - broad

        ends = [math.log(scale) for scale in SCALES]
        signs = [excess(end) > 0 for end in ends]
        scale = math.exp(cast(float, brentq(excess, *ends, xtol=1e-3))) if signs == [True, False] else SCALES[signs[1]]
        model.scale_logits(layer, scale)
        x, _ = block.explicit(x, *rest)
    return model


def broad_share(logits_SHQK: Tensor, length_S: Tensor) -> float:
    """Computes `broad` of picollm.attention.measures pooled over all sentences and heads of one layer.

    The separator and the first queries, whose entropy is fixed, are left out.
    """
    T = logits_SHQK.shape[-1]
    i = torch.arange(T, device=logits_SHQK.device)
    weights = logits_SHQK.masked_fill(i > i[:, None], float("-inf")).softmax(-1)[..., 2:, 1:]
    w_SHQ = weights.sum(-1)
    entropy_SHQ = w_SHQ.xlogy(w_SHQ) - weights.xlogy(weights).sum(-1)
    there_S1Q = (i[2:] < length_S[:, None])[:, None]
    return float((entropy_SHQ * there_S1Q).sum() / (w_SHQ * i[2:].log() * there_S1Q).sum())


def values_of(
    models: Iterable[Examined],
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    device: torch.device,
    desc: str = "untrained models",
    total: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Computes each statistic of every head of several models, [models, H]; `desc` and `total` are for the bar."""
    rows = [
        macro_mean(sentence_sums(attention_maps(model, ids, device), category, window=window, keys=keys))
        for model in progress(models, desc=desc, unit=" models", total=total)
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in NAMES}


def sharpened_models(
    like: Examined, broad_H: NDArray, ids: Sequence[Sequence[int]], *, models: int, seed: int, device: torch.device
) -> Iterator[Examined]:
    """Yields untrained models sharpened, layer by layer, like a model whose heads have these broad shares on `ids`."""
    broad_LH = broad_H.reshape(like.config.n_layers, like.config.n_heads)
    broad_L = [float(np.nanmean(row)) if np.isfinite(row).any() else 1.0 for row in broad_LH]
    sample = ids[:: max(1, len(ids) // FITTED)]
    for model in untrained_models(like, models=models, seed=seed):
        yield sharpen(model, broad_L, sample, device)


def without_separator(
    model: Examined,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Computes each statistic, [H], with the separator removed, so that the first token is at position 0, the sink."""
    inner = None if keys is None else [without_first(sets_NQK) for sets_NQK in keys]
    maps = attention_maps(model, [sequence[1:] for sequence in ids], device)
    return first_replicate(macro_mean(sentence_sums(maps, category, window=window, keys=inner)))


def without_first(sets_NQK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = sets_NQK[:, 1:, 1:].copy()
    inner[:, :, 0] = False
    return inner


class Null(TypedDict):
    """Untrained models: the 99th percentile of each statistic, and the number of heads with each label."""

    heads: int
    mean_broad: float | None
    percentile_99: dict[str, float | None]
    values: dict[str, list[float | None]]
    labels: dict[str, int]
    raw_labels: dict[str, int]


def null_report(null: Mapping[str, NDArray], thresholds: Thresholds) -> Null:
    return {
        "heads": null["broad"].size,
        "mean_broad": number_or_none(null["broad"].mean()) if null["broad"].size else None,
        "percentile_99": {name: number_or_none(value) for name, value in percentiles_99(null).items()},
        "values": {
            name: [number_or_none(value) for value in values.ravel()]
            for name, values in (("kappa_max", strongest_kappa(null)), ("content", null["content"]))
        },
        "labels": by_label(counts(assign(null, thresholds)).sum(0)),
        "raw_labels": by_label(counts(assign_raw(null)).sum(0)),
    }


class Separator(TypedDict):
    labels: dict[str, int]
    same_label: float
    means: dict[str, dict[str, float | None]]


def separator_report(
    values: Mapping[str, NDArray], labels_H: NDArray, bare: Mapping[str, NDArray] | None, thresholds: Thresholds
) -> Separator | None:
    """Compares the labels with those obtained when the sentence's first token takes the separator's place."""
    if bare is None:
        return None
    labels = assign(bare, thresholds)
    means = ("non_sink", "broad", "positional", "content", "kappa_sink")
    return {
        "labels": by_label(counts(labels)),
        "same_label": finite((labels == labels_H).mean()),
        "means": {
            name: {"with": number_or_none(values[name].mean()), "without": number_or_none(bare[name].mean())}
            for name in means
        },
    }
