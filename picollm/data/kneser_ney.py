"""Baseline for a model: a 4-gram with a cache of the row, counted in seconds from the same training rows.

Interpolated Kneser-Ney with modified discounts (Chen & Goodman 1999, section 3): the highest order uses counts, lower
orders the number of different tokens that precede an n-gram. The cache (Kuhn & De Mori 1990) mixes it with the
frequencies of the tokens before the target in the same row.

Shape suffixes: R row, T target (position within the row).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # tokens of 16 bits: what one uint64 holds
BITS = 16
SMALL = (0.5, 0.75, 0.75)  # discounts if a text has too few n-grams to estimate them
WEIGHTS = (0.0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)  # weights of the cache, tried on the other split
AT_ONCE = 1 << 22  # comparisons of the cache in one batch


@dataclass(frozen=True)
class Order:
    """One order's n-grams: sorted keys and counts; sorted keys of contexts, their totals and the mass of discounts."""

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]
    contexts: NDArray[np.uint64]
    totals: NDArray[np.float64]
    reserved: NDArray[np.float64]
    discounts: NDArray[np.float64]  # for counts 0, 1, 2, 3 and more


class KneserNey:
    """Probabilities from rows of ids [n, context + 1], consecutive pieces of one stream that share a token."""

    def __init__(self, train_rows: NDArray, vocab_size: int, order: int = ORDER) -> None:
        if vocab_size > 1 << BITS:
            raise ValueError(f"{vocab_size} tokens do not fit into {BITS} bits")
        self.vocab_size = vocab_size
        stream = np.concatenate([train_rows[:, :-1].ravel(), train_rows[-1:, -1]])
        keys, counts = np.unique(joined(windows_of(stream, order)), return_counts=True)
        self.orders = [order_of(keys, counts)]
        for n in range(order - 1, 0, -1):  # number of preceding tokens: one for each n-gram that is one longer
            longer = self.orders[0].keys if n == order - 1 else joined(windows_of(stream, n + 1), unique=True)
            suffixes = longer & np.uint64((1 << BITS * n) - 1)
            self.orders.insert(0, order_of(*np.unique(suffixes, return_counts=True)))

    def probability(self, rows: NDArray) -> NDArray[np.float64]:
        """Probability of each row's tokens after the first, [R, T], given those before them in the row."""
        probability_RT = np.full((len(rows), rows.shape[1] - 1), 1 / self.vocab_size)
        for n, order in enumerate(self.orders, start=1):
            first = max(n - 1, 1)  # the first target with n - 1 tokens before it
            if first > rows.shape[1] - 1:
                break
            keys = joined(np.lib.stride_tricks.sliding_window_view(rows[:, first - n + 1 :], n, axis=1))
            probability_RT[:, first - 1 :] = interpolated(order, keys, probability_RT[:, first - 1 :])
        return probability_RT


def windows_of(stream: NDArray, n: int) -> NDArray:
    return np.lib.stride_tricks.sliding_window_view(stream, n)


def joined(grams: NDArray, unique: bool = False) -> NDArray[np.uint64]:
    """Packs [..., n] tokens into one number each, the first in the highest bits."""
    keys = np.zeros(grams.shape[:-1], np.uint64)
    for k in range(grams.shape[-1]):
        keys = keys << np.uint64(BITS) | grams[..., k].astype(np.uint64)
    return np.unique(keys) if unique else keys


def order_of(keys: NDArray[np.uint64], counts: NDArray[np.int64]) -> Order:
    discounts = discounts_of(counts)
    of_context = keys >> np.uint64(BITS)
    starts = np.flatnonzero(np.r_[True, of_context[1:] != of_context[:-1]])
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    reserved = np.add.reduceat(discounts[np.minimum(counts, 3)], starts)
    return Order(keys, counts, of_context[starts], totals, reserved, discounts)


def discounts_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimates D(0) = 0, D(1), D(2), D(3 and more) from the numbers of n-grams that occur once to four times."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not all((n1, n2, n3, n4)):
        return np.array([0, *SMALL])
    y = n1 / (n1 + 2 * n2)
    discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return discounts if (discounts[1:] > 0).all() else np.array([0, *SMALL])


def interpolated(order: Order, keys: NDArray[np.uint64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """The order's probability of each n-gram; that of the `lower` order if the context was never seen."""
    at, known = found_at(order.contexts, keys >> np.uint64(BITS))
    place, seen = found_at(order.keys, keys)
    counts = np.where(seen, order.counts[place], 0)
    own = np.maximum(counts - order.discounts[np.minimum(counts, 3)], 0)
    return np.where(known, (own + order.reserved[at] * lower) / order.totals[at], lower)


def found_at(sorted_keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> tuple[NDArray, NDArray[np.bool_]]:
    """Returns the positions of the wanted keys and a mask of those that exist."""
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return at, sorted_keys[at] == wanted


def cache_probability(rows: NDArray) -> NDArray[np.float64]:
    """The share of the target among the tokens before it in its row, [R, T]."""
    R, T = len(rows), rows.shape[1] - 1
    share_RT, at_once = np.empty((R, T)), max(1, AT_ONCE // (T + 1) ** 2)
    before = np.tri(T, T + 1, dtype=bool)  # for target t, the tokens 0 ... t
    for start in range(0, R, at_once):
        part = rows[start : start + at_once]
        same = (part[:, 1:, None] == part[:, None, :]) & before
        share_RT[start : start + at_once] = same.sum(-1) / np.arange(1, T + 1)
    return share_RT


def kneser_ney_losses(
    train_rows: NDArray, rows: NDArray, other_rows: NDArray, vocab_size: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Computes nats per token of two splits, {"kneser_ney", "cache"} each; each split's cache weight is the best one of
    the other split."""
    model = KneserNey(train_rows, vocab_size)
    splits = [(model.probability(part), cache_probability(part)) for part in (rows, other_rows)]
    weights = [min(WEIGHTS, key=lambda w, split=split: mixed(*split, w)) for split in reversed(splits)]
    first, second = (
        {"kneser_ney": mixed(*split, 0.0), "cache": mixed(*split, weight)}
        for split, weight in zip(splits, weights, strict=True)
    )
    return first, second


def mixed(model: NDArray, cache: NDArray, weight: float) -> float:
    """Nats per token of the mixture."""
    return float(-np.log((1 - weight) * model + weight * cache).mean())
