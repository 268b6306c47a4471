"""Compares each claim that the original made about its heads with this run's numbers: a verdict, never a sentence.

picollm.report.claims explains the verdicts. A 4-gram sees the last three tokens; nothing can be tested with a model
that predicts no better than one, because attention to anything further back did not pay.

The original counts layers and heads from 1, this project from 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import SETS
from picollm.attention.relations import LEAST_SENTENCES
from picollm.attention.structure import LEAST_HEADS
from picollm.report.claims import (
    ALPHA,
    FAILED,
    HELD,
    INCOMPARABLE,
    UNTESTABLE,
    Claim,
    DecidedClaim,
    claim,
    decided,
    untestable,
)
from picollm.report.tested_probes import tested_probes
from picollm.stats import finite, number_or_none
from picollm.wording import count

if TYPE_CHECKING:
    from picollm.attention.clusters import ClustersReport
    from picollm.attention.heads import HeadsReport
    from picollm.mechanisms.ablation import AblationReport
    from picollm.mechanisms.emergence import EmergenceReport
    from picollm.mechanisms.probes import ProbesReport
    from picollm.model.training_report import TrainingReport

FORMAT = 2
ORIGINAL_SHARES = {"global": 48 / 56, "diagonal": 5 / 56, "local": 2 / 56, "token-specific": 1 / 56}
ORIGINAL_HEADS = {"diagonal": (5, 2), "local": (4, 2), "token-specific": (7, 2)}  # its L6H3, L5H3, L8H3
ALIKE = 0.1  # a ratio of distances within and between layers this close to 1 counts as no difference
FEW_LAYERS = 2  # a contrast of this many layers or fewer also lists the mean of each: one layer may make the whole
EMERGED = 0.05  # share of heads with an effect at which it counts as having emerged in training
PERMUTATIONS = 9999


def state_findings(
    heads: HeadsReport,
    clusters: ClustersReport,
    probes: ProbesReport,
    over_time: EmergenceReport,
    ablation: AblationReport,
    training: TrainingReport,
    *,
    seed: int,
) -> FindingsReport:
    """Returns the contents of findings.json, from the reports of the same names."""
    margin = training["four_gram_loss"] - training["validation_loss"]
    beyond_cache = training["four_gram_cache_loss"] - training["validation_loss"]
    testable = margin > 0
    claims = [
        *overall_shares(heads),
        *by_layer(heads, ablation, seed),
        *by_category(heads, probes),
        *redundancy(clusters, ablation),
        *conclusions(heads, ablation, over_time, seed),
    ]
    return {
        "format": FORMAT,
        "testable": testable,
        "because": f"the model predicts {'better' if testable else 'no better'} than a 4-gram",
        "nats_below_a_4_gram": finite(margin),
        "nats_below_a_4_gram_with_cache": finite(beyond_cache),
        "claims": decided(claims if testable else [untestable(row) for row in claims]),
    }


class FindingsReport(TypedDict):
    """Contents of findings.json."""

    format: int
    testable: bool
    because: str
    nats_below_a_4_gram: float
    nats_below_a_4_gram_with_cache: float
    claims: list[DecidedClaim]


def overall_shares(heads: HeadsReport) -> list[Claim]:
    null, sharpened, by_name = heads["null"], heads["sharpened_null"], {head["name"]: head for head in heads["heads"]}
    why = "the share depends on the recipe of training more than on anything else: see docs/training.md"
    claims = [
        claim(
            "A",
            f"{share:.1%} of the heads are {label}".replace("%", " %"),
            "none: this model's share, its interval over sentences, the uncorrected rule, untrained models beside it",
            verdict=INCOMPARABLE,
            because=why,
            share=heads["labels"][label]["share"],
            low=heads["labels"][label]["low"],
            high=heads["labels"][label]["high"],
            raw_rule=number_or_none(heads["raw_labels"][label] / len(heads["heads"])),
            untrained_models=number_or_none(null["labels"][label] / null["heads"]) if null["heads"] else None,
            sharpened_untrained_models=number_or_none(sharpened["labels"][label] / sharpened["heads"])
            if sharpened["heads"]
            else None,
        )
        for label, share in ORIGINAL_SHARES.items()
    ]
    for label, (layer, number) in ORIGINAL_HEADS.items():
        here = by_name.get(f"L{layer}H{number}")
        claims.append(
            claim(
                "A",
                f"its L{layer + 1}H{number + 1} is a {label} head (ours: L{layer}H{number})",
                "none: heads of two trainings have nothing in common but their numbers",
                verdict=INCOMPARABLE,
                because="another training gives the same number another role",
                class_here=here["label"] if here else None,
            )
        )
    return claims


def parts_of(n_layers: int) -> NDArray[np.int64]:
    """Returns 0, 1 or 2 for each layer: early (the first quarter), middle, late (the last quarter)."""
    quarter = max(1, n_layers // 4)
    part = np.ones(n_layers, dtype=np.int64)
    part[:quarter], part[n_layers - quarter :] = 0, 2
    return part


def listed_layers(layers: NDArray[np.int64]) -> str:
    """Names layers, with a dash in runs: layers 0–1, layers 0–1 and 6–7, layer 3."""
    if not len(layers):
        return "no layers"
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    names = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"layer{'s' * (len(layers) > 1)} {' and '.join(names)}"


def by_layer(heads: HeadsReport, ablation: AblationReport, seed: int) -> list[Claim]:
    """Tests the original's description of early, middle and late layers, as directional contrasts."""
    early, middle, late = ((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1))
    statistic = {name: values_of(heads, name) for name in ("kappa_self", "kappa_local", "distance", "broad")}
    statistic["kappa_set"] = strongest_sets(heads)
    statistic["loss"] = np.array([head["delta"] for head in ablation["heads"]])
    rows = [
        ("early layers attend to the token itself", "kappa_self", early, 1),
        ("early layers attend to neighbours", "kappa_local", early, 1),
        ("early layers look less far back", "distance", early, -1),
        ("middle layers are dominated by broad attention", "broad", middle, 1),
        ("late layers return to the token itself", "kappa_self", ((2,), (1,)), 1),
        ("late layers look for particular tokens", "kappa_set", late, 1),
        ("early layers matter most for the loss", "loss", early, 1),
    ]
    layer_H = np.array([head["layer"] for head in heads["heads"]])
    claims = []
    part_L = parts_of(heads["n_layers"])
    for text, name, (these, those), sign in rows:
        here, there = (np.flatnonzero(np.isin(part_L, parts)) for parts in (these, those))
        test = (
            f"mean {name.replace('_', ' ')} of {listed_layers(here)} against {listed_layers(there)}, heads shuffled "
            f"over layers, p < {ALPHA}"
        )
        if heads["n_layers"] < 3 or heads["n_heads"] < 2:
            why = "it takes three layers of two heads or more"
            claims.append(claim("B", text, test, verdict=UNTESTABLE, because=why))
            continue
        means, p = contrast(sign * statistic[name], np.isin(layer_H, here), np.isin(layer_H, there), seed=seed)
        averages = (number_or_none(sign * mean) for mean in means)
        numbers: dict[str, Any] = dict(zip(("these_layers", "others"), averages, strict=True))
        if len(here) <= FEW_LAYERS:
            numbers |= {f"layer_{n}": number_or_none(np.nanmean(statistic[name][layer_H == n])) for n in here}
        claims.append(claim("B", text, test, p=p, **numbers))
    return claims


