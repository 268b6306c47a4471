"""Controls of the labels: shuffled rows, other thresholds, categories; and the sets of keys behind the tags."""

import numpy as np
import pytest
from refusals import refusal
from scipy.stats import entropy, false_discovery_control
from synthetic import column, content_uniform, offset, random_causal

from picollm.attention.controls import by_threshold, category_effects, shuffled
from picollm.attention.key_sets import SETS, key_sets
from picollm.attention.labels import LABELS, Thresholds, assign, counts, strongest_kappa
from picollm.attention.measures import NAMES, Sums, macro_mean, sentence_sums
from picollm.stats import false_discovery_rate, finite


def values_of(maps, category=None):
    found = macro_mean(sentence_sums(maps, category or [0] * len(maps), window=4))
    return {name: value[0] for name, value in found.items()}


def test_shuffling_keeps_sink_and_entropy_of_every_row_and_nothing_else():
    maps = [random_causal((3, n, n), seed=n, scale=2.0) for n in (7, 30, 60)]
    before = [weights.copy() for weights in maps]
    again = list(shuffled(maps, seed=1))
    for weights, copy, mixed in zip(maps, before, again, strict=True):
        assert np.array_equal(weights, copy) and not np.triu(mixed, 1).any()
        assert np.array_equal(mixed[:, :, 0], weights[:, :, 0])
        assert entropy(mixed, axis=-1) == pytest.approx(entropy(weights, axis=-1))
    assert all(np.array_equal(a, b) for a, b in zip(again, shuffled(maps, seed=1), strict=True))


def test_a_shuffled_positional_head_is_at_chance():
    maps = [np.stack([offset(40, 1), offset(40, 0), content_uniform(40)])] * 30
    assert (strongest_kappa(values_of(maps))[:2] > 0.9).all()
    assert np.abs(strongest_kappa(values_of(list(shuffled(maps, seed=0))))).max() < 0.08
    assert np.abs(values_of(list(shuffled(maps, seed=0)))["non_sink"] - values_of(maps)["non_sink"]).max() < 1e-12


def test_the_table_of_thresholds_has_the_rule_itself_in_its_middle():
    maps = [np.stack([0.35 * offset(20, 1) + 0.65 * content_uniform(20), content_uniform(20)])] * 3
    values, used = values_of(maps), Thresholds(0.25, 0.15, 0.8, 0.1)
    rows = by_threshold(values, used)
    assert len(rows) == 19 and all(sum(row["labels"]) == 2 for row in rows), "no broad share is above 1"
    assert len({(row["threshold"], row["value"]) for row in rows}) == len(rows)
    for name in ("kappa", "content", "broad", "sink"):
        inside = [row for row in rows if row["threshold"] == name and row["value"] == getattr(used, name)]
        assert [row["labels"] for row in inside] == [counts(assign(values, used)).tolist()]
    higher = [row["labels"] for row in rows if row["threshold"] == "kappa" and row["value"] > 0.35]
    assert all(labels[LABELS.index("local")] == 0 for labels in higher) and higher


def test_adjusted_p_are_those_of_scipy():
    p = np.random.default_rng(0).random((7, 9)) ** 3
    assert false_discovery_rate(p) == pytest.approx(false_discovery_control(p.ravel()).reshape(7, 9))


def noisy(generator, n, broad):
    """A head whose rows are uniform, or more or less on one key."""
    share = np.clip(broad + 0.1 * generator.standard_normal(), 0, 1)
    return share * content_uniform(n) + (1 - share) * offset(n, 1)


def test_a_category_on_which_a_head_differs_is_found_and_no_other():
    generator, lengths = np.random.default_rng(3), np.tile(np.arange(10, 40), 4)
    category = np.repeat(np.arange(4), 30)
    maps = [
        np.stack([noisy(generator, n, 0.2 if c == 2 else 0.8), noisy(generator, n, 0.5)])
        for c, n in zip(category, lengths, strict=True)
    ]
    found = category_effects(sentence_sums(maps, category, window=4), lengths, seed=1)
    assert found["q"].shape == (4, 2) and found["q"][2, 0] < 0.05 and found["difference"][2, 0] < -0.2
    assert (found["q"][:, 1] > 0.05).all()


