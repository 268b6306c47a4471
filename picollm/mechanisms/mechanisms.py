"""Builds reports/mechanisms.json: previous-token, duplicate-token and induction heads, with the evidence.

The scores are in picollm.mechanisms.repeats. The report also covers the context that the model uses and what the layers
and heads write towards the next token (picollm.mechanisms.context, picollm.mechanisms.attribution).

An induction head is defined by its score and by what it writes (Olsson et al. 2022): the score is large at every length
(a head of one offset has it at one length) with an interval above the heads of untrained models, and the output favours
the next token over the sequence's other tokens. What the second copy loses without the head, beyond the first copy, is
reported but is not a condition, because other heads may replace an ablated one. The named heads are therefore also
ablated together. A head that writes against the next token is anti-copying (copy suppression, McDougall 2023). The
thresholds are LEAST and COPYING in picollm.mechanisms.repeats.

Shape suffixes: S sequence, H head (layers flattened), W window, T position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.controls import untrained_models
from picollm.mechanisms import repeats
from picollm.mechanisms.ablation import GroupEffect, group_effect
from picollm.mechanisms.attribution import attribution
from picollm.mechanisms.context import ContextCurve, context_curve
from picollm.mechanisms.intervention import baseline, batches, each_head, without
from picollm.mechanisms.model_and_text import ModelAndText, spread
from picollm.stats import DefinedInterval, finite, known, percentile_99, resampled

FORMAT = 4
OTHER_SETS = 60  # sets that the induction heads together are compared with
ABLATED = 8  # repeated sequences on which every head is ablated
CONTEXT_WINDOWS = 5  # windows for the context curve, as a multiple of those that heads are ablated on


class Evidence(TypedDict):
    score: bool
    above_untrained: bool
    copies: bool


class ScoredHead(TypedDict):
    name: str
    scores: dict[str, dict[str, DefinedInterval]]  # score -> length -> mean over sequences
    by_frequency: dict[str, float]
    copying: DefinedInterval
    anti_copying: bool
    second_copy_harm: DefinedInterval
    direct: DefinedInterval
    evidence: Evidence
    induction_head: bool


class BestHead(DefinedInterval):
    head: str


class Copies(TypedDict):
    sequences: int
    first_loss: float
    second_loss: float
    gain: DefinedInterval


class MechanismsReport(TypedDict):
    """Contents of mechanisms.json; scores are those of repeats.SCORES."""

    format: int
    definitions: dict[str, str]
    criteria: dict[str, float]
    lengths: list[int]
    sequences: int
    least_count: int
    null: dict[str, float]
    null_models: int
    copies: Copies
    ablated_sequences: int
    together: GroupEffect | None
    context: ContextCurve
    after_layer: list[DefinedInterval]
    best: dict[str, BestHead]
    heads: list[ScoredHead]


def score_mechanisms(s: ModelAndText) -> MechanismsReport:
    """Returns the contents of mechanisms.json except for emergence."""
    seed, fitting = s.cfg["seed"], repeats.lengths(s.model.config.context, s.counts, s.tokenizer.start)
    score_sets = {length: score_set(s, length) for length in fitting}
    longest = max(score_sets)
    null = null_scores(s, longest)
    ids_ST = repeated(s, longest, seed)
    after_layer, direct_HW = attribution(s)
    heads = head_rows(s, score_sets, null, ids_ST, intervals(direct_HW.T, seed))
    contexts = spread(s.validation, CONTEXT_WINDOWS * s.cfg["windows"])
    return {
        "format": FORMAT,
        "definitions": repeats.SCORES,
        "criteria": {"score": repeats.LEAST, "copying": repeats.COPYING},
        "lengths": list(score_sets),
        "sequences": repeats.SEQUENCES * repeats.SEEDS,
        "least_count": int(s.counts[repeats.common(s.counts, s.tokenizer.start)].min()),
        "null": {name: finite(value) for name, value in null.items()},
        "null_models": s.cfg["null_models"],
        "copies": copies(s, ids_ST),
        "ablated_sequences": ABLATED,
        "together": together(s, heads, ids_ST[:ABLATED]),
        "context": context_curve(s.model, contexts, seed=seed, device=s.device),
        "after_layer": after_layer,
        "best": {name: best(heads, name, str(longest)) for name in repeats.SCORES},
        "heads": heads,
    }


def head_rows(
    s: ModelAndText,
    score_sets: Mapping,
    null: Mapping[str, float],
    ids_ST: NDArray,
    direct_H: Sequence[DefinedInterval],
) -> list[ScoredHead]:
    """Scores, copying, harm and evidence of each head; `score_sets`: {length: `score_set`}, `direct_H`: direct part."""
    seed, longest = s.cfg["seed"], max(score_sets)
    copied_H = intervals(repeats.copying(s.model, ids_ST, s.device), seed)
    harm_H = intervals(harm(s, ids_ST[:ABLATED]), seed)
    strict_H = intervals(score_sets[longest]["drawn evenly"]["induction"], seed, 0.99)
    scores = {
        score: {str(length): intervals(sets["drawn evenly"][score], seed) for length, sets in score_sets.items()}
        for score in repeats.SCORES
    }
    rows: list[ScoredHead] = []
    for h, name in enumerate(s.names):
        evidence: Evidence = {
            "score": all(by_head[h]["value"] >= repeats.LEAST for by_head in scores["induction"].values()),
            "above_untrained": strict_H[h]["low"] > null["induction"],
            "copies": copied_H[h]["low"] > repeats.COPYING,
        }
        rows.append({
            "name": name,
            "scores": {
                score: {length: by_head[h] for length, by_head in by_length.items()}
                for score, by_length in scores.items()
            },
            "by_frequency": {
                score: finite(score_sets[longest]["as in the text"][score][:, h].mean()) for score in repeats.SCORES
            },
            "copying": copied_H[h],
            "anti_copying": bool(copied_H[h]["high"] < 1 - repeats.COPYING),
            "second_copy_harm": harm_H[h],
            "direct": direct_H[h],
            "evidence": evidence,
            "induction_head": all(evidence.values()),
        })  # fmt: skip
    return rows


def together(s: ModelAndText, heads: Sequence[ScoredHead], ids_ST: NDArray) -> GroupEffect | None:
    """Loss of the second copy, beyond the first, without all induction heads together; None if there are none."""
    named = np.array([head["induction_head"] for head in heads])
    if not named.any():
        return None
    length = ids_ST.shape[1] // 2

    def loss_without(mask: NDArray) -> NDArray:
        chosen = torch.from_numpy(mask).to(s.device)
        nats_ST = torch.cat([without(s.model, ids, chosen, s.means) for ids in batches(ids_ST, s.device)])
        return second_less_first(nats_ST.double().cpu().numpy(), length)

    mask_LH = named.reshape(s.model.config.n_layers, s.model.config.n_heads)
    return group_effect(loss_without, mask_LH, seed=s.cfg["seed"], sets=OTHER_SETS)


def repeated(s: ModelAndText, length: int, seed: int, matched: bool = False) -> NDArray[np.int64]:
    return repeats.sequences(s.counts, length, seed=seed, matched=matched, start=s.tokenizer.start)


def best(heads: Sequence[ScoredHead], score: str, length: str) -> BestHead:
    top = max(heads, key=lambda head: head["scores"][score][length]["value"])
    return {"head": top["name"], **top["scores"][score][length]}


def score_set(s: ModelAndText, length: int) -> dict[str, dict[str, NDArray]]:
    """Computes scores [S, H] on tokens drawn evenly (all seeds) and in proportion to the text's counts (one seed)."""
    seed = s.cfg["seed"]
    even = [repeats.scores(s.model, repeated(s, length, seed + k), s.device) for k in range(repeats.SEEDS)]
    matched = repeats.scores(s.model, repeated(s, length, seed, matched=True), s.device)
    return {"drawn evenly": repeats.pooled(even), "as in the text": matched}