def values_of(heads: HeadsReport, name: str) -> NDArray[np.float64]:
    return np.array([head["statistics"][name]["value"] for head in heads["heads"]], dtype=float)


def strongest_sets(heads: HeadsReport) -> NDArray[np.float64]:
    """Returns the largest kappa of a set of keys for each head, in multiples of its threshold."""
    times = [values_of(heads, f"kappa_{name}") / heads["thresholds"][name]["value"] for name in SETS]
    return np.fmax.reduce(times)


def contrast(values_H: NDArray, these_H: NDArray, those_H: NDArray, *, seed: int) -> tuple[tuple[float, float], float]:
    """Returns the means of two groups of heads, and the one-sided permutation p of a difference this large; heads
    without a value are in neither group."""
    known_H = np.isfinite(values_H)
    these, those = values_H[these_H & known_H], values_H[those_H & known_H]
    if not len(these) or not len(those):
        return (float("nan"), float("nan")), 1.0
    pooled = np.concatenate([these, those])
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.tile(pooled, (PERMUTATIONS, 1)), axis=1)
    observed = these.mean() - those.mean()
    differences = drawn[:, : len(these)].mean(1) - drawn[:, len(these) :].mean(1)
    p = (1 + (differences >= observed - 1e-12).sum()) / (1 + PERMUTATIONS)
    return (float(these.mean()), float(those.mean())), float(p)


