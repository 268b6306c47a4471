"""The claims that the original made of its heads, each held against this run's numbers: a verdict, never a sentence.

Three verdicts: supported, not supported, not testable here. A 4-gram sees the last three tokens; with a model that
predicts no better nothing is testable, because attention to anything further back did not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from picollm.stats import number_or_none

FORMAT = 1
SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable here"
ORIGINAL_GLOBAL = number_or_none(48 / 56)  # "85.7 % of heads are global"; rounded as what it is compared with
ALPHA = 0.05
NARROW = 0.2  # width of an interval from which a share is known well enough to agree with
NEGLIGIBLE = 0.1  # adjusted Rand index
PERMUTATIONS = 9999


def state_findings(
    heads: Mapping, clusters: Mapping, probes: Mapping, over_time: Mapping, training: Mapping, *, seed: int
) -> dict:
    """The content of findings.json, from heads.json, clusters.json, probes.json, emergence.json and training.json."""
    margin, beyond_cache = (
        training[name] - training["validation_loss"] for name in ("four_gram_loss", "four_gram_cache_loss")
    )
    testable = margin > 0
    claims = [
        *overall_shares(heads),
        *by_layer(heads, seed),
        *by_category(probes),
        *redundancy(heads, clusters),
        *specialisation(over_time),
    ]
    if not testable:
        claims = [claim | {"verdict": NOT_TESTABLE} for claim in claims]
    return {
        "format": FORMAT,
        "testable": testable,
        "because": f"the model predicts {'better' if testable else 'no better'} than a 4-gram",
        "nats_below_a_4_gram": number_or_none(margin),
        "nats_below_a_4_gram_with_cache": number_or_none(
            training["four_gram_cache_loss"] - training["validation_loss"]
        ),
        "claims": claims,
    }


def claim(section: str, text: str, test: str, holds: bool | None, **numbers: float | None) -> dict:
    """`holds` is None where the numbers can't decide."""
    verdict = {True: SUPPORTED, False: NOT_SUPPORTED, None: NOT_TESTABLE}[holds]
    return {"section": section, "claim": text, "test": test, "verdict": verdict, "numbers": numbers}


def overall_shares(heads: Mapping) -> list[dict]:
    share, null = heads["labels"]["global"], heads["null"]
    inside = share["low"] <= ORIGINAL_GLOBAL <= share["high"]
    narrow = share["high"] - share["low"] <= NARROW
    return [
        claim(
            "V.A",
            "85.7 % of the heads are global",
            f"the interval of the share holds 85.7 %; not testable where it does and is wider than {NARROW}",
            (narrow or None) if inside else False,
            share=share["share"], low=share["low"], high=share["high"],
            raw_rule=number_or_none(heads["raw_labels"]["global"] / len(heads["heads"])),
            untrained_models=number_or_none(null["labels"]["global"] / null["heads"]) if null["heads"] else None,
        )
    ]  # fmt: skip


def by_layer(heads: Mapping, seed: int) -> list[dict]:
    """Whether layers differ in how broad and how positional their heads are."""
    found = []
    for name in ("broad", "positional"):
        known = [head for head in heads["heads"] if head["statistics"][name]["value"] is not None]
        layers = np.array([head["layer"] for head in known])
        values = np.array([head["statistics"][name]["value"] for head in known])
        share, p = variance_between(values, layers, seed=seed)
        slope = np.corrcoef(layers, values)[0, 1] if np.ptp(values) > 0 and np.ptp(layers) > 0 else float("nan")
        found.append(
            claim(
                "V.B",
                f"heads behave differently from layer to layer ({name} share)",
                f"layers explain more of the variance of {name} than of shuffled heads: p < {ALPHA}",
                p < ALPHA,
                variance_explained=number_or_none(share), p=number_or_none(p),
                correlation_with_depth=number_or_none(slope),
            )
        )  # fmt: skip
    return found


def variance_between(values: NDArray, groups: NDArray, *, seed: int) -> tuple[float, float]:
    """Share of the variance that group means explain (eta squared), and p by permutations of the values."""
    member = (groups == np.unique(groups)[:, None]) / np.bincount(groups)[np.unique(groups), None]
    sizes = np.bincount(groups)[np.unique(groups)]
    total = ((values - values.mean()) ** 2).sum()
    if total == 0:
        return 0.0, 1.0

    def explained(columns: NDArray) -> NDArray:
        return (sizes[:, None] * (member @ columns - values.mean()) ** 2).sum(0) / total

    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.repeat(values[:, None], PERMUTATIONS, axis=1), axis=0)
    observed = explained(values[:, None])[0]
    return float(observed), float((1 + (explained(shuffled) >= observed - 1e-12).sum()) / (1 + PERMUTATIONS))


