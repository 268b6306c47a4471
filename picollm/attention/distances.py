"""Distances between heads: the root of the mean Jensen-Shannon divergence of their rows, and its reliability.

The rows i >= 2 of non-sink attention are compared, in the notation of picollm.attention.measures.

Shape suffixes: S sentence, H and G head (layers flattened), I analysed row, E entry (row, key) of the lower triangle,
R replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform
from scipy.special import xlogy

from picollm.attention.maps import flat
from picollm.stats import bootstrap_counts

MOST = 100  # groups per category


@dataclass(frozen=True)
class Divergences:
    """Weighted sum of row JSDs in bits and sum of weights for each sentence, [S, H, H]; categories [S], from 0.

    In a category with more than MOST sentences, S counts groups of neighbouring sentences, which bounds memory.
    """

    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]
    category: NDArray[np.int64]


def sentence_divergences(maps: Iterable[NDArray], category: Sequence[int], *, sink: bool = False) -> Divergences:
    """Weights a row by min(w of one head, w of the other): a row that either head parks on the sink carries little.

    With `sink`, complete rows are compared, including the sink's column, and all have equal weight.
    """
    group_S, category_G = groups(category)
    sums: NDArray[np.float64] | None = None
    for group, weights in zip(group_S, maps, strict=True):
        part = np.stack(_divergence(flat(weights), sink))
        if sums is None:
            sums = np.zeros((len(category_G), *part.shape))
        sums[group] += part
    assert sums is not None, "no maps were given"
    return Divergences(sums[:, 0], sums[:, 1], category_G)


def groups(category: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns each sentence's group and each group's category: one sentence per group, or MOST groups per category."""
    number_S = np.asarray(category, dtype=np.int64)
    group_S, sizes = np.empty_like(number_S), {}
    for c in np.unique(number_S):
        members = np.flatnonzero(number_S == c)
        size = min(len(members), MOST)
        group_S[members] = sum(sizes.values()) + np.arange(len(members)) * size // len(members)
        sizes[c] = size
    return group_S, np.repeat(np.array(list(sizes), np.int64), list(sizes.values()))


def _divergence(A_HQK: NDArray, sink: bool) -> tuple[NDArray, NDArray]:
    n_heads, length = A_HQK.shape[:2]
    numerator, denominator = np.zeros((2, n_heads, n_heads))
    if length < 3:
        return numerator, denominator
    row_E, key_E = np.tril_indices(length)
    analysed = (row_E >= 2) & (key_E >= (0 if sink else 1))
    row_E, key_E = row_E[analysed], key_E[analysed]
    starts = np.flatnonzero(np.diff(row_E, prepend=1))
    A_HE = A_HQK[:, row_E, key_E]
    w_HI = np.add.reduceat(A_HE, starts, axis=1)
    w_HE = w_HI[:, row_E - 2]
    p_HE = np.divide(A_HE, w_HE, out=np.zeros_like(A_HE), where=w_HE > 0)
    entropy_HI = row_entropy(p_HE, starts)
    for h in range(n_heads):  # one head against the later ones, so the largest array is [H, E], a few hundred kB
        weight_GI = np.minimum(w_HI[h], w_HI[h + 1 :])
        mixture_GI = row_entropy((p_HE[h] + p_HE[h + 1 :]) / 2, starts)
        jsd_GI = np.clip(mixture_GI - (entropy_HI[h] + entropy_HI[h + 1 :]) / 2, 0, 1)
        numerator[h, h + 1 :], denominator[h, h + 1 :] = (weight_GI * jsd_GI).sum(1), weight_GI.sum(1)
    return numerator + numerator.T, denominator + denominator.T


def row_entropy(p_HE: NDArray, starts: NDArray) -> NDArray:
    """Computes the entropy in bits, [H, I], of flattened rows that start at `starts`; 0 log 0 = 0."""
    return -np.add.reduceat(xlogy(p_HE, p_HE), starts, axis=1) / np.log(2)


def distances(divergences: Divergences, counts_RS: NDArray | None = None) -> Iterator[NDArray]:
    """Yields sqrt of the macro-mean over categories of the mean row JSD, [H, H] in [0, 1], per replicate (default 1).

    Two heads without non-sink attention in any common row can't be compared and get distance 1. sqrt(JSD) is a metric
    (Endres & Schindelin 2003); with weights that depend on the pair, the mean is only approximately one.
    """
    if counts_RS is None:
        counts_RS = np.ones((1, len(divergences.category)))
    members = [divergences.category == c for c in np.unique(divergences.category)]
    for counts_S in counts_RS:
        total = present = 0.0
        for member in members:
            numerator, denominator = (
                np.tensordot(counts_S[member], part[member], axes=1)
                for part in (divergences.numerator, divergences.denominator)
            )
            total = total + np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
            present = present + (denominator > 0)
        mean = np.divide(total, present, out=np.ones_like(total), where=present > 0)
        np.fill_diagonal(mean, 0.0)
        yield np.sqrt(mean)


def resampled_distances(divergences: Divergences, *, replicates: int, seed: int) -> NDArray[np.float64]:
    """Computes the distances for bootstraps of the sentences within categories, [R, H, H]."""
    counts_RS = bootstrap_counts(divergences.category, replicates=replicates, seed=seed)
    return np.stack(list(distances(divergences, counts_RS)))


def split_half(divergences: Divergences) -> tuple[float, float]:
    """Mean absolute difference and correlation between the distances from every second sentence and from the others.

    The first is the noise floor: distances that differ by less can't be distinguished.
    """
    half = np.arange(len(divergences.category)) % 2
    first, second = (squareform(d, checks=False) for d in distances(divergences, np.stack([half == 0, half == 1])))
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    correlation = np.corrcoef(first, second)[0, 1] if varies else float("nan")
    return float(np.abs(first - second).mean()), float(correlation)


def principal_coordinates(distance_HH: NDArray, dimensions: int = 2) -> tuple[NDArray, float]:
    """Classical scaling (Torgerson 1952): [H, dimensions], and its share of the sum of positive eigenvalues."""
    n = len(distance_HH)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centre @ distance_HH**2 @ centre / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(n)] < 0, -1, 1)  # fix the sign
    positive = np.maximum(values, 0)
    shown = vectors[:, :dimensions] * np.sqrt(positive[:dimensions])
    return shown, float(positive[:dimensions].sum() / positive.sum()) if positive.sum() > 0 else 0.0
