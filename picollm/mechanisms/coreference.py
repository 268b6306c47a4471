"""Tests if a head looks from a pronoun at its antecedent: accuracy against gold, compared with simpler rules.

A head chooses the candidate with more of its attention, summed over the candidate's tokens, averaged over the
pronoun's. The best of 56 heads that choose by chance is right far more than half of the time, so the head is chosen on
one half of the word pairs and scored on the other, and the best of all is compared with that for exchanged pronouns.

Shape suffixes: I item, H head (layers flattened), C candidate, O offset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.extraction import tokenise
from picollm.attention.sentences import Sentence
from picollm.data.tokenizers import Tokenizer
from picollm.errors import PicollmError
from picollm.mechanisms.templates import Reference
from picollm.model.foreign import Examined
from picollm.stats import Accuracy, above, accuracy, cluster_means, finite, preferred

PERMUTATIONS = 1999
LEAST_CLUSTERS = 8  # an accuracy over fewer than 4 clusters per half does not support an interval
OFFSETS = 24


@dataclass(frozen=True)
class Item:
    """A tokenised reference: positions [first, end) of the candidates and of the pronoun."""

    ids: list[int]
    candidates: tuple[tuple[int, int], tuple[int, int]]
    pronoun: tuple[int, int]
    gold: int
    subject: int
    cluster: int


def tokenised(references: Sequence[Reference], context: int, tokenizer: Tokenizer) -> list[Item]:
    """Tokenises the references. Raises PicollmError if there are too few to choose a head on one half and test it on
    the other, if one has no gold antecedent before its pronoun, or if one is longer than the model's context."""
    clusters = len({r.cluster for r in references})
    if clusters < LEAST_CLUSTERS:
        raise PicollmError(
            f"coreference of {clusters} pairs of words: at least {LEAST_CLUSTERS} are needed to split them"
        )
    items = []
    for r in references:
        if r.gold not in (0, 1) or max(end for _, end in r.candidates) > r.pronoun[0]:
            raise PicollmError(
                f"coreference: {r.text!r} has gold {r.gold!r}; it must be 0 or 1, the one of the two candidates before "
                "the pronoun that the pronoun means"
            )
        marked = Sentence(r.text, {"first": r.candidates[0], "second": r.candidates[1], "pronoun": r.pronoun})
        tokens = tokenise(marked, tokenizer)
        if len(tokens.ids) > context:
            raise PicollmError(
                f"coreference: {r.text!r} has {len(tokens.ids)} tokens, the model's context is {context}: raise "
                "tokens.context"
            )
        spans = tokens.gold
        items.append(
            Item(tokens.ids, (spans["first"], spans["second"]), spans["pronoun"], r.gold, r.subject, r.cluster)
        )
    return items


def candidate_weights(model: Examined, items: Sequence[Item], device: torch.device) -> NDArray[np.float64]:
    """Computes the attention of each head to each candidate, [I, H, C]. Items of one length share a forward pass."""
    length_I = np.array([len(item.ids) for item in items])
    weights: dict[int, NDArray] = {}
    for length in np.unique(length_I).tolist():
        members = np.flatnonzero(length_I == length).tolist()
        ids = torch.tensor([items[i].ids for i in members], device=device)
        maps_BHQK = model.to(device).attention_maps(ids)[0].flatten(1, 2).cpu().numpy()
        for i, maps_HQK in zip(members, maps_BHQK, strict=True):
            rows_HK = maps_HQK[:, slice(*items[i].pronoun)].mean(1, dtype=np.float64)
            weights[i] = np.stack([rows_HK[:, slice(*span)].sum(-1) for span in items[i].candidates], axis=-1)
    return np.stack([weights[i] for i in range(len(items))])


def prefers_gold(choice: NDArray, gold_I: NDArray) -> NDArray[np.float64]:
    """Returns 1 if the gold candidate has the larger score, .5 if both are equal, else 0; choice [I, ..., C]."""
    gold = gold_I.reshape(-1, *[1] * (choice.ndim - 1))
    own = np.take_along_axis(choice, gold, -1)[..., 0]
    other = np.take_along_axis(choice, 1 - gold, -1)[..., 0]
    return preferred(own - other)


def split_clusters(cluster_I: NDArray, seed: int) -> NDArray[np.bool_]:
    """Returns a mask of the items in the first half, [I]: those of every second cluster, in random order."""
    clusters = np.random.default_rng(seed).permutation(np.unique(cluster_I))
    return np.isin(cluster_I, clusters[::2])


