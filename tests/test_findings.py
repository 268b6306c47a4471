"""Verdicts depend only on numbers, and there are none for a model that predicts worse than a 4-gram."""

import itertools

import numpy as np
import pytest

from picollm.attention.key_sets import SETS
from picollm.report.claims import FAILED, HELD, INCOMPARABLE, UNTESTABLE, VERDICTS, claim, decided
from picollm.report.findings import PROBES, contrast, metrics, parts_of, state_findings

STATISTICS = ("kappa_self", "kappa_local", "distance", "broad", *(f"kappa_{name}" for name in SETS))
LABELS = ("diagonal", "local", "token-specific", "content-based", "global", "sink", "mixed")


def heads_of(n_layers=8, n_heads=7, layered=True):
    """Heads: layer 0 attends to itself and nearby, the middle is broad, the last two look for tokens; or all equal."""
    generator, part = np.random.default_rng(0), parts_of(n_layers)
    means = {
        "kappa_self": (0.3, 0.0, 0.1), "kappa_local": (0.3, 0.1, 0.1), "distance": (0.2, 0.7, 0.7),
        "broad": (0.3, 0.9, 0.5), "kappa_punctuation": (0.0, 0.0, 0.2),
    }  # fmt: skip
    found = []
    for layer, number in itertools.product(range(n_layers), range(n_heads)):
        values = {
            name: means.get(name, (0, 0, 0))[part[layer]] * layered + 0.02 * generator.standard_normal()
            for name in STATISTICS
        }
        label = "diagonal" if part[layer] == 0 and layered else "global"
        found.append({
            "name": f"L{layer}H{number}", "layer": layer, "label": label,
            "statistics": {name: {"value": value} for name, value in values.items()},
        })  # fmt: skip
    return found


def make(*, layered=True, n_layers=8, n_heads=7, four_gram=6.9, p=0.001, clusters=True, interaction=0.01,
         ratio=(0.95, 1.05), layers_p=0.4, emerged=30, kept=2, testable=True):  # fmt: skip
    heads = heads_of(n_layers, n_heads, layered)
    null = {"heads": 168, "labels": dict.fromkeys(LABELS, 0) | {"global": 168}}
    relation = {"sentences": 24, "head": "L1H1", "effect": 0.1, "low": 0.05, "high": 0.2, "p": p, "strength": 0.8,
                "null_strength": 0.5}  # fmt: skip
    report = {
        "heads": heads, "n_layers": n_layers, "n_heads": n_heads, "null": null, "sharpened_null": null,
        "labels": dict.fromkeys(LABELS, {"share": 0.2, "low": 0.1, "high": 0.3}),
        "raw_labels": dict.fromkeys(LABELS, 8),
        "thresholds": {name: {"value": 0.1} for name in SETS},
        "relations": {"subject and verb": relation,
                      "article and noun": {"sentences": 3, "head": None, "p": None}},
    }  # fmt: skip
    families = {
        "k": 3, "silhouette": 0.4, "clusters": [{"size": 30}, {"size": 20}, {"size": 1}],
        "structure": {"found": clusters, "because": [] if clusters else ["the silhouette is below 0.25"], "p": 0.01,
                      "silhouette_one_cloud_95": 0.2},
        "by_layer": {"ratio": 1.0, "low": ratio[0], "high": ratio[1], "p": layers_p},
    }  # fmt: skip
    row, rival = {"accuracy": 0.7, "low": 0.6, "high": 0.8, "clusters": 12}, {"accuracy": 0.5}
    entry = {"testable": True, "p": p, "model": row, "chosen_on_one_half": row, "baselines": {"unigram": rival}}
    none = {"testable": False, "because": "of 16 groups of words the training text has 3", "clusters": 3}
    names = [name for name in PROBES if name != "coreference"]
    probes = {"coreference": entry if testable else none, "pairs": dict.fromkeys(names, entry if testable else none)}
    effects = ("kappa_max", "kappa_set", "induction")
    size = n_layers * n_heads
    snapshots = [
        {"effects": dict.fromkeys(effects, n), "heads": dict.fromkeys(effects, [0.0] * size)} for n in (0, emerged)
    ]
    over_time = {"snapshots": snapshots[:kept], "median_onset": dict.fromkeys(effects, 10.0)}
    ablation = {
        "heads": [{"delta": 0.05 if head["label"] == "diagonal" else 0.001} for head in heads],
        "interactions": {"pairs": 45, "redundant": 3, "serial": 1,
                         "mean": {"value": interaction, "low": 0.0, "high": 0.02, "p": p}},
    }  # fmt: skip
    training = {"validation_loss": 6.4, "four_gram_loss": four_gram, "four_gram_cache_loss": four_gram - 0.3}
    return report, families, probes, over_time, ablation, training


def verdicts(**changes):
    report = state_findings(*make(**changes), seed=1)
    return {row["claim"]: row["verdict"] for row in report["claims"]}, report


