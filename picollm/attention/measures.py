"""Statistics of a head's attention, corrected for chance and for the attention sink, with bootstrap intervals.

Raw masses depend on length: under uniform causal attention the previous token gets .29 of the mass in a sentence of 6
tokens and .06 in one of 60. The statistics here are ratios of sums over rows with the chance level removed. Every
sentence keeps its numerator and denominator, so a bootstrap over sentences is one matrix product per category.

Notation: position 0 is the separator (the sink); rows i = 2 ... n-1 are analysed, because row 0 is forced and row 1 has
only one key besides the sink. A[i, j] is the weight of key j for query i, w_i = sum_{j>=1} A[i, j] the non-sink mass,
p_i = A[i, 1:] / w_i, d = i - j the offset.

Shape suffixes: S sentence, H head (layers flattened), Q query, K key, I analysed row, D offset, M statistic,
N set of keys, R replicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from picollm.attention.key_sets import SETS
from picollm.attention.maps import flat

KAPPA = "sum(mass on the set - w m/i) / sum(w (1 - m/i)), m of the i keys in the set: 0 by chance, 1 at most"
DEFINITIONS = {
    "kappa_self": f"chance-corrected mass on the token itself: {KAPPA}",
    "kappa_prev": f"chance-corrected mass on the previous token: {KAPPA}",
    "kappa_local": f"chance-corrected mass on offsets 1 to window, rows i > window + 1: {KAPPA}",
    "kappa_sink": "chance-corrected mass on position 0: sum(mass - 1/(i+1)) / sum(1 - 1/(i+1))",
    "non_sink": "W: mean mass w outside position 0",
    "broad": "B: entropy of the non-sink attention, sum w H(p) / sum w ln i: 1 is uniform",
    "positional": "P = 1 - B - C: what the offset alone explains; below 0 where the kernel does not carry over",
    "content": "C: sum w KL(p || q) / sum w ln i, q the positional kernel fitted on the other half of the sentences",
    **{f"kappa_{name}": f"chance-corrected mass on {what}, NaN where none exist" for name, what in SETS.items()},
    "distance": "mean offset / that of uniform attention, (i-1)/2: 0 is the token itself, 1 is uniform",
    "raw_self": "uncorrected: mean weight of the token itself, all rows, sink included",
    "raw_local": "uncorrected: mean mass on offsets 0 to window, all rows, sink included",
    "raw_token": "uncorrected: mean weight of the sentence's most attended position, all rows, sink included",
}
NAMES = tuple(DEFINITIONS)
KERNEL_STEPS = 200
KERNEL_PRIOR = 0.1  # sentences of uniform attention added to the kernel's fit, so unseen offsets have a finite cost


@dataclass(frozen=True)
class Sums:
    """Numerator and denominator of every statistic, [S, M, H], and each sentence's category, [S], from 0."""

    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]
    category: NDArray[np.int64]


def sentence_sums(
    maps: Iterable[NDArray], category: Sequence[int], *, window: int, keys: Iterable[NDArray] | None = None
) -> Sums:
    """Sums up each sentence; `maps` has one [layer, head, Q, K] or [H, Q, K] array per sentence, separator first.

    `keys` holds `key_sets` of each sentence; without it the kappas of the sets are NaN. Both are iterated once, one
    sentence at a time.
    """
    parts, masses, weights = [], [], []
    no_keys = (np.zeros((len(SETS), 1, 1), dtype=bool) for _ in category)
    for weights_LHQK, sets_NQK in zip(maps, keys or no_keys, strict=True):
        A_HQK = flat(weights_LHQK)
        i, O_HID = by_offset(A_HQK)
        masses.append(np.pad(O_HID.sum(1), ((0, 0), (0, 1))))
        weights.append(np.pad(O_HID.sum(2), ((0, 0), (2, 0))))  # indexed by i itself
        parts.append(
            _masses(A_HQK, i, O_HID, window) | _raw(A_HQK, window) | _entropy(i, O_HID) | _sets(A_HQK, i, sets_NQK)
        )
    n_heads = len(masses[0])
    numerator, denominator = (
        {name: np.stack([np.broadcast_to(part[name][k], n_heads) for part in parts]) for name in parts[0]}
        for k in range(2)
    )
    cross = cross_fitted_entropy(padded(masses), padded(weights))
    numerator["positional"] = denominator["broad"] - cross
    numerator["content"] = cross - numerator["broad"]
    denominator["positional"] = denominator["content"] = denominator["broad"]
    return Sums(
        np.stack([numerator[name] for name in NAMES], axis=1),
        np.stack([denominator[name] for name in NAMES], axis=1),
        np.asarray(category, dtype=np.int64),
    )