def by_category(probes: Mapping) -> list[dict]:
    """Whether heads, or the model that they serve, treat linguistic categories as language does."""
    found = probes["coreference"]
    chosen, top = found["chosen_on_one_half"], found["best_of_all"]
    rules = {name: row["accuracy"] for name, row in found["baselines"].items()}
    return [
        claim(
            "V.C",
            "heads follow coreference",
            "the head that is best on one half of the word pairs is right on the other more often than rules without"
            " language, the mean of all heads and untrained heads (95 % interval), and the best of all more often than"
            f" where pronouns are exchanged, p < {ALPHA}",
            found["shows"],
            accuracy=chosen["accuracy"], low=chosen["low"], high=chosen["high"],
            best_of_all=top["accuracy"], p=top["p"],
            best_rule=max(rules.values()), untrained_models=found["untrained"]["accuracy"],
        ),
        *(
            claim(
                "V.C",
                f"the model has learnt {kind}",
                "a word is likelier where it fits than where it doesn't, in more minimal pairs than chance, n-grams and"
                " untrained models give (95 % interval)",
                entry["shows"],
                accuracy=entry["model"]["accuracy"], low=entry["model"]["low"], high=entry["model"]["high"],
                pairs=entry["model"]["items"],
                **{name: row["accuracy"] for name, row in entry["baselines"].items()},
            )
            for kind, entry in probes["pairs"].items()
        ),
    ]  # fmt: skip


def specialisation(over_time: Mapping) -> list[dict]:
    """Whether training makes heads that untrained models have not."""
    snapshots = over_time["snapshots"]
    found = []
    for name, what in (("kappa_max", "positional"), ("content", "token-specific"), ("induction", "induction")):
        text = f"{what} heads emerge in training"
        test = (
            "at the last snapshot, and not at the first, more heads than 1 % with an effect (larger than 99 % of"
            f" untrained heads and than the least size that counts), binomial p < {ALPHA}"
        )
        if len(snapshots) < 2:
            found.append(claim("emergence", text, test, None, snapshots=len(snapshots)))
            continue
        heads = len(snapshots[-1]["heads"][name])
        first, last = (snapshots[k]["effects"][name] for k in (0, -1))
        p_first, p_last = (binomtest(k, heads, 0.01, alternative="greater").pvalue for k in (first, last))
        found.append(
            claim(
                "emergence", text, test, bool(p_last < ALPHA <= p_first),
                heads_at_first=first, heads_at_last=last, p=number_or_none(p_last),
                median_onset_step=over_time["median_onset"][name],
            )
        )  # fmt: skip
    return found


def redundancy(heads: Mapping, clusters: Mapping) -> list[dict]:
    layers, apart = clusters["agreement"]["layers"], clusters["mean_distance"]
    families = [cluster for cluster in clusters["clusters"] if cluster["stable"] and cluster["size"] > 1]
    tight = [cluster for cluster in families if cluster["mean_distance"] < apart / 2]
    inside = sum(cluster["size"] for cluster in tight)
    independent = None
    if len(families) > 1 and layers["high"] < NEGLIGIBLE:
        independent = True
    elif len(families) > 1 and layers["p"] < ALPHA:
        independent = False
    return [
        claim(
            "V.D",
            "heads are redundant: they come in families that attend alike",
            "most heads are in two or more stable clusters, half as far apart as heads in general or less",
            len(tight) > 1 and inside > len(heads["heads"]) / 2,
            heads_in_such_clusters=inside, such_clusters=len(tight), clusters=clusters["k"], mean_distance=apart,
            noise_floor=clusters["noise"]["mean_absolute_difference"],
        ),
        claim(
            "V.D",
            "families do not depend on the layer",
            "of two or more stable clusters of several heads, the 95 % interval of the agreement with layers lies below"
            f" {NEGLIGIBLE}; not supported if it is beyond chance, p < {ALPHA}; else not testable",
            independent,
            families=len(families),
            adjusted_rand=layers["adjusted_rand"], low=layers["low"], high=layers["high"], p=layers["p"],
        ),
    ]  # fmt: skip


def metrics(report: Mapping[str, Sequence]) -> dict[str, float]:
    """Flat scalars with stable names for `dvc metrics diff`."""
    verdicts = [entry["verdict"] for entry in report["claims"]]
    return {
        "testable": int(report["testable"]),
        "nats_below_a_4_gram": report["nats_below_a_4_gram"],
        "nats_below_a_4_gram_with_cache": report["nats_below_a_4_gram_with_cache"],
        "supported": verdicts.count(SUPPORTED),
        "not_supported": verdicts.count(NOT_SUPPORTED),
        "not_testable": verdicts.count(NOT_TESTABLE),
    }
