"""How often an answer is right, with an interval over clusters of items that share their words, not over items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from picollm.data.files import number_or_none


def cluster_means(values_XI: NDArray, cluster_I: NDArray) -> NDArray[np.float64]:
    """[..., I] to [..., C], in order of the clusters' numbers."""
    members_IC = cluster_I[:, None] == np.unique(cluster_I)
    return values_XI @ (members_IC / members_IC.sum(0))


def accuracy(right_I: NDArray, cluster_I: NDArray) -> dict[str, float | int | None]:
    """Mean over clusters of equal size, and its 95 % interval by Student's t: bootstraps of so few are too narrow."""
    right_C = cluster_means(right_I, cluster_I)
    half = t.ppf(0.975, len(right_C) - 1) * right_C.std(ddof=1) / np.sqrt(len(right_C))
    low, high = np.clip((right_C.mean() - half, right_C.mean() + half), 0, 1)
    return {
        "accuracy": number_or_none(right_C.mean()),
        "low": number_or_none(low),
        "high": number_or_none(high),
        "items": len(right_I),
        "clusters": len(right_C),
    }


def preferred(margin: NDArray) -> NDArray[np.float64]:
    """1 where the right answer has more, .5 where both have the same, and 0."""
    return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