def null_scores(s: ModelAndText, length: int) -> dict[str, float]:
    """Computes the 99th percentile of each score over the heads of untrained models."""
    ids_ST = repeated(s, length, s.cfg["seed"])[: repeats.FEW]
    untrained = untrained_models(s.model, models=s.cfg["null_models"], seed=s.cfg["seed"])
    by_model = [repeats.scores(other.to(s.device), ids_ST, s.device) for other in untrained]
    return {name: percentile_99(np.stack([scores[name].mean(0) for scores in by_model])) for name in repeats.SCORES}


def harm(s: ModelAndText, ids_ST: NDArray) -> NDArray[np.float64]:
    """Extra loss of the second copy over the first without each head, [S, H], in nats.

    A head that all predictions need, such as many of layer 0, harms both copies equally.
    """
    length = ids_ST.shape[1] // 2
    more = []
    for ids in batches(ids_ST, s.device):
        lost_HBT = (each_head(s.model, ids, "mean", s.means) - baseline(s.model, ids)).double().cpu().numpy()
        more.append(second_less_first(lost_HBT, length))
    return np.concatenate(more, axis=1).T


def second_less_first(nats: NDArray, length: int) -> NDArray[np.float64]:
    """Mean nats of each next token, [..., T], over the second copy minus the mean over the first, [...]."""
    return nats[..., repeats.second_copy(length)].mean(-1) - nats[..., 1:length].mean(-1)


def copies(s: ModelAndText, ids_ST: NDArray) -> Copies:
    """Loss of the same tokens in the first and in the second copy, in nats, and the gain of the second."""
    length = ids_ST.shape[1] // 2
    nats_ST = torch.cat([baseline(s.model, ids) for ids in batches(ids_ST, s.device)]).double().cpu().numpy()
    first_S, second_S = nats_ST[:, 1:length].mean(1), nats_ST[:, repeats.second_copy(length)].mean(1)
    return {
        "sequences": len(ids_ST),
        "first_loss": finite(first_S.mean()),
        "second_loss": finite(second_S.mean()),
        "gain": intervals((first_S - second_S)[:, None], s.cfg["seed"])[0],
    }


def intervals(values_SH: NDArray, seed: int, level: float = 0.95) -> list[DefinedInterval]:
    """Returns each head's mean and its interval over sequences."""
    return known(values_SH.mean(0), *resampled(values_SH.T, seed, level))


def induction_heads(report: MechanismsReport) -> list[str]:
    return [head["name"] for head in report["heads"] if head["induction_head"]]


def metrics(report: MechanismsReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`."""
    return {
        **{f"best_{name}": row["value"] for name, row in report["best"].items()},
        "induction_heads": len(induction_heads(report)),
        "anti_copying_heads": sum(head["anti_copying"] for head in report["heads"]),
        "first_copy_loss": report["copies"]["first_loss"],
        "second_copy_loss": report["copies"]["second_loss"],
        **{
            f"context_cost_{row['tokens']}": row["cost"]
            for row in report["context"]["curve"]
            if row["tokens"] in (1, 4, 16)
        },
    }