def by_offset(A_HQK: NDArray) -> tuple[NDArray, NDArray]:
    """Returns the analysed rows i, [I], and their attention by offset, [H, I, D], 0 where the offset hits the sink."""
    i = np.arange(2, A_HQK.shape[-1])
    key_ID = i[:, None] - np.arange(A_HQK.shape[-1] - 1)
    return i, np.where(key_ID >= 1, A_HQK[:, i[:, None], np.maximum(key_ID, 0)], 0.0)


def _masses(A_HQK: NDArray, i: NDArray, O_HID: NDArray, window: int) -> dict[str, tuple]:
    w_HI = O_HID.sum(2)
    local = i > window + 1

    def kappa(mass_HI: NDArray, m: int, rows: NDArray | slice) -> tuple[NDArray, NDArray]:
        chance_I, w = m / i[rows], w_HI[:, rows]
        return (mass_HI[:, rows] - w * chance_I).sum(1), (w * (1 - chance_I)).sum(1)

    return {
        "kappa_self": kappa(O_HID[:, :, 0], 1, slice(None)),
        "kappa_prev": kappa(O_HID[:, :, 1:2].sum(2), 1, slice(None)),
        "kappa_local": kappa(O_HID[:, :, 1 : window + 1].sum(2), window, local),
        "kappa_sink": ((A_HQK[:, 2:, 0] - 1 / (i + 1)).sum(1), (1 - 1 / (i + 1)).sum()),
        "non_sink": (w_HI.sum(1), len(i)),
        "distance": ((O_HID * np.arange(O_HID.shape[2])).sum((1, 2)), (w_HI * (i - 1) / 2).sum(1)),
    }


def local_kappa(maps: Iterable[NDArray], category: Sequence[int], *, window: int) -> NDArray[np.float64]:
    """Computes `kappa_local` alone, [H], for another window."""
    parts = []
    for weights in maps:
        A_HQK = flat(weights)
        parts.append(_masses(A_HQK, *by_offset(A_HQK), window)["kappa_local"])
    numerator, denominator = (np.stack([part[k] for part in parts])[:, None] for k in range(2))
    return over_categories(Sums(numerator, denominator, np.asarray(category)))[0, 0]


def _sets(A_HQK: NDArray, i: NDArray, sets_NQK: NDArray) -> dict[str, tuple]:
    """Sums for the kappa of each set of keys, over the rows in which the set has some keys but not all."""
    sets_NIK = np.broadcast_to(sets_NQK, (len(sets_NQK), *A_HQK.shape[1:]))[:, i]
    chance_NI = sets_NIK.sum(2) / i
    some_NI = (chance_NI > 0) & (chance_NI < 1)
    A_HIK = A_HQK[:, i]
    mass_NHI = np.einsum("hik,nik->nhi", A_HIK, sets_NIK.astype(np.float64), optimize=True)
    w_HI = A_HIK[:, :, 1:].sum(2)
    numerator_NH = (some_NI[:, None] * (mass_NHI - w_HI * chance_NI[:, None])).sum(2)
    denominator_NH = (some_NI[:, None] * w_HI * (1 - chance_NI[:, None])).sum(2)
    return {f"kappa_{name}": (numerator_NH[n], denominator_NH[n]) for n, name in enumerate(SETS)}


def padded(arrays: Sequence[NDArray]) -> NDArray:
    """Stacks arrays [H, D] of several lengths into one [S, H, D], padded with zeros on the right."""
    longest = max(array.shape[1] for array in arrays)
    return np.stack([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])


def _raw(A_HQK: NDArray, window: int) -> dict[str, tuple]:
    """Uncorrected masses over all rows, sink included, for the raw rule of picollm.attention.labels."""
    rows = A_HQK.shape[-1]
    band = np.tri(rows) - np.tri(rows, k=-window - 1)
    return {
        "raw_self": (np.trace(A_HQK, axis1=1, axis2=2), rows),
        "raw_local": ((A_HQK * band).sum((1, 2)), rows),
        "raw_token": (A_HQK.sum(1).max(1), rows),
    }


