"""Baselines for a model: an add-one unigram and a Witten-Bell bigram, trained and tested on the same rows.

Witten & Bell 1991: P(w|v) = (c(v, w) + t(v) P(w)) / (c(v) + t(v)), with t(v) the number of types seen after v.
"""

from __future__ import annotations

import numpy as np


class NGrams:
    """Both models, trained on rows of ids [n, context + 1]."""

    def __init__(self, train_rows: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        counts = np.bincount(train_rows[:, 1:].ravel(), minlength=vocab_size).astype(np.float64)
        self.probability = (counts + 1) / (counts.sum() + vocab_size)
        keys = self._pair_keys(train_rows[:, :-1].ravel(), train_rows[:, 1:].ravel())
        self.pairs, self.pair_counts = np.unique(keys, return_counts=True)
        first = (self.pairs // vocab_size).astype(np.int64)
        self.followers = np.bincount(first, minlength=vocab_size)  # t(v)
        self.seen = np.bincount(first, weights=self.pair_counts, minlength=vocab_size)  # c(v)

    def _pair_keys(self, previous: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Packs each pair into one uint32: 50,257 squared is below 2^32, which halves the memory of the sort."""
        return previous.astype(np.uint32) * np.uint32(self.vocab_size) + target.astype(np.uint32)

    def unigram(self, target: np.ndarray) -> np.ndarray:
        """Nats of each token."""
        return -np.log(self.probability[target])

    def bigram(self, previous: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Nats of each token after the one before it; both arrays are flat."""
        wanted = self._pair_keys(previous, target)
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        joint = np.where(self.pairs[at] == wanted, self.pair_counts[at], 0)
        t, backoff = self.followers[previous], self.probability[target]
        total = self.seen[previous] + t
        return -np.log(np.where(total > 0, (joint + t * backoff) / np.maximum(total, 1), backoff))


def ngram_losses(train_rows: np.ndarray, test_rows: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Mean loss in nats per target token over rows [n, context + 1]: {"unigram": ..., "bigram": ...}."""
    models = NGrams(train_rows, vocab_size)
    previous, target = test_rows[:, :-1].ravel(), test_rows[:, 1:].ravel()
    return {"unigram": float(models.unigram(target).mean()), "bigram": float(models.bigram(previous, target).mean())}