def by_category(heads: HeadsReport, probes: ProbesReport) -> list[Claim]:
    """Tests if heads, or the whole model, treat linguistic categories as language does."""
    claims = []
    for kind, row in heads["relations"].items():
        text, test = (
            f"a head connects {kind}",
            "the later word attends to the earlier one more than its offset explains, and more than other positions do:"
            f" the best of all heads, by flipping the signs of sentences (the best head in each draw), p < {ALPHA}, and"
            " stronger than every sharpened untrained head",
        )
        if row["p"] is None:
            why = f"only {count(row['sentences'], 'sentence')} with these marks; {LEAST_SENTENCES} are needed"
            claims.append(claim("C", text, test, verdict=UNTESTABLE, because=why, sentences=row["sentences"]))
            continue
        numbers: dict[str, Any] = {name: value for name, value in row.items() if name not in ("p", "null_p")}
        if row["null_strength"] is None or row["strength"] > row["null_strength"]:
            claims.append(claim("C", text, test, p=row["p"], **numbers))
        else:
            why = "a sharpened untrained head does as much"
            claims.append(claim("C", text, test, p=row["p"], verdict=FAILED, because=why, **numbers))
    return [*claims, *probe_claims(probes)]


PROBES = {
    "coreference": "a head looks from a pronoun to the one of two nouns that it means",
    "agreement": "the model expects a verb in the number of its subject, not of a nearer noun",
    "negation": "the model expects words that only a negation allows where there is one",
    "inversion": "the model expects the base form of a verb after an inverted did",
    "pronouns": "the model expects the pronoun of the gender that was mentioned",
}


def probe_claims(probes: ProbesReport) -> list[Claim]:
    test = (
        f"more often right than chance, rules without language and untrained models, paired over clusters, p < {ALPHA}"
    )
    tested, claims = tested_probes(probes), []
    for name, entry in {"coreference": probes["coreference"], **probes["pairs"]}.items():
        if entry["testable"] is False:
            why, clusters = entry["because"], entry["clusters"]
            claims.append(claim("C", PROBES[name], test, verdict=UNTESTABLE, because=why, clusters=clusters))
            continue
        own, _ = tested[name]
        claims.append(
            claim(
                "C", PROBES[name], test, p=entry["p"], accuracy=own["accuracy"], low=own["low"], high=own["high"],
                clusters=own["clusters"], best_rival=max(row["accuracy"] for row in entry["baselines"].values()),
            )
        )  # fmt: skip
    return claims


def families(clusters: ClustersReport) -> int:
    """Counts the clusters of LEAST_HEADS heads or more, if there are clusters at all."""
    return sum(row["size"] >= LEAST_HEADS for row in clusters["clusters"]) if clusters["structure"]["found"] else 0


