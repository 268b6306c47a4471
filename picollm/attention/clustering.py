"""How alike heads attend: Jensen-Shannon distances, their dendrogram, and how far the clusters can be trusted.

Distances compare the non-sink attention of rows i >= 2, in the notation of picollm.attention.statistics.

Shape suffixes: S sentence, H and G head (layers flattened), I analysed row, E entry (row, key) of the lower triangle,
R replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, cut_tree, leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.special import xlogy

from picollm.attention.statistics import bootstrap_counts
from picollm.errors import PicollmError

METHODS = ("average", "single", "complete", "ward")  # the first is the one in use


@dataclass(frozen=True)
class Divergences:
    """Per sentence the weighted sum of row JSDs in bits and the sum of weights, [S, H, H]; categories [S], from 0."""

    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]
    category: NDArray[np.int64]


def sentence_divergences(maps: Iterable[NDArray], category: Sequence[int], *, sink: bool = False) -> Divergences:
    """A row weighs min(w of one head, w of the other): rows that one of them parks on the sink say little.

    With `sink` whole rows are compared, the sink's column included, and all weigh the same.
    """
    parts = [_divergence(weights.reshape(-1, *weights.shape[-2:]).astype(np.float64), sink) for weights in maps]
    numerator, denominator = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    return Divergences(numerator, denominator, np.asarray(category, dtype=np.int64))


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
    for h in range(n_heads):  # one head against the later ones: the largest array is [H, E], a few hundred kB
        weight_GI = np.minimum(w_HI[h], w_HI[h + 1 :])
        mixture_GI = row_entropy((p_HE[h] + p_HE[h + 1 :]) / 2, starts)
        jsd_GI = np.clip(mixture_GI - (entropy_HI[h] + entropy_HI[h + 1 :]) / 2, 0, 1)
        numerator[h, h + 1 :], denominator[h, h + 1 :] = (weight_GI * jsd_GI).sum(1), weight_GI.sum(1)
    return numerator + numerator.T, denominator + denominator.T


def row_entropy(p_HE: NDArray, starts: NDArray) -> NDArray:
    """Entropy in bits of each row of flattened rows that start at `starts`, [H, I]; 0 log 0 = 0."""
    return -np.add.reduceat(xlogy(p_HE, p_HE), starts, axis=1) / np.log(2)


def distances(divergences: Divergences, counts_RS: NDArray | None = None) -> Iterator[NDArray]:
    """sqrt of the macro-mean over categories of the mean row JSD, [H, H] in [0, 1], for each replicate (default: one).

    Two heads without any non-sink attention in common rows cannot be compared and are at distance 1. sqrt(JSD) is a
    metric (Endres & Schindelin 2003); with weights that depend on the pair the mean is one only nearly.
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


def tree(distance_HH: NDArray, method: str = METHODS[0]) -> NDArray:
    """SciPy's linkage matrix [H - 1, 4], leaves in the order that puts the most similar heads side by side."""
    return linkage(squareform(distance_HH, checks=False), method=method, optimal_ordering=True)


def principal_coordinates(distance_HH: NDArray, dimensions: int = 2) -> tuple[NDArray, float]:
    """Classical scaling (Torgerson 1952): [H, dimensions], and the share of the positive eigenvalues that it shows."""
    n = len(distance_HH)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centre @ distance_HH**2 @ centre / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(n)] < 0, -1, 1)  # a sign is arbitrary
    positive = np.maximum(values, 0)
    shown = vectors[:, :dimensions] * np.sqrt(positive[:dimensions])
    return shown, float(positive[:dimensions].sum() / positive.sum()) if positive.sum() > 0 else 0.0


def cophenetic_correlation(distance_HH: NDArray, linkage_matrix: NDArray) -> float:
    """Pearson correlation of the tree's merge heights with the distances; NaN where either is constant."""
    condensed = squareform(distance_HH, checks=False)
    heights = cophenet(linkage_matrix)
    if np.ptp(condensed) == 0 or np.ptp(heights) == 0:
        return float("nan")
    return float(np.corrcoef(condensed, heights)[0, 1])