@pytest.mark.heavy
def test_one_effect_among_the_pairs_of_a_whole_model_is_found():
    generator = np.random.default_rng(5)
    lengths, category = np.tile(np.arange(10, 34), 10), np.repeat(np.arange(10), 24)
    numerator = 0.5 + 0.1 * generator.standard_normal((240, len(NAMES), 56))
    numerator[category == 3, :, 7] += 0.3
    sums = Sums(numerator, np.ones_like(numerator), category)
    found = category_effects(sums, lengths, seed=1)
    assert found["q"][3, 7] < 0.05
    others = found["q"].copy()
    others[:, 7] = 1
    assert (others < 0.05).sum() <= 3


def test_a_head_that_is_all_sink_has_no_effect_and_does_no_harm():
    maps = [np.stack([column(n, 0), offset(n, 1)]) for n in range(8, 20)]
    category = np.repeat([0, 1], 6)
    found = category_effects(sentence_sums(maps, category, window=4), list(range(8, 20)), seed=1)
    assert np.isnan(found["q"][:, 0]).all() and np.isfinite(found["q"][:, 1]).all()


def entropy_share(weights):
    """Returns the broad share of one head on one sentence."""
    return values_of([weights[None]])["broad"][0]


@pytest.mark.heavy
def test_length_alone_is_no_effect_of_a_category():
    """A head that is broader in longer sentences, and one category that has most of those."""
    generator = np.random.default_rng(4)
    lengths = np.concatenate([generator.choice([10, 40], 60, p=p) for p in ((0.9, 0.1), (0.1, 0.9))])
    category = np.repeat([0, 1], 60)
    maps = [noisy(generator, n, 0.3 if n == 10 else 0.7)[None] for n in lengths]
    found = category_effects(sentence_sums(maps, category, window=4), lengths, seed=1)
    means = [
        np.mean([entropy_share(weights[0]) for weights, c in zip(maps, category, strict=True) if c == k])
        for k in (0, 1)
    ]
    assert means[1] - means[0] > 0.1, "the categories do differ"
    assert (found["q"] > 0.05).all() and np.abs(found["difference"]).max() < 0.1


def test_sets_of_keys_by_their_definitions():
    tokens = ["<|endoftext|>", "The", " owl", ",", " the", " owl", " sleeps", ".", " the", " owl"]
    ids = [50256, 464, 39610, 11, 262, 39610, 21501, 13, 262, 39610]
    found = dict(zip(SETS, key_sets(ids, tokens, {"pronoun": [8, 9], "antecedent": [1, 3]}), strict=True))
    for query in range(10):
        earlier = range(1, query + 1)
        expected = {
            "punctuation": {j for j in earlier if j in (3, 7)},
            "function-word": {j for j in earlier if j in (1, 4, 8)},
            "duplicate": {j for j in earlier if j < query and ids[j] == ids[query]},
            "after-duplicate": {j for j in earlier if 1 < j < query and ids[j - 1] == ids[query]},
            "rare": {j for j in earlier if ids[j] >= 10_000},
            "coreference": {1, 2} if query == 8 else set(),
        }
        assert {name: set(np.flatnonzero(rows[query])) for name, rows in found.items()} == expected, query


def test_kappa_of_a_set_is_chance_corrected():
    """Computed by hand, row after row; a uniform head is at 0 for any set."""
    generator = np.random.default_rng(0)
    ids = [0, *generator.integers(1, 6, 24)]
    sets = key_sets(ids, ["x"] * 25)
    weights = random_causal((2, 25, 25), seed=1, scale=2.0)
    found = macro_mean(sentence_sums([weights], [0], window=4, keys=[sets]))
    flat = macro_mean(sentence_sums([content_uniform(25, sink=0.3)[None]], [0], window=4, keys=[sets]))
    for name, set_QK in zip(SETS, sets, strict=True):
        numerator = denominator = 0.0
        for i in range(2, 25):
            m, w = set_QK[i].sum(), weights[:, i, 1:].sum(-1)
            if 0 < m < i:
                numerator += (weights[:, i] * set_QK[i]).sum(-1) - w * m / i
                denominator += w * (1 - m / i)
        if np.all(denominator == 0):
            assert np.isnan(found[f"kappa_{name}"]).all()
            continue
        assert found[f"kappa_{name}"][0] == pytest.approx(numerator / denominator), name
        assert flat[f"kappa_{name}"][0] == pytest.approx(0, abs=1e-12), name
    assert np.isfinite(found["kappa_duplicate"]).all() and np.isfinite(found["kappa_after-duplicate"]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_always_defined_is_refused_where_it_is_nan(value):
    assert finite(1 / 3) == 0.333333
    assert "not finite" in refusal(finite, value)
