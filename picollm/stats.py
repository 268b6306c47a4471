"""Statistics shared by several chapters: bootstrap and sign-flip tests, false discovery rate, accuracy by cluster.

Shape suffixes: I item, C cluster of items, H head (layers flattened), W window of text (or sentence), S sentence,
R replicate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm, permutation_test, t, ttest_1samp

from picollm.errors import PicollmError

SIGNIFICANT = 0.05  # q, or the p of a single test
BOOTSTRAPS = 2000
SIGN_FLIPS = 2**14


def number_or_none(value: float) -> float | None:
    """Rounds to six decimals, above the last places that another thread count or BLAS may change; None if undefined."""
    return round(float(value), 6) if math.isfinite(value) else None


def finite(value: float) -> float:
    """Rounds a value that is defined for any finite model. Raises PicollmError for one that is not finite."""
    if not math.isfinite(value):
        raise PicollmError(f"a statistic is {value}: the model gives numbers that are not finite; check its weights")
    return round(float(value), 6)


class Interval(TypedDict):
    value: float | None
    low: float | None
    high: float | None


class DefinedInterval(TypedDict):
    """An interval of a statistic that is always defined."""

    value: float
    low: float
    high: float


class Effect(TypedDict):
    """Effect of one head: rise in nats without it, with its interval, p, and q over the heads."""

    name: str
    delta: float
    low: float
    high: float
    p: float
    q: float


class Accuracy(TypedDict):
    """Accuracy over items in clusters, with its interval."""

    accuracy: float
    low: float
    high: float
    items: int
    clusters: int


def known(*columns: NDArray) -> list[DefinedInterval]:
    """Turns the columns value, low and high into rows."""
    rows = zip(*columns, strict=True)
    return [{"value": finite(value), "low": finite(low), "high": finite(high)} for value, low, high in rows]


def cluster_means(values_XI: NDArray, cluster_I: NDArray) -> NDArray[np.float64]:
    """Averages items by cluster, [..., I] to [..., C], in order of the clusters' numbers."""
    members_IC = cluster_I[:, None] == np.unique(cluster_I)
    return values_XI @ (members_IC / members_IC.sum(0))


def accuracy(right_I: NDArray, cluster_I: NDArray) -> Accuracy:
    """Returns the mean over clusters of equal size and its 95 % Student-t interval: they are too few to resample."""
    right_C = cluster_means(right_I, cluster_I)
    half = t.ppf(0.975, len(right_C) - 1) * right_C.std(ddof=1) / np.sqrt(len(right_C))
    low, high = np.clip((right_C.mean() - half, right_C.mean() + half), 0, 1)
    return {
        "accuracy": finite(right_C.mean()),
        "low": finite(low),
        "high": finite(high),
        "items": len(right_I),
        "clusters": len(right_C),
    }


def above(right_I: NDArray, rival_I: NDArray, cluster_I: NDArray) -> float:
    """Returns the one-sided p-value for the first being right more often than the rival on the same items, paired over
    clusters: Student's t of the differences; if these are all equal, the sign test's p (2 to the power of minus the
    number of clusters, or 1)."""
    difference_C = cluster_means(right_I, cluster_I) - cluster_means(rival_I, cluster_I)
    if np.ptp(difference_C) < 1e-12:
        return 0.5 ** len(difference_C) if difference_C[0] > 0 else 1.0
    return float(ttest_1samp(difference_C, 0, alternative="greater").pvalue)


def preferred(margin: NDArray) -> NDArray[np.float64]:
    """Returns 1 if the right answer has more, .5 if both have the same, else 0."""
    return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))


def bootstrap_counts(category: NDArray, *, replicates: int, seed: int) -> NDArray:
    """Draws counts of each sentence, [R, S], within its category. A sentence's rows are dependent: not resampled."""
    generator = np.random.default_rng(seed)
    counts_RS = np.zeros((replicates, len(category)))
    for c in np.unique(category):
        size = int((category == c).sum())
        counts_RS[:, category == c] = generator.multinomial(size, np.full(size, 1 / size), size=replicates)
    return counts_RS


def interval(replicates: NDArray, level: float = 0.95) -> tuple[NDArray, NDArray]:
    """Returns the percentile interval over the first axis (Efron 1979) of the replicates with a defined statistic."""
    tail = (1 - level) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # the result is NaN
        low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
    return low, high


def interval_columns(statistics: Mapping[str, Interval]) -> dict[str, float | None]:
    """Turns statistics with `value`, `low` and `high` into one row of a table: `name`, `name_low`, `name_high`."""
    return {
        column: value
        for name, row in statistics.items()
        for column, value in ((name, row["value"]), (f"{name}_low", row["low"]), (f"{name}_high", row["high"]))
    }


def false_discovery_rate(p: NDArray) -> NDArray:
    """Adjusts p by Benjamini and Hochberg over the defined values; the shape is the same."""
    out = np.full_like(p, np.nan)
    defined = np.isfinite(p)
    if defined.any():
        out[defined] = false_discovery_control(p[defined])
    return out


def percentile(values: NDArray, share: float, method: Literal["linear", "higher"] = "linear") -> float:
    """Returns the value below which this share of the defined values is; NaN if none is defined."""
    defined = values[np.isfinite(values)]
    return float(np.quantile(defined, share, method=method)) if defined.size else float("nan")


def percentile_99(values: NDArray) -> float:
    return percentile(values, 0.99)


def per_head(rise_HW: NDArray, names: Sequence[str], *, seed: int) -> list[Effect]:
    """Computes each head's mean effect over windows (sentences, clusters), 95 % interval, p, and q over the heads."""
    p_H = sign_flip_p(rise_HW, seed)
    columns = (rise_HW.mean(1), *resampled(rise_HW, seed), p_H, false_discovery_rate(p_H))
    return [
        {"name": name, "delta": finite(delta), "low": finite(low), "high": finite(high), "p": finite(p), "q": finite(q)}
        for name, delta, low, high, p, q in zip(names, *columns, strict=True)
    ]


def resampled(rise_HW: NDArray, seed: int, level: float = 0.95, of_W: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """Bootstrap interval of the mean over at least two windows, or of the ratio of sums to those of `of_W`, [H] each.

    Percentiles of few windows are too narrow; these are widened as Student's t is relative to the normal distribution
    (the expanded percentile interval, Hesterberg 2015, arXiv 1411.5279).
    """
    n = rise_HW.shape[1]
    counts_RW = bootstrap_counts(np.zeros(n, dtype=int), replicates=BOOTSTRAPS, seed=seed)
    outside = float(norm.sf(math.sqrt(n / (n - 1)) * t.isf((1 - level) / 2, n - 1)))
    of_R1 = (counts_RW @ (np.ones(n) if of_W is None else of_W))[:, None]
    drawn_RH = np.divide(counts_RW @ rise_HW.T, of_R1, out=np.full((BOOTSTRAPS, len(rise_HW)), np.nan), where=of_R1 > 0)
    return interval(drawn_RH, 1 - 2 * outside)


def sign_flip_p(rise_HW: NDArray, seed: int) -> NDArray[np.float64]:
    """Two-sided p of no effect, [H]: without an effect, each window's difference is equally likely to have either sign.

    All patterns of signs are tried if there are at most SIGN_FLIPS; otherwise that many are drawn (Ernst 2004).
    """
    test = permutation_test(
        (rise_HW,), lambda drawn, axis: np.abs(drawn.sum(axis=axis)), permutation_type="samples", alternative="greater",
        n_resamples=SIGN_FLIPS, batch=1000, axis=1, vectorized=True, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return test.pvalue
