"""reports/clusters.json: which heads attend alike, by Jensen-Shannon distance, and how stable the clusters are.

Distances compare the non-sink attention of rows i >= 2, in the notation of picollm.attention.measures.

Shape suffixes: S sentence, H and G head (layers flattened), I analysed row, E entry (row, key) of the lower triangle,
R replicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, cut_tree, leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.special import xlogy
from scipy.stats import spearmanr

from picollm.attention.maps import CategoryMaps, every_map, numbering
from picollm.attention.structure import structure
from picollm.errors import PicollmError
from picollm.files import atomic_path
from picollm.stats import bootstrap_counts, interval, number_or_none

FORMAT = 3
METHODS = ("average", "single", "complete", "ward")  # the first is the one in use
DISTANCE = "sqrt of the mean Jensen-Shannon divergence, in bits, of non-sink attention rows; macro-mean over categories"
PERMUTATIONS = 999
FAITHFUL = 0.75  # cophenetic correlation from which the dendrogram is taken to show the distances
STABLE = 0.75  # mean bootstrap Jaccard index (Hennig 2007), corrected for chance, from which a cluster is


def cluster_heads(
    categories: Sequence[CategoryMaps], heads: Sequence[Mapping], cfg: Mapping
) -> tuple[dict, dict[str, NDArray]]:
    """`describe_clusters` of the maps, by the config's `clusters` section."""
    number = numbering(categories)
    return describe_clusters(
        sentence_divergences(every_map(categories), number),
        sentence_divergences(every_map(categories), number, sink=True),
        heads=heads,
        max_k=cfg["max_k"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )


def describe_clusters(
    divergences: Divergences, whole: Divergences, *, heads: Sequence[Mapping], max_k: int, bootstraps: int, seed: int
) -> tuple[dict, dict[str, NDArray]]:
    """The content of clusters.json, and the arrays of clusters.npz: distance and whole_distance [H, H], linkage
    [H - 1, 4], order [H], coordinates [H, 2].

    `whole` are the divergences of rows with their sink; `heads` is the list of the same name in heads.json. Raises
    PicollmError where it is of another model.
    """
    (distance_HH,), (whole_HH,) = distances(divergences), distances(whole)
    if len(heads) != len(distance_HH):
        raise PicollmError(f"labels of {len(heads)} heads, maps of {len(distance_HH)}: run classify_heads again")
    trees = {method: tree(distance_HH, method) for method in METHODS}
    linkage_matrix = trees[METHODS[0]]
    cophenetic = {method: cophenetic_correlation(distance_HH, matrix) for method, matrix in trees.items()}
    k, scores = best_k(distance_HH, linkage_matrix, max_k)
    clusters_H = cut(linkage_matrix, k)
    drawn_RHH = resampled_distances(divergences, replicates=bootstraps, seed=seed)
    resampled_RH = np.stack([cut(tree(drawn_HH), k) for drawn_HH in drawn_RHH])
    jaccard = stability(clusters_H, resampled_RH, seed=seed)
    difference, correlation = split_half(divergences)
    order = leaves_list(linkage_matrix)
    coordinates, shown = principal_coordinates(distance_HH)
    every_HD, _ = principal_coordinates(distance_HH, len(distance_HH))
    layer_H = np.array([head["layer"] for head in heads])
    pairs = np.triu_indices(len(heads), 1)
    report = {
        "format": FORMAT,
        "distance": DISTANCE,
        "method": METHODS[0],
        "cophenetic": {method: number_or_none(value) for method, value in cophenetic.items()},
        "faithful": bool(cophenetic[METHODS[0]] >= FAITHFUL),
        "k": k,
        "silhouette": number_or_none(scores[k]),
        "structure": structure(distance_HH, every_HD, partial(best_cut, max_k=max_k), seed=seed),
        "silhouettes": [{"k": tried, "silhouette": number_or_none(score)} for tried, score in scores.items()],
        "bootstraps": bootstraps,
        "seed": seed,
        "noise": {"mean_absolute_difference": number_or_none(difference), "correlation": number_or_none(correlation)},
        "mean_distance": number_or_none(distance_HH[pairs].mean()),
        "closest": number_or_none(distance_HH[pairs].min()),
        "with_sink": {
            "mean_distance": number_or_none(whole_HH[pairs].mean()),
            "rank_correlation": number_or_none(spearmanr(distance_HH[pairs], whole_HH[pairs]).statistic),
        },
        "by_layer": by_layer(distance_HH, drawn_RHH, layer_H, seed=seed),
        "coordinates_show": number_or_none(shown),
        "agreement": {
            "labels": _agreement(clusters_H, resampled_RH, [head["label"] for head in heads], seed),
            "layers": _agreement(clusters_H, resampled_RH, [head["layer"] for head in heads], seed),
        },
        "clusters": [_cluster(c, clusters_H, distance_HH, heads, jaccard[c]) for c in range(1, k + 1)],
        "order": [heads[h]["name"] for h in order],
        "heads": [{"name": head["name"], "cluster": int(c)} for head, c in zip(heads, clusters_H, strict=True)],
    }
    return report, {
        "distance": distance_HH,
        "whole_distance": whole_HH,
        "linkage": linkage_matrix,
        "order": order,
        "coordinates": coordinates,
    }


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _agreement(clusters_H: NDArray, resampled_RH: NDArray, other: Sequence, seed: int) -> dict:
    index, p = rand_test(clusters_H, np.array(other), permutations=PERMUTATIONS, seed=seed)
    low, high = interval(np.array([adjusted_rand(clusters, np.array(other)) for clusters in resampled_RH]))
    return {
        "adjusted_rand": number_or_none(index),
        "low": number_or_none(low),
        "high": number_or_none(high),
        "p": number_or_none(p),
        "permutations": PERMUTATIONS,
    }


def _cluster(
    c: int, clusters_H: NDArray, distance_HH: NDArray, heads: Sequence[Mapping], jaccard: tuple[float, float]
) -> dict:
    members = np.flatnonzero(clusters_H == c)
    within = distance_HH[np.ix_(members, members)][np.triu_indices(len(members), 1)]
    return {
        "cluster": c,
        "size": len(members),
        "heads": [heads[h]["name"] for h in members],
        "labels": dict(Counter(heads[h]["label"] for h in members).most_common()),
        "mean_distance": number_or_none(within.mean()) if len(within) else None,
        "stability": number_or_none(jaccard[0]),
        "stability_by_chance": number_or_none(jaccard[1]),
        "stable": bool(jaccard[1] < 1 and (jaccard[0] - jaccard[1]) / (1 - jaccard[1]) >= STABLE),
    }


def metrics(report: dict) -> dict[str, float]:
    """Flat scalars with stable names for `dvc metrics diff`; an undefined one counts as 0."""
    agreement, there = report["agreement"], report["structure"]["found"]
    stabilities = [c["stability"] for c in report["clusters"]]
    return {
        "clusters": report["k"] if there else 0,
        "structure_p": report["structure"]["p"],
        "distance_within_layers": (report["by_layer"] or {"ratio": 0.0})["ratio"],
        "silhouette": report["silhouette"],
        "cophenetic": report["cophenetic"][report["method"]] or 0.0,
        "mean_distance": report["mean_distance"],
        "noise": report["noise"]["mean_absolute_difference"],
        "split_half_correlation": report["noise"]["correlation"] or 0.0,
        "mean_stability": round(sum(stabilities) / len(stabilities), 6) if there else 0.0,
        "stable_clusters": sum(c["stable"] for c in report["clusters"]) if there else 0,
        "rand_labels": agreement["labels"]["adjusted_rand"],
        "rand_labels_p": agreement["labels"]["p"],
        "rand_layers": agreement["layers"]["adjusted_rand"],
        "rand_layers_p": agreement["layers"]["p"],
    }


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


def resampled_distances(divergences: Divergences, *, replicates: int, seed: int) -> NDArray[np.float64]:
    """The distances from bootstraps of the sentences within categories, [R, H, H]."""
    counts_RS = bootstrap_counts(divergences.category, replicates=replicates, seed=seed)
    return np.stack(list(distances(divergences, counts_RS)))


def stability(clusters_H: NDArray, resampled_RH: NDArray, *, seed: int) -> dict[int, tuple[float, float]]:
    """Of each cluster, the mean over bootstraps of its best Jaccard index with a resampled cluster (Hennig 2007); and
    the same where the heads of the resampled clusters change places: a cluster of nearly all heads has it near 1."""
    names = np.unique(clusters_H)
    member = clusters_H == names[:, None]
    generator = np.random.default_rng(seed)

    def best(clusters: NDArray) -> NDArray:
        again = clusters == names[:, None]
        return ((member[:, None] & again).sum(2) / (member[:, None] | again).sum(2)).max(1)

    own = np.mean([best(clusters) for clusters in resampled_RH], axis=0)
    chance = np.mean([best(generator.permutation(clusters)) for clusters in resampled_RH], axis=0)
    return {int(c): (float(a), float(b)) for c, a, b in zip(names, own, chance, strict=True)}


def by_layer(distance_HH: NDArray, drawn_RHH: NDArray, layer_H: NDArray, *, seed: int) -> dict | None:
    """Are heads of one layer closer to each other than to heads of other layers? The ratio of the mean distances, its
    interval over bootstraps of the sentences, and p by permutation of the heads (Mantel 1967); None for one layer, or
    for layers of one head."""
    first, second = np.triu_indices(len(layer_H), 1)
    same = layer_H[first] == layer_H[second]
    if same.all() or not same.any():
        return None

    def ratio(d: NDArray) -> float:
        pairs = d[first, second]
        return pairs[same].mean() / pairs[~same].mean() if pairs[~same].any() else float("nan")

    generator, observed = np.random.default_rng(seed), ratio(distance_HH)
    orders = (generator.permutation(len(layer_H)) for _ in range(PERMUTATIONS))
    drawn = np.array([ratio(distance_HH[np.ix_(order, order)]) for order in orders])
    low, high = interval(np.array([ratio(d) for d in drawn_RHH]))
    away = np.abs(drawn - 1) >= abs(observed - 1) - 1e-12
    return {
        "ratio": number_or_none(observed),
        "low": number_or_none(low),
        "high": number_or_none(high),
        "p": number_or_none((1 + away.sum()) / (1 + PERMUTATIONS)),
    }


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


def best_cut(distance_HH: NDArray, max_k: int) -> tuple[NDArray[np.int64], float]:
    """The cut with the largest silhouette, and that."""
    linkage_matrix = linkage(squareform(distance_HH, checks=False), method=METHODS[0])
    k, scores = best_k(distance_HH, linkage_matrix, max_k)
    return cut(linkage_matrix, k), scores[k]


def best_k(distance_HH: NDArray, linkage_matrix: NDArray, max_k: int) -> tuple[int, dict[int, float]]:
    """The number of clusters with the largest silhouette, and the silhouette of each one tried. Needs three heads."""
    if len(distance_HH) < 3:
        raise PicollmError(f"a model of {len(distance_HH)} attention heads cannot be clustered: it needs at least 3")
    scores = {
        k: silhouette(distance_HH, cut(linkage_matrix, k)) for k in range(2, min(max_k, len(distance_HH) - 1) + 1)
    }
    return max(scores, key=scores.get), scores
