"""What a model must beat: an add-one unigram and a Witten-Bell bigram, trained and tested on the same rows.

Witten & Bell 1991: P(w|v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)), with t(v) the number of types seen after v.
"""

from __future__ import annotations

import numpy as np


def ngram_losses(train_rows: np.ndarray, test_rows: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Mean loss in nats per target token, of rows [n, context + 1]: {"unigram": ..., "bigram": ...}."""
    counts = np.bincount(train_rows[:, 1:].ravel(), minlength=vocab_size).astype(np.float64)
    unigram = (counts + 1) / (counts.sum() + vocab_size)

    pairs, pair_counts = np.unique(pair_keys(train_rows, vocab_size), return_counts=True)
    first = (pairs // vocab_size).astype(np.int64)
    followers = np.bincount(first, minlength=vocab_size)  # t(v)
    seen = np.bincount(first, weights=pair_counts, minlength=vocab_size)  # c(v)

    wanted = pair_keys(test_rows, vocab_size)
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    joint = np.where(pairs[at] == wanted, pair_counts[at], 0)
    previous, target = test_rows[:, :-1].ravel(), test_rows[:, 1:].ravel()
    t, backoff = followers[previous], unigram[target]
    total = seen[previous] + t
    bigram = np.where(total > 0, (joint + t * backoff) / np.maximum(total, 1), backoff)
    return {"unigram": float(-np.log(backoff).mean()), "bigram": float(-np.log(bigram).mean())}


def pair_keys(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """One uint32 a neighbouring pair: 50,257 squared is below 2^32, which halves the memory of the sort."""
    return (rows[:, :-1].astype(np.uint32) * np.uint32(vocab_size) + rows[:, 1:]).ravel()