def _entropy(i: NDArray, O_HID: NDArray) -> dict[str, tuple]:
    """Sums of w H(p) and w ln i, in nats. w H(p) = w ln w - sum_j A ln A needs no division by a small w."""
    w_HI = O_HID.sum(2)
    return {"broad": ((xlogy(w_HI, w_HI) - xlogy(O_HID, O_HID).sum(2)).sum(1), (w_HI * np.log(i)).sum(1))}


def cross_fitted_entropy(mass_SHD: NDArray, weight_SHI: NDArray) -> NDArray:
    """Sum of w CE(p, q) in nats, [S, H]; q is the positional kernel of the other half (every second sentence)."""
    half = np.arange(len(mass_SHD)) % 2
    cross = np.empty(mass_SHD.shape[:2])
    for k in (0, 1):
        g_HD = fit_kernel(mass_SHD[half != k].sum(0), weight_SHI[half != k].sum(0))
        normaliser_HI = _normaliser(g_HD)
        cross[half == k] = (weight_SHI[half == k] * np.log(normaliser_HI)).sum(2) - xlogy(
            mass_SHD[half == k], g_HD
        ).sum(2)
    return cross


def fit_kernel(mass_HD: NDArray, weight_HI: NDArray) -> NDArray:
    """Fits the kernel g >= 0 of q_i(d) = g(d) / sum_{d' < i} g(d') to the attention, [H, D], summing to 1.

    Minorisation-maximisation as for Plackett-Luce models (Hunter 2004), from the mass on each offset and the weight of
    each row: g(d) <- mass(d) / sum_{i > d} weight(i) / G(i), G(i) = sum_{d' < i} g(d').
    """
    i = np.arange(2, mass_HD.shape[1])
    weight_HI = weight_HI + KERNEL_PRIOR * (np.arange(mass_HD.shape[1]) >= 2)
    mass_HD = mass_HD + KERNEL_PRIOR * np.array([(1 / i[i > d]).sum() for d in range(mass_HD.shape[1])])
    g_HD = np.ones_like(mass_HD)
    for _ in range(KERNEL_STEPS):
        # Row i contributes to the offsets 0 ... i-1: a sum over the later rows, taken from the end.
        per_row_HI = weight_HI / _normaliser(g_HD)
        later_HD = np.cumsum(per_row_HI[:, ::-1], axis=1)[:, ::-1] - per_row_HI
        g_HD = np.divide(mass_HD, later_HD, out=np.zeros_like(g_HD), where=later_HD > 0)
        g_HD /= g_HD.sum(1, keepdims=True)
    return g_HD


def _normaliser(g_HD: NDArray) -> NDArray:
    """Computes G(i) = sum_{d < i} g(d), with 1 for the rows 0 and 1, which carry no weight."""
    G_HI = np.ones_like(g_HD)
    G_HI[:, 2:] = np.cumsum(g_HD, axis=1)[:, 1:-1]
    return G_HI


def category_values(sums: Sums, counts_RS: NDArray | None = None) -> Iterator[NDArray]:
    """Yields the ratio of sums of each category, [R, M, H]; `counts_RS` weights each sentence (default: once).

    NaN if a statistic is undefined in a category, such as `kappa_local` in sentences shorter than the window.
    """
    if counts_RS is None:
        counts_RS = np.ones((1, len(sums.category)))
    for c in np.unique(sums.category):
        member = sums.category == c
        numerator, denominator = (
            np.tensordot(counts_RS[:, member], part[member], axes=1) for part in (sums.numerator, sums.denominator)
        )
        yield np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def over_categories(sums: Sums, counts_RS: NDArray | None = None) -> NDArray[np.float64]:
    """Mean of `category_values`, [R, M, H]: categories of long and of short sentences have the same weight."""
    total = present = 0.0
    for ratio in category_values(sums, counts_RS):
        total, present = total + np.nan_to_num(ratio), present + np.isfinite(ratio)
    return np.divide(total, present, out=np.full_like(total, np.nan), where=present > 0)


def macro_mean(sums: Sums, counts_RS: NDArray | None = None) -> dict[str, NDArray]:
    """`over_categories` by statistic, [R, H] each."""
    return by_name(over_categories(sums, counts_RS))


def first_replicate(values: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Returns the first replicate of each statistic, [H]; `macro_mean` without counts has only this one."""
    return {name: value[0] for name, value in values.items()}


def by_name(values: NDArray) -> dict[str, NDArray]:
    """Splits [..., M, H] into a dict of [..., H] by statistic."""
    return {name: values[..., k, :] for k, name in enumerate(NAMES)}
