"""Builds reports/clusters.json: clusters of heads with similar attention (picollm.attention.distances) and stability.

Shape suffixes: S sentence, H head (layers flattened), D principal coordinate, R replicate, P pair of heads, K cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, cut_tree, leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr

from picollm.attention.distances import (
    Divergences,
    distances,
    principal_coordinates,
    resampled_distances,
    sentence_divergences,
    split_half,
)
from picollm.attention.maps import CategoryMaps, every_map, numbering
from picollm.attention.structure import Structure, structure
from picollm.errors import PicollmError, rerun
from picollm.files import atomic_path
from picollm.stats import finite, interval, number_or_none

if TYPE_CHECKING:
    from picollm.attention.heads import Head

FORMAT = 3
METHODS = ("average", "single", "complete", "ward")  # the first is used; the others are for comparison
DISTANCE = "sqrt of the mean Jensen-Shannon divergence, in bits, of non-sink attention rows; macro-mean over categories"
PERMUTATIONS = 999
FAITHFUL = 0.75  # cophenetic correlation at which the dendrogram counts as showing the distances faithfully
STABLE = 0.75  # mean bootstrap Jaccard index (Hennig 2007), corrected for chance, at which a cluster counts as stable


class ByLayer(TypedDict):
    ratio: float
    low: float
    high: float
    p: float


class Agreement(TypedDict):
    """Agreement of the clusters with another partition of the heads."""

    adjusted_rand: float
    low: float
    high: float
    p: float
    permutations: int


class Cluster(TypedDict):
    cluster: int
    size: int
    heads: list[str]
    labels: dict[str, int]
    mean_distance: float | None
    stability: float
    stability_by_chance: float
    stable: bool


class Noise(TypedDict):
    mean_absolute_difference: float
    correlation: float | None


class Silhouette(TypedDict):
    k: int
    silhouette: float


class WithSink(TypedDict):
    mean_distance: float
    rank_correlation: float | None


class HeadCluster(TypedDict):
    name: str
    cluster: int


class ClustersReport(TypedDict):
    """Contents of clusters.json."""

    format: int
    distance: str
    method: str
    cophenetic: dict[str, float | None]
    faithful: bool
    k: int
    silhouette: float
    structure: Structure
    silhouettes: list[Silhouette]
    bootstraps: int
    seed: int
    noise: Noise
    mean_distance: float
    closest: float
    with_sink: WithSink
    by_layer: ByLayer | None
    coordinates_show: float
    agreement: dict[str, Agreement]  # keys `labels` and `layers`
    clusters: list[Cluster]
    order: list[str]
    heads: list[HeadCluster]


def cluster_heads(
    categories: Sequence[CategoryMaps], heads: Sequence[Head], cfg: Mapping
) -> tuple[ClustersReport, dict[str, NDArray]]:
    """Runs `describe_clusters` on the maps, with the settings of the config's `clusters` section."""
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
    divergences: Divergences, whole: Divergences, *, heads: Sequence[Head], max_k: int, bootstraps: int, seed: int
) -> tuple[ClustersReport, dict[str, NDArray]]:
    """Returns the contents of clusters.json and the arrays of clusters.npz: distance and whole_distance [H, H], linkage
    [H - 1, 4], order [H], coordinates [H, 2].

    `whole` holds the divergences of rows including the sink; `heads` is the list of that name in heads.json. Raises
    PicollmError if it belongs to another model.
    """
    (distance_HH,), (whole_HH,) = distances(divergences), distances(whole)
    if len(heads) != len(distance_HH):
        raise PicollmError(f"{len(heads)} heads have labels, {len(distance_HH)} have maps: {rerun('classify_heads')}")
    trees = {method: tree(distance_HH, method) for method in METHODS}
    linkage_matrix = trees[METHODS[0]]
    cophenetic = {method: cophenetic_correlation(distance_HH, matrix) for method, matrix in trees.items()}
    k, scores = best_k(distance_HH, linkage_matrix, max_k)
    clusters_H = cut(linkage_matrix, k)
    drawn_RHH = resampled_distances(divergences, replicates=bootstraps, seed=seed)
    resampled_RH = np.stack([cut(tree(drawn_HH), k) for drawn_HH in drawn_RHH])
    jaccard = stability(clusters_H, resampled_RH, seed=seed)
    order = leaves_list(linkage_matrix)
    coordinates, shown = principal_coordinates(distance_HH)
    every_HD, _ = principal_coordinates(distance_HH, len(distance_HH))
    layer_H = np.array([head["layer"] for head in heads])
    pairs = np.triu_indices(len(heads), 1)
    report: ClustersReport = {
        "format": FORMAT,
        "distance": DISTANCE,
        "method": METHODS[0],
        "cophenetic": {method: number_or_none(value) for method, value in cophenetic.items()},
        "faithful": bool(cophenetic[METHODS[0]] >= FAITHFUL),
        "k": k,
        "silhouette": finite(scores[k]),
        "structure": structure(distance_HH, every_HD, partial(best_cut, max_k=max_k), seed=seed),
        "silhouettes": [{"k": tried, "silhouette": finite(score)} for tried, score in scores.items()],
        "bootstraps": bootstraps,
        "seed": seed,
        "noise": _noise(divergences),
        "mean_distance": finite(distance_HH[pairs].mean()),
        "closest": finite(distance_HH[pairs].min()),
        "with_sink": _with_sink(distance_HH[pairs], whole_HH[pairs]),
        "by_layer": by_layer(distance_HH, drawn_RHH, layer_H, seed=seed),
        "coordinates_show": finite(shown),
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
        named: dict[str, Any] = dict(arrays)
        np.savez(file, **named)


def _noise(divergences: Divergences) -> Noise:
    difference, correlation = split_half(divergences)
    return {"mean_absolute_difference": finite(difference), "correlation": number_or_none(correlation)}


def _with_sink(distance_P: NDArray, whole_P: NDArray) -> WithSink:
    """Mean distance of the pairs of heads, P, with the sink included, and its rank correlation with the one without."""
    correlation = spearmanr(distance_P, whole_P).statistic
    return {"mean_distance": finite(whole_P.mean()), "rank_correlation": number_or_none(correlation)}


def _agreement(clusters_H: NDArray, resampled_RH: NDArray, other: Sequence, seed: int) -> Agreement:
    index, p = rand_test(clusters_H, np.array(other), permutations=PERMUTATIONS, seed=seed)
    low, high = interval(np.array([adjusted_rand(clusters, np.array(other)) for clusters in resampled_RH]))
    return {
        "adjusted_rand": finite(index),
        "low": finite(float(low)),
        "high": finite(float(high)),
        "p": finite(p),
        "permutations": PERMUTATIONS,
    }


def _cluster(
    c: int, clusters_H: NDArray, distance_HH: NDArray, heads: Sequence[Head], jaccard: tuple[float, float]
) -> Cluster:
    members = np.flatnonzero(clusters_H == c)
    within = distance_HH[np.ix_(members, members)][np.triu_indices(len(members), 1)]
    return {
        "cluster": c,
        "size": len(members),
        "heads": [heads[h]["name"] for h in members.tolist()],
        "labels": dict(Counter(heads[h]["label"] for h in members.tolist()).most_common()),
        "mean_distance": finite(within.mean()) if len(within) else None,
        "stability": finite(jaccard[0]),
        "stability_by_chance": finite(jaccard[1]),
        "stable": bool(jaccard[1] < 1 and (jaccard[0] - jaccard[1]) / (1 - jaccard[1]) >= STABLE),
    }


def metrics(report: ClustersReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`; an undefined one (null in clusters.json) is 0."""
    agreement, has_structure, layers = report["agreement"], report["structure"]["found"], report["by_layer"]
    stabilities = [c["stability"] for c in report["clusters"]]
    return {
        "clusters": report["k"] if has_structure else 0,
        "structure_p": report["structure"]["p"],
        "distance_within_layers": layers["ratio"] if layers else 0.0,
        "silhouette": report["silhouette"],
        "cophenetic": report["cophenetic"][report["method"]] or 0.0,
        "mean_distance": report["mean_distance"],
        "noise": report["noise"]["mean_absolute_difference"],
        "split_half_correlation": report["noise"]["correlation"] or 0.0,
        "mean_stability": round(sum(stabilities) / len(stabilities), 6) if has_structure else 0.0,
        "stable_clusters": sum(c["stable"] for c in report["clusters"]) if has_structure else 0,
        "rand_labels": agreement["labels"]["adjusted_rand"],
        "rand_labels_p": agreement["labels"]["p"],
        "rand_layers": agreement["layers"]["adjusted_rand"],
        "rand_layers_p": agreement["layers"]["p"],
    }


def tree(distance_HH: NDArray, method: str = METHODS[0]) -> NDArray:
    """Builds SciPy's linkage matrix [H - 1, 4], with leaves ordered so that the most similar heads are adjacent."""
    return linkage(squareform(distance_HH, checks=False), method=method, optimal_ordering=True)


def cophenetic_correlation(distance_HH: NDArray, linkage_matrix: NDArray) -> float:
    """Pearson correlation of the tree's merge heights with the distances; NaN if either is constant."""
    condensed = squareform(distance_HH, checks=False)
    heights = cophenet(linkage_matrix)
    if np.ptp(condensed) == 0 or np.ptp(heights) == 0:
        return float("nan")
    return float(np.corrcoef(condensed, heights)[0, 1])


def cut(linkage_matrix: NDArray, k: int) -> NDArray[np.int64]:
    """Returns the cluster of each head, numbered 1 to k from left to right in the dendrogram."""
    clusters = cut_tree(linkage_matrix, n_clusters=k)[:, 0]
    left_to_right = list(dict.fromkeys(clusters[leaves_list(linkage_matrix)]))
    return np.array([left_to_right.index(c) + 1 for c in clusters])


def silhouette(distance_HH: NDArray, clusters_H: NDArray) -> float:
    """Mean silhouette (Rousseeuw 1987) computed from distances; a head alone in its cluster scores 0."""
    names, sizes = np.unique(clusters_H, return_counts=True)
    sums = np.stack([distance_HH[:, clusters_H == c].sum(1) for c in names], axis=1)
    own = clusters_H[:, None] == names
    size = (own * sizes).sum(1)
    within = (own * sums).sum(1) / np.maximum(size - 1, 1)
    nearest = np.where(own, np.inf, sums / sizes).min(1)
    larger = np.maximum(within, nearest)
    score = np.divide(nearest - within, larger, out=np.zeros_like(larger), where=larger > 0)
    return float(np.where(size > 1, score, 0.0).mean())


def stability(clusters_H: NDArray, resampled_RH: NDArray, *, seed: int) -> dict[int, tuple[float, float]]:
    """Returns for each cluster the mean over bootstraps of its best Jaccard index with a resampled cluster (Hennig
    2007), and the same with the heads of the resampled clusters permuted: near 1 for a cluster of nearly all heads."""
    names = np.unique(clusters_H)
    member = clusters_H == names[:, None]
    generator = np.random.default_rng(seed)

    def best(clusters: NDArray) -> NDArray:
        again = clusters == names[:, None]
        return ((member[:, None] & again).sum(2) / (member[:, None] | again).sum(2)).max(1)

    own = np.mean([best(clusters) for clusters in resampled_RH], axis=0)
    chance = np.mean([best(generator.permutation(clusters)) for clusters in resampled_RH], axis=0)
    return {int(c): (float(a), float(b)) for c, a, b in zip(names, own, chance, strict=True)}


def by_layer(distance_HH: NDArray, drawn_RHH: NDArray, layer_H: NDArray, *, seed: int) -> ByLayer | None:
    """Tests if heads of one layer are closer to each other than to heads of other layers: the ratio of mean distances,
    its interval over bootstraps of the sentences, and p by permutation of the heads (Mantel 1967). None for one layer,
    for layers of one head, and if all heads of different layers are at distance 0."""
    first, second = np.triu_indices(len(layer_H), 1)
    same = layer_H[first] == layer_H[second]
    if same.all() or not same.any() or not distance_HH[first, second][~same].any():
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
        "ratio": finite(observed),
        "low": finite(float(low)),
        "high": finite(float(high)),
        "p": finite((1 + away.sum()) / (1 + PERMUTATIONS)),
    }


def adjusted_rand(a: NDArray, b: NDArray) -> float:
    """Adjusted Rand index of two partitions: 0 by chance, 1 when equal (Hubert & Arabie 1985)."""
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
    """Returns the adjusted Rand index and the share of relabellings, including the observed one, that reach it."""
    generator, observed = np.random.default_rng(seed), adjusted_rand(a, b)
    reached = sum(adjusted_rand(generator.permutation(a), b) >= observed - 1e-12 for _ in range(permutations))
    return observed, (1 + reached) / (1 + permutations)


def best_cut(distance_HH: NDArray, max_k: int) -> tuple[NDArray[np.int64], float]:
    """Returns the cut with the largest silhouette, and that silhouette."""
    linkage_matrix = linkage(squareform(distance_HH, checks=False), method=METHODS[0])
    k, scores = best_k(distance_HH, linkage_matrix, max_k)
    return cut(linkage_matrix, k), scores[k]


def best_k(distance_HH: NDArray, linkage_matrix: NDArray, max_k: int) -> tuple[int, dict[int, float]]:
    """Returns the number of clusters with the largest silhouette, and all silhouettes. Needs at least three heads."""
    if len(distance_HH) < 3:
        raise PicollmError(f"a model of {len(distance_HH)} attention heads cannot be clustered: it needs at least 3")
    tried = range(2, min(max_k, len(distance_HH) - 1) + 1)
    cuts_KH = cut_tree(linkage_matrix, n_clusters=list(tried)).T  # one pass for all cuts: this is the slow part
    scores = {k: silhouette(distance_HH, clusters_H) for k, clusters_H in zip(tried, cuts_KH, strict=True)}
    return max(scores, key=lambda k: scores[k]), scores