@pytest.mark.parametrize(
    ("text", "changes", "verdict"),
    [
        ("85.7 % of the heads are global", {}, INCOMPARABLE),
        ("its L6H3 is a diagonal head (ours: L5H2)", {}, INCOMPARABLE),
        ("early layers attend to the token itself", {}, HELD),
        ("early layers attend to the token itself", {"layered": False}, FAILED),
        ("early layers look less far back", {}, HELD),
        ("middle layers are dominated by broad attention", {}, HELD),
        ("late layers return to the token itself", {}, HELD),
        ("late layers look for particular tokens", {}, HELD),
        ("early layers matter most for the loss", {}, HELD),
        ("early layers attend to neighbours", {"n_layers": 1}, UNTESTABLE),
        ("early layers attend to neighbours", {"n_heads": 1}, UNTESTABLE),
        ("a head connects subject and verb", {}, HELD),
        ("a head connects subject and verb", {"p": 0.3}, FAILED),
        ("a head connects article and noun", {}, UNTESTABLE),
        (PROBES["agreement"], {}, HELD),
        (PROBES["agreement"], {"p": 0.3}, FAILED),
        (PROBES["coreference"], {"testable": False}, UNTESTABLE),
        ("heads come in families that attend alike", {}, HELD),
        ("heads come in families that attend alike", {"clusters": False}, FAILED),
        ("heads stand in for each other", {}, HELD),
        ("heads stand in for each other", {"interaction": -0.01}, FAILED),
        ("similarity is not tied to the layer", {}, HELD),
        (
            "similarity is not tied to the layer",
            {"ratio": (0.7, 1.2)},
            UNTESTABLE,
        ),  # no evidence of one is none of none
        ("similarity is not tied to the layer", {"layers_p": 0.01}, FAILED),
        ("the minority of specialised heads is crucial", {}, HELD),
        ("the minority of specialised heads is crucial", {"layered": False}, UNTESTABLE),
        ("positional heads emerge in training", {}, HELD),
        ("positional heads emerge in training", {"emerged": 2}, FAILED),
        ("positional heads emerge in training", {"kept": 0}, UNTESTABLE),
    ],
)
def test_each_verdict_follows_from_its_numbers(text, changes, verdict):
    assert verdicts(**changes)[0][text] == verdict


def test_heads_without_a_value_are_left_out():
    report, *rest = make()
    for head in report["heads"][:3]:
        head["statistics"]["kappa_self"]["value"] = None
    rows = {row["claim"]: row for row in state_findings(report, *rest, seed=1)["claims"]}
    assert rows["early layers attend to the token itself"]["verdict"] == HELD


def test_nothing_is_testable_with_a_model_that_is_no_better_than_a_4_gram():
    for four_gram in (6.4, 6.0):
        found, report = verdicts(four_gram=four_gram)
        assert set(found.values()) == {UNTESTABLE, INCOMPARABLE} and not report["testable"]
        assert all(row["numbers"] for row in report["claims"]), "the numbers are shown all the same"
        assert all(row["because"] for row in report["claims"])
    counted = metrics(report)
    assert counted["held"] == counted["did_not_hold"] == 0 and counted["cannot_be_tested"] + counted[
        "not_comparable"
    ] == len(report["claims"])
    assert (counted["nats_below_a_4_gram"], counted["nats_below_a_4_gram_with_cache"]) == (-0.4, -0.7)


def test_p_of_all_claims_share_one_false_discovery_rate():
    """5 % of 200 claims without an effect have p below .05, but hardly one run in twenty accepts any."""
    generator, believed = np.random.default_rng(0), 0
    for _ in range(100):
        rows = decided([claim("C", "a", "b", p=p) for p in generator.random(200)])
        believed += any(row["verdict"] == HELD for row in rows)
    assert believed <= 12
    rows = decided([claim("C", "real", "b", p=1e-5)] + [claim("C", "a", "b", p=p) for p in generator.random(20)])
    assert rows[0]["verdict"] == HELD and rows[0]["q"] > rows[0]["p"]
    assert decided([claim("A", "a", "b", verdict=INCOMPARABLE)])[0]["verdict"] == INCOMPARABLE
    assert {row["verdict"] for row in rows} <= set(VERDICTS)


def test_a_contrast_by_brute_force():
    values, these = np.array([3.0, 2.5, 1.0, 0.5, 2.0]), np.array([True, True, False, False, False])
    means, p = contrast(values, these, ~these, seed=0)
    every = [values[list(pair)].mean() - np.delete(values, pair).mean() for pair in itertools.combinations(range(5), 2)]
    assert means == (2.75, pytest.approx(3.5 / 3)) and p == pytest.approx(
        np.mean(np.array(every) >= every[0]), abs=0.02
    )
    assert contrast(values, these, np.zeros(5, dtype=bool), seed=0)[1] == 1


@pytest.mark.heavy
def test_p_is_uniform_where_layers_do_not_matter():
    generator, early = np.random.default_rng(2), np.repeat(np.arange(8), 7) < 2
    p = np.array([contrast(generator.standard_normal(56), early, ~early, seed=s)[1] for s in range(200)])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.04) and p.mean() == pytest.approx(0.5, abs=0.07)


def test_early_middle_and_late_layers():
    assert parts_of(8).tolist() == [0, 0, 1, 1, 1, 1, 2, 2] and parts_of(3).tolist() == [0, 1, 2]
    assert parts_of(12).tolist() == [0] * 3 + [1] * 6 + [2] * 3
