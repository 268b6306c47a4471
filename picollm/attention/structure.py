"""Tests if there are clusters at all: compares the best cut of the heads' distances with that of an unclustered cloud.

A tree can be cut anywhere, and the cut with the largest silhouette looks like a result. The same search therefore runs
on heads drawn from one normal distribution with the covariance of this model's heads in the space of their distances
(SigClust, Liu et al. 2008): a cloud of the same shape without gaps.

Shape suffixes: H head (layers flattened), D principal coordinate, R replicate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

DRAWS = 199
LEAST_HEADS = 3  # size from which a cluster is more than an outlier
LEAST_CLUSTERS = 2  # clusters of that size required
LEAST_SILHOUETTE = 0.25  # below it "no substantial structure has been found" (Kaufman & Rousseeuw 1990)
LEAST_P = 0.05


class Structure(TypedDict):
    found: bool
    because: list[str]
    p: float
    silhouette_one_cloud_95: float
    draws: int


def structure(
    distance_HH: NDArray, coordinates_HD: NDArray, search: Callable[[NDArray], tuple[NDArray, float]], *, seed: int
) -> Structure:
    """Decides if the heads fall into clusters and gives the evidence. `search` maps distances to the best cut and its
    silhouette; `coordinates` are all principal coordinates of the distances."""
    clusters_H, observed = search(distance_HH)
    sizes = np.unique(clusters_H, return_counts=True)[1]
    generator = np.random.default_rng(seed)
    spread_D = coordinates_HD.std(0, ddof=1)
    drawn_R = np.array([
        search(squareform(pdist(generator.normal(size=coordinates_HD.shape) * spread_D)))[1] for _ in range(DRAWS)
    ])  # fmt: skip
    p = (1 + (drawn_R >= observed - 1e-12).sum()) / (1 + DRAWS)
    large = int((sizes >= LEAST_HEADS).sum())
    reasons = [
        (p >= LEAST_P, "the best cut is no better than that of heads drawn from one cloud without clusters"),
        (observed < LEAST_SILHOUETTE, f"the silhouette is below {LEAST_SILHOUETTE}"),
        (large < LEAST_CLUSTERS, f"fewer than {LEAST_CLUSTERS} clusters have {LEAST_HEADS} heads or more"),
    ]
    because = [reason for holds, reason in reasons if holds]
    return {
        "found": not because,
        "because": because,
        "p": float(p),
        "silhouette_one_cloud_95": round(float(np.quantile(drawn_R, 0.95)), 6),
        "draws": DRAWS,
    }
