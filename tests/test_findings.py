"""Verdicts follow from numbers alone, and there is none for a model that knows less than a 4-gram."""

import itertools

import numpy as np
import pytest

from picollm.report.findings import NOT_SUPPORTED, NOT_TESTABLE, SUPPORTED, metrics, state_findings, variance_between


def make(
    low=0.3, high=0.5, layered=True, stable=True, layers=(0.4, 0.05), four_gram=6.9, shows=True, emerged=30, kept=2
):
    generator = np.random.default_rng(0)
    heads = [
        {
            "layer": layer,
            "statistics": {
                name: {"value": (layer / 8 if layered else 0.5) + 0.02 * generator.standard_normal()}
                for name in ("broad", "positional")
            },
        }
        for layer in range(8)
        for _ in range(7)
    ]
    census = {
        "heads": heads,
        "labels": {"global": {"share": (low + high) / 2, "low": round(low, 6), "high": high}},
        "null": {"heads": 168, "labels": {"global": 168}},
        "raw_labels": {"global": 28},
    }
    clusters = {
        "k": 2,
        "mean_distance": 0.3,
        "noise": {"mean_absolute_difference": 0.02},
        "agreement": {"layers": {"adjusted_rand": 0.01, "low": -0.02, "p": layers[0], "high": layers[1]}},
        "clusters": [
            {"size": 30, "stable": stable, "mean_distance": 0.1},
            {"size": 16, "stable": True, "mean_distance": 0.1},
            {"size": 10, "stable": True, "mean_distance": 0.2},
        ],
    }
    row = {"accuracy": 0.7, "low": 0.6, "high": 0.8, "items": 100}
    rival = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "items": 100}
    probes = {
        "coreference": {"chosen_on_one_half": row, "best_of_all": row | {"p": 0.001}, "baselines": {"first": rival},
                        "untrained": rival, "shows": shows},
        "pairs": {"agreement": {"model": row, "baselines": {"unigram": rival}, "shows": shows}},
    }  # fmt: skip
    names = ("kappa_max", "content", "induction")
    snapshots = [{"effects": dict.fromkeys(names, n), "heads": dict.fromkeys(names, [0.0] * 56)} for n in (0, emerged)]
    over_time = {"snapshots": snapshots[:kept], "median_onset": dict.fromkeys(names, 10.0)}
    training = {"validation_loss": 6.4, "four_gram_loss": four_gram, "four_gram_cache_loss": four_gram - 0.3}
    return census, clusters, probes, over_time, training


def verdicts(**changes):
    report = state_findings(*make(**changes), seed=1)
    return [claim["verdict"] for claim in report["claims"]], report


@pytest.mark.parametrize(
    ("place", "changes", "verdict"),
    [
        (0, {}, NOT_SUPPORTED),
        (0, {"low": 0.8, "high": 0.9}, SUPPORTED),
        (0, {"low": 48 / 56, "high": 0.9}, SUPPORTED),  # the bound itself, rounded in heads.json
        (0, {"low": 0.5, "high": 0.9}, NOT_TESTABLE),  # an interval that holds anything
        (1, {}, SUPPORTED),
        (1, {"layered": False}, NOT_SUPPORTED),
        (3, {}, SUPPORTED),
        (3, {"shows": False}, NOT_SUPPORTED),
        (4, {}, SUPPORTED),
        (5, {}, SUPPORTED),
        (5, {"stable": False}, NOT_SUPPORTED),
        (6, {}, SUPPORTED),
        (6, {"layers": (0.4, 0.3)}, NOT_TESTABLE),  # no evidence is not evidence of none
        (6, {"layers": (0.01, 0.3)}, NOT_SUPPORTED),
        (7, {}, SUPPORTED),
        (7, {"emerged": 1}, NOT_SUPPORTED),  # of 56, one is expected to be above 99 % of untrained heads
        (7, {"kept": 0}, NOT_TESTABLE),
    ],
)
def test_each_verdict_follows_from_its_numbers(place, changes, verdict):
    found, _ = verdicts(**changes)
    assert found[place] == verdict
    base, _ = verdicts()
    moved = next(({*group} for group in ((1, 2), (3, 4), (7, 8, 9)) if place in group), {place})
    assert [k for k in range(10) if found[k] != base[k]] in ([], sorted(moved))


def test_one_blob_of_heads_is_no_family():
    census, clusters, *rest = make()
    clusters["clusters"] = [{"size": 55, "stable": True, "mean_distance": 0.1}]
    redundant, independent = state_findings(census, clusters, *rest, seed=1)["claims"][5:7]
    assert redundant["verdict"] == NOT_SUPPORTED and independent["verdict"] == NOT_TESTABLE


def test_heads_without_a_value_are_left_out():
    census, clusters, *rest = make(layered=False)
    census["heads"][3]["statistics"]["broad"]["value"] = None
    assert state_findings(census, clusters, *rest, seed=1)["claims"][1]["verdict"] == NOT_SUPPORTED


def test_nothing_is_testable_with_a_model_that_is_no_better_than_a_4_gram():
    for four_gram in (6.4, 6.0):
        found, report = verdicts(four_gram=four_gram)
        assert set(found) == {NOT_TESTABLE} and not report["testable"]
        assert all(claim["numbers"] for claim in report["claims"]), "the numbers are shown all the same"
    assert metrics(report) == {
        "testable": 0, "nats_below_a_4_gram": -0.4, "nats_below_a_4_gram_with_cache": -0.7,
        "supported": 0, "not_supported": 0, "not_testable": 10,
    }  # fmt: skip


def test_variance_between_groups_by_brute_force():
    values, groups = np.array([1.0, 2.0, 4.0, 4.5, 7.0]), np.array([0, 0, 1, 1, 1])

    def explained(found):
        total = ((found - found.mean()) ** 2).sum()
        return sum((groups == g).sum() * (found[groups == g].mean() - found.mean()) ** 2 for g in (0, 1)) / total

    every = [explained(np.array(order)) for order in itertools.permutations(values)]
    share, p = variance_between(values, groups, seed=0)
    assert share == pytest.approx(explained(values))
    assert p == pytest.approx(np.mean(np.array(every) >= share - 1e-12), abs=0.02)
    assert variance_between(np.ones(5), groups, seed=0) == (0.0, 1.0)


def test_p_is_uniform_where_layers_do_not_matter():
    generator, layers = np.random.default_rng(2), np.repeat(np.arange(8), 7)
    p = [variance_between(generator.standard_normal(56), layers, seed=s)[1] for s in range(200)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.04) and np.mean(p) == pytest.approx(0.5, abs=0.07)
