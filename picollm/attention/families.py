"""The families of heads: clusters of the distance matrix with the evidence for and against them, as one dict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list
from scipy.stats import spearmanr

from picollm.attention.clustering import (
    METHODS,
    Divergences,
    adjusted_rand,
    best_k,
    cophenetic_correlation,
    cut,
    distances,
    principal_coordinates,
    rand_test,
    resampled_clusters,
    sentence_divergences,
    split_half,
    stability,
    tree,
)
from picollm.attention.maps import CategoryMaps, every_map, numbering
from picollm.attention.statistics import interval
from picollm.data.files import atomic_path, number_or_none
from picollm.errors import PicollmError

FORMAT = 2
DISTANCE = "sqrt of the mean Jensen-Shannon divergence, in bits, of non-sink attention rows; macro-mean over categories"
PERMUTATIONS = 999
FAITHFUL = 0.75  # cophenetic correlation from which the dendrogram is taken to show the distances
STABLE = 0.75  # mean bootstrap Jaccard index from which a cluster is (Hennig 2007)


def families_of(
    categories: Sequence[CategoryMaps], heads: Sequence[Mapping], cfg: Mapping
) -> tuple[dict, dict[str, NDArray]]:
    """`families` of the maps, by the config's `clusters` section."""
    number = numbering(categories)
    return families(
        sentence_divergences(every_map(categories), number),
        sentence_divergences(every_map(categories), number, sink=True),
        heads=heads,
        max_k=cfg["max_k"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def families(
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
    resampled_RH = resampled_clusters(divergences, k, replicates=bootstraps, seed=seed)
    jaccard = stability(clusters_H, resampled_RH)
    difference, correlation = split_half(divergences)
    order = leaves_list(linkage_matrix)
    coordinates, shown = principal_coordinates(distance_HH)
    pairs = np.triu_indices(len(heads), 1)
    report = {
        "format": FORMAT,
        "distance": DISTANCE,
        "method": METHODS[0],
        "cophenetic": {method: number_or_none(value) for method, value in cophenetic.items()},
        "faithful": bool(cophenetic[METHODS[0]] >= FAITHFUL),
        "k": k,
        "silhouette": number_or_none(scores[k]),
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


def _cluster(c: int, clusters_H: NDArray, distance_HH: NDArray, heads: Sequence[Mapping], jaccard: float) -> dict:
    members = np.flatnonzero(clusters_H == c)
    within = distance_HH[np.ix_(members, members)][np.triu_indices(len(members), 1)]
    return {
        "cluster": c,
        "size": len(members),
        "heads": [heads[h]["name"] for h in members],
        "labels": dict(Counter(heads[h]["label"] for h in members).most_common()),
        "mean_distance": number_or_none(within.mean()) if len(within) else None,
        "stability": number_or_none(jaccard),
        "stable": bool(jaccard >= STABLE),
    }


def metrics(report: dict) -> dict[str, float]:
    """Flat scalars with stable names for `dvc metrics diff`; an undefined one counts as 0."""
    agreement, stabilities = report["agreement"], [c["stability"] for c in report["clusters"]]
    return {
        "clusters": report["k"],
        "silhouette": report["silhouette"],
        "cophenetic": report["cophenetic"][report["method"]] or 0.0,
        "mean_distance": report["mean_distance"],
        "noise": report["noise"]["mean_absolute_difference"],
        "split_half_correlation": report["noise"]["correlation"] or 0.0,
        "mean_stability": round(sum(stabilities) / len(stabilities), 6),
        "stable_clusters": sum(c["stable"] for c in report["clusters"]),
        "rand_labels": agreement["labels"]["adjusted_rand"],
        "rand_labels_p": agreement["labels"]["p"],
        "rand_layers": agreement["layers"]["adjusted_rand"],
        "rand_layers_p": agreement["layers"]["p"],
    }
