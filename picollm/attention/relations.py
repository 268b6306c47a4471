"""Tests if heads connect words that grammar connects, using marked pairs, beyond position and word preference.

The later word of a pair attends to the earlier one. A head's attention is compared with two rivals: what the offset
alone explains (the head's positional kernel: a previous-token head connects "importance" and "of" for no linguistic
reason), and what the same word gets from the other positions after it (a head that prefers nouns attends from all).
Rows are compared on the keys they share: a head that prefers a word gives it less in a longer row.

    s(i, m) = sum over the earlier word's j of A[i, j] / sum_{1<=k<=m} A[i, k], minus the same for the kernel
    effect  = mean over later i and other rows i' of s(i, m) - s(i', m), m = min(i, i')

in the notation of picollm.attention.measures.

Shape suffixes: S sentence, H head (layers flattened), Q query, K key, I analysed row, D offset, R replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from picollm.attention.maps import CategoryMaps, flat
from picollm.attention.measures import by_offset, fit_kernel, padded
from picollm.stats import finite, number_or_none, resampled

KINDS = {
    "article and noun": ("article", "noun"),
    "subject and verb": ("subject", "verb"),
    "negation and scope": ("negation", "scope"),
    "of and its noun": ("preposition", "governor"),
    "pronoun and antecedent": ("pronoun", "antecedent"),
    "question word and focus": ("question", "focus"),
}
LEAST_MASS = 1e-3  # minimum mass on the keys that two rows share
LEAST_SENTENCES = 8  # sentences with a mark; fewer can't be tested
SIGN_FLIPS = 9999


def marked_sentences(categories: Sequence[CategoryMaps]) -> tuple[list[int], list[Mapping[str, Sequence[int]]]]:
    """Returns the sentences with a gold mark, numbered across all categories, and their marks."""
    golds = [gold for category in categories for gold in category.gold]
    marked_numbers = [number for number, gold in enumerate(golds) if gold]
    return marked_numbers, [golds[number] for number in marked_numbers]


def marked(golds: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, dict[int, tuple[range, range]]]:
    """Maps each kind to its sentences: number to the positions of the later and the earlier words."""
    spans: dict[str, dict[int, tuple[range, range]]] = {kind: {} for kind in KINDS}
    for number, gold in enumerate(golds):
        for kind, roles in KINDS.items():
            if not set(roles) <= set(gold):
                continue
            earlier, later = sorted((range(*gold[role]) for role in roles), key=lambda span: span.start)
            if earlier.stop <= later.start:
                spans[kind][number] = (later, earlier)
    return spans


def effects(maps: Sequence[NDArray], golds: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, NDArray[np.float64]]:
    """Computes {kind: effect of each head in each of its sentences, [H, S]}; kernels are fitted on all the maps."""
    if not maps:
        return {kind: np.empty((0, 0)) for kind in KINDS}
    kernel_HD = kernel(maps)
    rows: dict[str, list[NDArray]] = {kind: [] for kind in KINDS}
    for kind, sentences in marked(golds).items():
        for number, (later, earlier) in sentences.items():
            rows[kind].append(effect(flat(maps[number]), kernel_HD, later, earlier))
    return {
        kind: np.stack(columns, axis=1) if columns else np.empty((len(kernel_HD), 0)) for kind, columns in rows.items()
    }


def kernel(maps: Iterable[NDArray]) -> NDArray[np.float64]:
    """Fits the positional kernel of each head over all maps, [H, D]."""
    masses, rows = [], []
    for weights in maps:
        _, O_HID = by_offset(flat(weights))
        masses.append(np.pad(O_HID.sum(1), ((0, 0), (0, 1))))
        rows.append(np.pad(O_HID.sum(2), ((0, 0), (2, 0))))
    return fit_kernel(padded(masses).sum(0), padded(rows).sum(0))


def beyond_kernel(A_HQK: NDArray, kernel_HD: NDArray) -> NDArray[np.float64]:
    """Attention beyond the kernel for the rows 2 ... n-1 and the keys 1 ... n-1, [H, n-2, n-1]."""
    n = A_HQK.shape[-1]
    offset = np.arange(2, n)[:, None] - np.arange(1, n)
    q_HIK = np.where(offset >= 0, kernel_HD[:, np.maximum(offset, 0)], 0.0)
    A_HIK = A_HQK[:, 2:, 1:]
    return A_HIK - A_HIK.sum(-1, keepdims=True) * q_HIK / q_HIK.sum(-1, keepdims=True)


def effect(A_HQK: NDArray, kernel_HD: NDArray, later: range, earlier: range) -> NDArray[np.float64]:
    """Effect for one pair of spans, [H]: 0 for a head that only prefers positions or words."""
    n = A_HQK.shape[-1]
    others = [row for row in range(max(2, earlier.stop), n) if row not in later]
    differences = [
        share(A_HQK, kernel_HD, row, earlier, min(row, other))
        - share(A_HQK, kernel_HD, other, earlier, min(row, other))
        for row in later
        for other in others
    ]
    return np.mean(differences, axis=0) if differences else np.zeros(len(A_HQK))


def share(A_HQK: NDArray, kernel_HD: NDArray, row: int, earlier: range, last: int) -> NDArray[np.float64]:
    """The earlier word's share of a row's mass on the keys 1 to `last`, minus its share of the kernel's, [H]; 0 if the
    head puts next to nothing on these keys."""
    keys = np.arange(1, last + 1)
    inside = (keys >= earlier.start) & (keys < earlier.stop)
    given_HK, kernel_HK = A_HQK[:, row, keys], kernel_HD[:, row - keys]
    total_H, expected_H = given_HK.sum(1), kernel_HK.sum(1)
    own_H = np.divide(given_HK[:, inside].sum(1), total_H, out=np.zeros_like(total_H), where=total_H > LEAST_MASS)
    by_place_H = np.divide(kernel_HK[:, inside].sum(1), expected_H, out=np.zeros_like(total_H), where=expected_H > 0)
    return np.where(total_H > LEAST_MASS, own_H - by_place_H, 0.0)


class Relation(TypedDict):
    """A kind of pair in heads.json; with too few sentences, only their number is given."""

    sentences: int
    head: str | None
    p: float | None
    effect: NotRequired[float]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    strength: NotRequired[float]
    null_strength: NotRequired[float | None]
    null_p: NotRequired[float | None]


def relations(
    maps: Sequence[NDArray],
    golds: Sequence[Mapping[str, Sequence[int]]],
    names: Sequence[str],
    null: Sequence[Mapping[str, NDArray]],
    *,
    seed: int,
) -> dict[str, Relation]:
    """Returns the best head for each kind and its p by sign flips, corrected over all heads (max-T), not over kinds.

    `null` holds the `effects` of untrained models on the same sentences; their best head's strength is also reported.
    """
    return {kind: describe(effect_HS, names, [other[kind] for other in null], seed=seed)
            for kind, effect_HS in effects(maps, golds).items()}  # fmt: skip


def describe(effect_HS: NDArray, names: Sequence[str], null: Sequence[NDArray], *, seed: int) -> Relation:
    sentences = effect_HS.shape[1]
    if sentences < LEAST_SENTENCES:
        return {"sentences": sentences, "head": None, "p": None}
    best, strength, p = best_head(effect_HS, seed=seed)
    (low,), (high,) = resampled(effect_HS[best : best + 1], seed)
    others = [best_head(other, seed=seed)[1:] for other in null]
    return {
        "sentences": sentences,
        "head": names[best],
        "effect": finite(effect_HS[best].mean()),
        "low": number_or_none(low),
        "high": number_or_none(high),
        "strength": finite(strength),
        "p": finite(p),
        "null_strength": number_or_none(max(other for other, _ in others)) if others else None,
        "null_p": number_or_none(min(p for _, p in others)) if others else None,
    }


def best_head(effect_HS: NDArray, *, seed: int) -> tuple[int, float, float]:
    """Returns the head with the largest mean in units of its own spread over sentences (the root mean square: 1 is the
    same in all), that strength, and its p under sign flips of each sentence's effects, of all heads together (max-T,
    Westfall & Young 1993)."""
    spread_H = np.sqrt((effect_HS**2).mean(1))
    unit_HS = np.divide(effect_HS, spread_H[:, None], out=np.zeros_like(effect_HS), where=spread_H[:, None] > 0)
    observed = unit_HS.mean(1)
    signs_RS = np.random.default_rng(seed).choice((-1.0, 1.0), (SIGN_FLIPS, effect_HS.shape[1]))
    drawn_R = (signs_RS @ unit_HS.T / effect_HS.shape[1]).max(1)
    best = int(observed.argmax())
    return best, float(observed[best]), float((1 + (drawn_R >= observed[best] - 1e-12).sum()) / (1 + SIGN_FLIPS))