def redundancy(clusters: ClustersReport, ablation: AblationReport) -> list[Claim]:
    shape, layers, pairs = clusters["structure"], clusters["by_layer"], ablation["interactions"]
    claims = [
        claim(
            "D",
            "heads come in families that attend alike",
            "clusters that one cloud without clusters does not give, of three heads or more, with a silhouette of .25",
            verdict=HELD if shape["found"] else FAILED,
            because="; ".join(shape["because"]),
            families=families(clusters),
            silhouette=clusters["silhouette"],
            silhouette_of_one_cloud=shape["silhouette_one_cloud_95"],
            p_of_one_cloud=shape["p"],
        )
    ]
    text, test = (
        "heads stand in for each other",
        f"pairs of heads cost more together than one by one: mean interaction above 0, p < {ALPHA}",
    )
    if pairs is None:
        claims.append(claim("D", text, test, verdict=UNTESTABLE, because="the model has one head"))
    else:
        mean = pairs["mean"]
        p = mean["p"] if mean["value"] > 0 else 1.0
        numbers = {"pairs": pairs["pairs"], "redundant": pairs["redundant"], "serial": pairs["serial"]}
        claims.append(claim("D", text, test, p=p, mean=mean["value"], low=mean["low"], high=mean["high"], **numbers))
    text, test = (
        "similarity is not tied to the layer",
        f"distances within layers are those between layers: the interval of their ratio is within {ALIKE} of 1; it"
        f" fails if heads shuffled over layers rarely give such a ratio, p < {ALPHA}",
    )
    if layers is None:
        claims.append(claim("D", text, test, verdict=UNTESTABLE, because="it takes two layers of two heads or more"))
        return claims
    alike = 1 - ALIKE < layers["low"] and layers["high"] < 1 + ALIKE
    verdict = FAILED if layers["p"] < ALPHA else HELD if alike else UNTESTABLE
    why = "" if verdict != UNTESTABLE else "the interval is too wide to say that there is no difference"
    return [*claims, claim("D", text, test, verdict=verdict, because=why, **layers)]


def conclusions(heads: HeadsReport, ablation: AblationReport, over_time: EmergenceReport, seed: int) -> list[Claim]:
    """Tests the original's conclusions: specialists are crucial; roles emerge from data."""
    special = np.isin([head["label"] for head in heads["heads"]], ["diagonal", "local", "token-specific"])
    text, test = (
        "the minority of specialised heads is crucial",
        f"a diagonal, local or token-specific head costs more than another: mean loss without it, p < {ALPHA}",
    )
    if special.all() or not special.any():
        claims = [
            claim("conclusions", text, test, verdict=UNTESTABLE, because="all heads are of one kind in this sense")
        ]
    else:
        loss_H = np.array([head["delta"] for head in ablation["heads"]])
        means, p = contrast(loss_H, special, ~special, seed=seed)
        numbers = {"specialised": int(special.sum()), "their_mean": number_or_none(means[0])}
        claims = [claim("conclusions", text, test, p=p, **numbers, mean_of_others=number_or_none(means[1]))]
    return [*claims, *emerged(over_time)]


def emerged(over_time: EmergenceReport) -> list[Claim]:
    """Tests if training makes heads with effects that were rarer at the first snapshot."""
    snapshots, claims = over_time["snapshots"], []
    for name, kind in (("kappa_max", "positional"), ("kappa_set", "token-specific"), ("induction", "induction")):
        text = f"{kind} heads emerge in training"
        test = (
            f"at the last snapshot at least {100 * EMERGED:.0f} % of the heads have the effect, whatever their class; "
            "at the first snapshot fewer do"
        )
        if len(snapshots) < 2:
            claims.append(
                claim("conclusions", text, test, verdict=UNTESTABLE, because="the training kept no snapshots")
            )
            continue
        least = max(1, math.ceil(EMERGED * len(snapshots[-1]["heads"][name])))
        first, last = (snapshots[k]["effects"][name] for k in (0, -1))
        verdict = HELD if first < least <= last else FAILED
        claims.append(
            claim(
                "conclusions", text, test, verdict=verdict,
                heads_at_first=first, heads_at_last=last, median_onset_step=over_time["median_onset"][name],
            )
        )  # fmt: skip
    return claims


def metrics(report: FindingsReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`."""
    verdicts = [entry["verdict"] for entry in report["claims"]]
    return {
        "testable": int(report["testable"]),
        "nats_below_a_4_gram": report["nats_below_a_4_gram"],
        "nats_below_a_4_gram_with_cache": report["nats_below_a_4_gram_with_cache"],
        "held": verdicts.count(HELD),
        "did_not_hold": verdicts.count(FAILED),
        "cannot_be_tested": verdicts.count(UNTESTABLE),
        "not_comparable": verdicts.count(INCOMPARABLE),
    }
