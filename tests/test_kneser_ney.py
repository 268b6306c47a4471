"""Kneser-Ney and its cache compared with the definitions in plain loops, and with the laws of probability."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from picollm.data.kneser_ney import (
    KneserNey,
    cache_probability,
    discounts_of,
    interpolated,
    joined,
    kneser_ney_losses,
    mixed,
)

V = 9


def rows_of(n, seed=0, vocab=V, context=12):
    """Consecutive rows of a stream in which some tokens, and some pairs, are common."""
    generator = np.random.default_rng(seed)
    stream = generator.zipf(1.4, n * context + 1) % vocab
    stream[1::5] = (stream[0::5][: len(stream[1::5])] + 1) % vocab
    return np.lib.stride_tricks.sliding_window_view(stream, context + 1)[::context].astype(np.uint16)


class Slow:
    """Chen & Goodman's formulas with dictionaries."""

    def __init__(self, rows, order):
        stream = [*rows[:, :-1].ravel().tolist(), int(rows[-1, -1])]
        grams = {n: Counter(zip(*(stream[i:] for i in range(n)), strict=False)) for n in range(1, order + 1)}
        self.tables = {}
        for n in range(1, order + 1):
            counts = grams[n] if n == order else Counter(gram[1:] for gram in grams[n + 1])
            discounts = discounts_of(np.array(list(counts.values())))
            contexts = defaultdict(Counter)
            for gram, count in counts.items():
                contexts[gram[:-1]][gram[-1]] = count
            self.tables[n] = contexts, discounts

    def probability(self, history, target):
        p = 1 / V
        for n, (contexts, discounts) in self.tables.items():
            if len(history) < n - 1:
                break
            after = contexts.get(tuple(history[len(history) - n + 1 :]))
            if after is None:
                continue
            total = sum(after.values())
            kept = max(after[target] - discounts[min(after[target], 3)], 0)
            freed = sum(discounts[min(count, 3)] for count in after.values())
            p = kept / total + freed / total * p
        return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [2, 60])  # of two rows too few n-grams to estimate discounts
def test_every_probability_is_that_of_the_definition(order, n):
    train, test = rows_of(n), rows_of(4, seed=1)
    slow = Slow(train, order)
    expected = [[slow.probability(row[:t], row[t]) for t in range(1, len(row))] for row in test.astype(int).tolist()]
    assert KneserNey(train, V, order).probability(test) == pytest.approx(np.array(expected))


def test_probabilities_of_all_tokens_sum_to_one():
    model, history = KneserNey(rows_of(60), V), rows_of(1, seed=3)[:, :7]
    every = np.concatenate([np.repeat(history, V, axis=0), np.arange(V, dtype=np.uint16)[:, None]], axis=1)
    assert model.probability(every)[:, -1].sum() == pytest.approx(1)
    assert cache_probability(every)[:, -1].sum() == pytest.approx(1)


def test_the_cache_is_the_share_of_the_target_before_it():
    rows = np.array([[1, 2, 1, 1, 3], [4, 4, 4, 0, 4]], dtype=np.uint16)
    assert cache_probability(rows) == pytest.approx(np.array([[0, 1 / 2, 2 / 3, 0], [1, 1, 0, 3 / 4]]))


def test_the_largest_ids_do_not_run_into_each_other():
    rows = np.array([[50256, 65535 % 50257, 50256, 0, 50256]], dtype=np.uint16)
    assert [int(k) for k in joined(rows[:, :4])] == [((50256 << 16 | 65535 % 50257) << 16 | 50256) << 16]
    assert KneserNey(np.repeat(rows, 3, axis=0), 50257).probability(rows).min() > 0


def test_a_longer_order_knows_what_a_shorter_one_can_not():
    """The third token is the first one's successor: no bigram sees it."""
    generator = np.random.default_rng(0)
    stream = []
    for _ in range(4000):
        a, b = generator.integers(V, size=2)
        stream += [a, b, (a + 1) % V]
    rows = np.lib.stride_tricks.sliding_window_view(np.array(stream, dtype=np.uint16), 31)[::30]
    two, three = (-np.log(KneserNey(rows[:300], V, order).probability(rows[300:])).mean() for order in (2, 3))
    assert three < two - 0.2 and two == pytest.approx(math.log(V), abs=0.1)


def test_the_weight_of_the_cache_is_never_tuned_on_the_split_that_it_is_used_on():
    train, own, other = rows_of(60), rows_of(20, seed=1), rows_of(20, seed=2)
    repeating = np.tile(other[:, :4], 4)[:, :13]
    first, second = kneser_ney_losses(train, own, repeating, V)
    model = KneserNey(train, V)
    splits = [(model.probability(part), cache_probability(part)) for part in (own, repeating)]
    assert first["kneser_ney"] == pytest.approx(mixed(*splits[0], 0.0))
    assert first["cache"] == pytest.approx(mixed(*splits[0], 0.3)), "the largest weight is best on the repeats"
    assert second["cache"] > min(mixed(*splits[1], w) for w in (0.1, 0.3)) - 1e-12


def test_a_context_never_seen_leaves_the_lower_order():
    model = KneserNey(np.zeros((3, 13), np.uint16), V, order=2)
    keys = np.array([3 << 16 | 1], np.uint64)
    assert interpolated(model.orders[1], keys, np.array([0.25])) == pytest.approx([0.25])