def best_on_other_half(right_IH: NDArray, first_I: NDArray) -> tuple[list[int], NDArray[np.float64]]:
    """Returns the best head of each half, and its correctness on the items of the other half, [I]."""
    best = [int(right_IH[part].mean(0).argmax()) for part in (first_I, ~first_I)]
    out = np.empty(len(right_IH))
    out[~first_I], out[first_I] = right_IH[~first_I, best[0]], right_IH[first_I, best[1]]
    return best, out


def best_by_chance(right_IH: NDArray, cluster_I: NDArray, *, seed: int) -> NDArray[np.float64]:
    """Accuracy of the best head when the two pronouns of complete clusters are exchanged, [PERMUTATIONS].

    A head may prefer some words after some pronouns regardless of meaning, which makes it right or wrong on all items
    of a word pair rather than by chance item by item.
    """
    above_CH = cluster_means(right_IH.T, cluster_I).T - 0.5
    signs_PC = np.random.default_rng(seed).choice((-1.0, 1.0), (PERMUTATIONS, len(above_CH)))
    return 0.5 + (signs_PC @ above_CH).max(1) / len(above_CH)


def baselines(items: Sequence[Item], counts_V: NDArray, first_I: NDArray) -> dict[str, NDArray[np.float64]]:
    """Correctness of rules without linguistic knowledge, [I] each; the best offset is chosen on the other half."""
    gold_I = np.array([item.gold for item in items])
    centre_IC = np.array([[(a + b - 1) / 2 for a, b in item.candidates] for item in items])
    pronoun_I = np.array([item.pronoun[0] for item in items])
    length_IC = np.array([[b - a for a, b in item.candidates] for item in items])
    count_IC = np.array([[min(counts_V[item.ids[a:b]]) for a, b in item.candidates] for item in items])
    subject_IC = np.array([[item.subject == c for c in (0, 1)] for item in items])
    offset_O = np.arange(1, OFFSETS + 1)
    away_IOC = np.abs(pronoun_I[:, None, None] - offset_O[:, None] - centre_IC[:, None])
    rules = {
        "the nearer": centre_IC,
        "the first": -centre_IC,
        "the subject": subject_IC.astype(float),
        "the more frequent in the training text": count_IC.astype(float),
        "uniform attention": length_IC.astype(float),
    }
    right = {name: prefers_gold(choice, gold_I) for name, choice in rules.items()}
    return right | {"the best fixed offset": best_on_other_half(prefers_gold(-away_IOC, gold_I), first_I)[1]}


def clusters_of(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([item.cluster for item in items])


class ChosenHeads(Accuracy):
    heads: list[str]  # one of each half, scored on the other


class BestOfAll(Accuracy):
    head: str
    p: float
    best_by_chance_95: float


class Coreference(TypedDict):
    """The part of probes.json that only coreference has."""

    items: int
    chosen_on_one_half: ChosenHeads
    best_of_all: BestOfAll
    mean_of_all_heads: Accuracy  # not a rival: this mean includes the chosen heads
    baselines: dict[str, Accuracy]
    p_against_rivals: float
    heads: dict[str, float]


def coreference(
    weights_IHC: NDArray,
    items: Sequence[Item],
    counts_V: NDArray,
    names: Sequence[str],
    *,
    rivals: Mapping[str, NDArray],
    seed: int,
) -> Coreference:
    """Evaluates one model from its `candidate_weights`; `rivals` holds the correctness, [I], of rules in addition to
    `baselines`. `p_against_rivals` is the largest p of the paired tests over word pairs."""
    gold_I, cluster_I = np.array([item.gold for item in items]), clusters_of(items)
    right_IH, first_I = prefers_gold(weights_IHC, gold_I), split_clusters(cluster_I, seed)
    best, out_of_sample = best_on_other_half(right_IH, first_I)
    chance = best_by_chance(right_IH, cluster_I, seed=seed)
    top = int(right_IH.mean(0).argmax())
    rivals = {**baselines(items, counts_V, first_I), **rivals}
    return {
        "items": len(items),
        "chosen_on_one_half": {"heads": [names[h] for h in best], **accuracy(out_of_sample, cluster_I)},
        "best_of_all": {
            "head": names[top],
            **accuracy(right_IH[:, top], cluster_I),
            "p": finite((1 + (chance >= right_IH[:, top].mean() - 1e-12).sum()) / (1 + len(chance))),
            "best_by_chance_95": finite(np.quantile(chance, 0.95)),
        },
        "mean_of_all_heads": accuracy(prefers_gold(weights_IHC.mean(1), gold_I), cluster_I),
        "baselines": {name: accuracy(right_I, cluster_I) for name, right_I in rivals.items()},
        "p_against_rivals": max(above(out_of_sample, right_I, cluster_I) for right_I in rivals.values()),
        "heads": {name: finite(share) for name, share in zip(names, right_IH.mean(0), strict=True)},
    }