def cut(linkage_matrix: NDArray, k: int) -> NDArray[np.int64]:
    """The cluster of each head, 1 to k from left to right in the dendrogram."""
    found = cut_tree(linkage_matrix, n_clusters=k)[:, 0]
    left_to_right = list(dict.fromkeys(found[leaves_list(linkage_matrix)]))
    return np.array([left_to_right.index(c) + 1 for c in found])


def silhouette(distance_HH: NDArray, clusters_H: NDArray) -> float:
    """Mean silhouette (Rousseeuw 1987) from distances; 0 for a head alone in its cluster."""
    names, sizes = np.unique(clusters_H, return_counts=True)
    sums = np.stack([distance_HH[:, clusters_H == c].sum(1) for c in names], axis=1)
    own = clusters_H[:, None] == names
    size = (own * sizes).sum(1)
    within = (own * sums).sum(1) / np.maximum(size - 1, 1)
    nearest = np.where(own, np.inf, sums / sizes).min(1)
    larger = np.maximum(within, nearest)
    score = np.divide(nearest - within, larger, out=np.zeros_like(larger), where=larger > 0)
    return float(np.where(size > 1, score, 0.0).mean())


def resampled_clusters(divergences: Divergences, k: int, *, replicates: int, seed: int) -> NDArray[np.int64]:
    """The k clusters of bootstraps of the sentences within categories, [R, H]."""
    counts_RS = bootstrap_counts(divergences.category, replicates=replicates, seed=seed)
    return np.stack([cut(tree(distance_HH), k) for distance_HH in distances(divergences, counts_RS)])


def stability(clusters_H: NDArray, resampled_RH: NDArray) -> dict[int, float]:
    """Of each cluster, the mean over bootstraps of its best Jaccard index with a resampled cluster (Hennig 2007)."""
    names = np.unique(clusters_H)
    member = clusters_H == names[:, None]
    total = np.zeros(len(names))
    for clusters in resampled_RH:
        again = clusters == names[:, None]
        overlap = (member[:, None] & again).sum(2) / (member[:, None] | again).sum(2)
        total += overlap.max(1)
    return {int(c): float(t) for c, t in zip(names, total / len(resampled_RH), strict=True)}


def split_half(divergences: Divergences) -> tuple[float, float]:
    """Distances from every second sentence against those from the others: mean absolute difference, correlation.

    The first is the noise floor: two distances that differ by less are not told apart.
    """
    half = np.arange(len(divergences.category)) % 2
    first, second = (squareform(d, checks=False) for d in distances(divergences, np.stack([half == 0, half == 1])))
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    correlation = np.corrcoef(first, second)[0, 1] if varies else float("nan")
    return float(np.abs(first - second).mean()), float(correlation)


def adjusted_rand(a: NDArray, b: NDArray) -> float:
    """Agreement of two partitions, 0 by chance and 1 when equal (Hubert & Arabie 1985)."""
    _, a = np.unique(a, return_inverse=True)
    _, b = np.unique(b, return_inverse=True)
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(n: NDArray | int) -> float:
        return float(np.sum(n * (n - 1) / 2))

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected, largest = rows * columns / pairs(len(a)), (rows + columns) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def rand_test(a: NDArray, b: NDArray, *, permutations: int, seed: int) -> tuple[float, float]:
    """The adjusted Rand index and the share of relabellings, the observed one among them, that reach it."""
    generator, observed = np.random.default_rng(seed), adjusted_rand(a, b)
    reached = sum(adjusted_rand(generator.permutation(a), b) >= observed - 1e-12 for _ in range(permutations))
    return observed, (1 + reached) / (1 + permutations)


def best_k(distance_HH: NDArray, linkage_matrix: NDArray, max_k: int) -> tuple[int, dict[int, float]]:
    """The number of clusters with the largest silhouette, and the silhouette of each one tried. Needs three heads."""
    if len(distance_HH) < 3:
        raise PicollmError(f"a model of {len(distance_HH)} attention heads cannot be clustered: it needs at least 3")
    scores = {
        k: silhouette(distance_HH, cut(linkage_matrix, k)) for k in range(2, min(max_k, len(distance_HH) - 1) + 1)
    }
    return max(scores, key=scores.get), scores
