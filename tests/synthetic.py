"""Attention maps whose statistics are known in closed form, for the tests of the attention chapter."""

import numpy as np


def uniform(n):
    """Causal uniform attention over all positions, the sink included."""
    return np.tri(n) / np.arange(1, n + 1)[:, None]


def content_uniform(n, sink=0.0):
    """Attention with `sink` on position 0 and the rest uniform on positions 1 to i."""
    weights = np.zeros((n, n))
    weights[0, 0] = 1
    for i in range(1, n):
        weights[i, 0], weights[i, 1 : i + 1] = sink, (1 - sink) / i
    return weights


def offset(n, d, sink=0.0):
    """Attention with `sink` on position 0 and the rest on offset d, or on the nearest existing key."""
    weights = np.zeros((n, n))
    weights[0, 0] = 1
    for i in range(1, n):
        weights[i, 0] += sink
        weights[i, max(i - d, 1)] += 1 - sink
    return weights


def column(n, key):
    """Attention to one position only, or to the token itself before that position."""
    weights = np.eye(n)
    weights[key:] = 0
    weights[key:, key] = 1
    return weights


def rotating(n, seed):
    """Attention of each row to one random key: sharp, and neither positional nor local."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((n, n))
    weights[0, 0] = 1
    for i in range(1, n):
        weights[i, generator.integers(1, i + 1)] = 1
    return weights


def random_causal(shape, seed, scale=1.0):
    """Softmax of Gaussian scores under the causal mask; `shape` ends in [n, n]."""
    scores = scale * np.random.default_rng(seed).standard_normal(shape)
    weights = np.exp(scores) * np.tri(shape[-1])
    return weights / weights.sum(-1, keepdims=True)
