"""Controls of the labels: shuffled rows, untrained models, no separator, other thresholds, permuted categories.

Shape suffixes: S sentence, H head, R permutation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.extraction import attention_maps
from picollm.attention.labels import Thresholds, assign, counts
from picollm.attention.measures import NAMES, Sums, first_replicate, macro_mean, sentence_sums
from picollm.model.transformer import ModelConfig, Transformer
from picollm.progress import progress
from picollm.stats import false_discovery_rate

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
LENGTH_BANDS = 4
PERMUTATIONS = 20_000  # the least p, times the 560 pairs of a head and a category, must stay below .05
AT_ONCE = 500


def shuffled(maps: Iterable[NDArray], seed: int) -> Iterator[NDArray]:
    """The maps with the weights of each row dealt anew to its keys 1 ... i: sink and entropy stay, places don't."""
    generator = np.random.default_rng(seed)
    for weights in maps:
        place = generator.random(weights.shape, dtype=np.float32)
        place[..., 0] = -1
        place[..., np.triu(np.ones(weights.shape[-2:], dtype=bool), 1)] = 2
        yield np.take_along_axis(weights, place.argsort(axis=-1), axis=-1)


def by_threshold(values: Mapping[str, NDArray], thresholds: Thresholds) -> list[dict]:
    """The heads by label where one threshold is a multiple of the one in force and the others stay."""
    found = []
    for name in ("kappa", "content", "broad", "sink"):
        for value in dict.fromkeys(min(1.0, getattr(thresholds, name) * factor) for factor in FACTORS):
            labels = assign(values, replace(thresholds, **{name: value}))
            found.append({"threshold": name, "value": round(value, 6), "labels": counts(labels).tolist()})
    return found


def category_effects(sums: Sums, lengths: Sequence[int], *, seed: int) -> dict[str, NDArray]:
    """Whether a head is broader or narrower on one category's sentences: `difference` and `q`, both [C, H].

    The broad share of the category less what it is on average where categories are permuted among sentences of like
    length (quartiles); p from these permutations, then Benjamini-Hochberg over all heads and categories (1995). NaN
    where a head has no non-sink attention.
    """
    k = NAMES.index("broad")
    numerator_SH, denominator_SH = sums.numerator[:, k], sums.denominator[:, k]
    member_CS = (np.unique(sums.category)[:, None] == sums.category).astype(float)
    band_S = np.searchsorted(np.quantile(lengths, np.linspace(0, 1, LENGTH_BANDS + 1)[1:-1]), lengths)
    generator = np.random.default_rng(seed)

    def shares(member_RCS: NDArray) -> NDArray:
        """Of the categories' sentences, [R, C, H]."""
        numerator, denominator = member_RCS @ numerator_SH, member_RCS @ denominator_SH
        return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)

    drawn = []
    for _ in range(PERMUTATIONS // AT_ONCE):
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


def untrained_models(config: ModelConfig, *, models: int, seed: int) -> Iterator[Transformer]:
    """Freshly initialised models; the global random state stays as it was."""
    for state in np.random.SeedSequence(seed).generate_state(models):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state))
            model = Transformer(config)
        yield model.eval()


def untrained_values(
    config: ModelConfig,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    models: int,
    seed: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic of every head of the untrained models, [models, H]."""
    rows = []
    untrained = untrained_models(config, models=models, seed=seed)
    for model in progress(untrained, total=models, unit=" untrained models"):
        rows.append(macro_mean(sentence_sums(attention_maps(model, ids, device), category, window=window, keys=keys)))
    return {name: np.concatenate([row[name] for row in rows]) for name in NAMES}


def without_separator(
    model: Transformer,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic, [H], with the sentence's first token in the separator's place: position 0, the sink."""
    inner = None if keys is None else [without_first(sets_NQK) for sets_NQK in keys]
    maps = attention_maps(model, [sequence[1:] for sequence in ids], device)
    return first_replicate(macro_mean(sentence_sums(maps, category, window=window, keys=inner)))


def without_first(sets_NQK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = sets_NQK[:, 1:, 1:].copy()
    inner[:, :, 0] = False
    return inner
