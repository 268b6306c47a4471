"""Builds reports/probes.json, the linguistic probes: coreference by attention, and minimal pairs by likelihood.

Shape suffixes: I item, P pair, H head (layers flattened).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from picollm.attention.controls import untrained_models
from picollm.data.ngram import NGrams
from picollm.mechanisms.coreference import (
    BestOfAll,
    ChosenHeads,
    best_on_other_half,
    candidate_weights,
    clusters_of,
    coreference,
    prefers_gold,
    split_clusters,
    tokenised,
)
from picollm.mechanisms.intervention import baseline, each_head
from picollm.mechanisms.minimal_pairs import LEAST_CLUSTERS, Continuations
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.templates import GENDERS, Pair, pairs, references
from picollm.mechanisms.vocabulary import LEAST_COUNT, known_clusters, rare_words
from picollm.model.foreign import Examined
from picollm.stats import (
    SIGNIFICANT,
    Accuracy,
    Effect,
    above,
    accuracy,
    cluster_means,
    false_discovery_rate,
    finite,
    number_or_none,
    per_head,
    preferred,
)

FORMAT = 3


class Tested(TypedDict):
    """Fields shared by all probes that can be tested."""

    testable: Literal[True]
    of_clusters: int
    baselines: dict[str, Accuracy]
    p: float
    q: NotRequired[float | None]  # set once all probes are known
    shows: NotRequired[bool]


class ByLikelihood(Tested):
    model: Accuracy


class ByAttention(Tested):
    items: int
    chosen_on_one_half: ChosenHeads
    best_of_all: BestOfAll
    p_against_rivals: float
    heads: dict[str, float]


class Untestable(TypedDict):
    testable: Literal[False]
    because: str
    clusters: int
    of_clusters: int
    q: NotRequired[float | None]
    shows: NotRequired[bool]


class ProbesReport(TypedDict):
    """Contents of probes.json."""

    format: int
    least_count: int
    rare_words: dict[str, int]
    coreference: ByAttention | Untestable
    pairs: dict[str, ByLikelihood | Untestable]


def probe_heads(s: ModelAndText, style: str) -> ProbesReport:
    """Returns the contents of probes.json: `shows` is true if the false discovery rate over the testable probes is
    below SIGNIFICANT; `style` is the text's, one of picollm.attention.sentences.STYLES."""
    untrained = list(untrained_models(s.model, models=s.cfg["null_models"], seed=s.cfg["seed"]))
    ngrams = NGrams(s.train, s.model.config.vocab_size)
    kinds = pairs()
    words = [word for pair in GENDERS for word in pair] + [w for kind in kinds.values() for p in kind for w in p.words]
    rare = rare_words(s.train, words, s.tokenizer)
    attention = by_attention(s, untrained, rare, style)
    likelihood = {name: by_likelihood(s, items, untrained, ngrams, rare) for name, items in kinds.items()}
    entries = [attention, *likelihood.values()]
    q = false_discovery_rate(np.array([entry["p"] if entry["testable"] is True else np.nan for entry in entries]))
    for entry, value in zip(entries, q, strict=True):
        entry["q"], entry["shows"] = number_or_none(value), bool(value < SIGNIFICANT)
    return {
        "format": FORMAT,
        "least_count": LEAST_COUNT,
        "rare_words": rare,
        "coreference": attention,
        "pairs": likelihood,
    }


def untestable(clusters: int, of: int) -> Untestable:
    """Report entry of a probe for which the training text has too few words."""
    return {
        "testable": False,
        "because": f"the training text has only {clusters} of {of} groups of words in which each word occurs "
        f"{LEAST_COUNT} times or more; {LEAST_CLUSTERS} are needed",
        "clusters": clusters,
        "of_clusters": of,
    }


def by_attention(
    s: ModelAndText, untrained: Sequence[Examined], rare: Mapping[str, int], style: str
) -> ByAttention | Untestable:
    """Tests coreference. p is the larger of two: the chosen heads against every rule and untrained models (the
    largest of paired tests over word pairs), and the best of all against exchanged pronouns."""
    known = known_clusters(dict(enumerate(GENDERS)), rare)
    if len(known) < LEAST_CLUSTERS:
        return untestable(len(known), len(GENDERS))
    chosen_items = [item for item in references(style) if item.cluster in known]
    items, seed = tokenised(chosen_items, s.model.config.context, s.tokenizer), s.cfg["seed"]
    gold_I, cluster_I = np.array([item.gold for item in items]), clusters_of(items)
    first_I = split_clusters(cluster_I, seed)
    right_I = np.mean(
        [
            best_on_other_half(prefers_gold(candidate_weights(other, items, s.device), gold_I), first_I)[1]
            for other in untrained
        ],
        axis=0,
    )
    weights_IHC = candidate_weights(s.model, items, s.device)
    report = coreference(weights_IHC, items, s.counts, s.names, rivals={"untrained": right_I}, seed=seed)
    p = max(report["best_of_all"]["p"], report["p_against_rivals"])
    result: ByAttention = {"testable": True, "of_clusters": len(GENDERS), **report, "p": finite(p)}
    return result


def by_likelihood(
    s: ModelAndText, items: Sequence[Pair], untrained: Sequence[Examined], ngrams: NGrams, rare: Mapping[str, int]
) -> ByLikelihood | Untestable:
    """Accuracy of the model, of both n-grams and of untrained models; p of the model against chance and these is the
    largest of paired tests over clusters."""
    words = {pair.cluster: pair.words for pair in items}
    known = known_clusters(words, rare)
    if len(known) < LEAST_CLUSTERS:
        return untestable(len(known), len(words))
    continuations = Continuations([pair for pair in items if pair.cluster in known], s.tokenizer)

    def right_of(model: Examined) -> NDArray:
        return preferred(continuations.margins(partial(baseline, model.to(s.device)), s.device))

    own = right_of(s.model)
    rivals = {name: preferred(margin_P) for name, margin_P in continuations.by_ngrams(ngrams).items()}
    rivals["untrained"] = np.mean([right_of(other) for other in untrained], axis=0)
    p = max(above(own, rival, continuations.cluster_P) for rival in (np.full_like(own, 0.5), *rivals.values()))
    return {
        "testable": True,
        "of_clusters": len(words),
        "model": accuracy(own, continuations.cluster_P),
        "baselines": {name: accuracy(rival, continuations.cluster_P) for name, rival in rivals.items()},
        "p": finite(p),
    }


class MarginEffect(Effect):
    accuracy: float


class PairEffects(TypedDict):
    whole_model: Accuracy
    heads: list[MarginEffect]


def head_effects(s: ModelAndText, kind: str) -> PairEffects | None:
    """Effect of each head on a kind of pair: nats of margin lost without it, and the remaining accuracy; None if the
    training text has too few of its words."""
    items = pairs()[kind]
    words = {pair.cluster: pair.words for pair in items}
    known = known_clusters(words, rare_words(s.train, (word for own in words.values() for word in own), s.tokenizer))
    if len(known) < LEAST_CLUSTERS:
        return None
    continuations, seed = Continuations([pair for pair in items if pair.cluster in known], s.tokenizer), s.cfg["seed"]
    whole_P = continuations.margins(partial(baseline, s.model), s.device)
    margin_HP = continuations.margins(lambda ids, scored: each_head(s.model, ids, "mean", s.means, scored), s.device)
    heads = per_head(cluster_means(whole_P - margin_HP, continuations.cluster_P), s.names, seed=seed)
    remaining: list[MarginEffect] = [
        {**head, "accuracy": float(preferred(margin_P).mean())} for head, margin_P in zip(heads, margin_HP, strict=True)
    ]
    return {"whole_model": accuracy(preferred(whole_P), continuations.cluster_P), "heads": remaining}


def metrics(report: ProbesReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`, of the probes that can be tested."""
    pronoun_probe = report["coreference"]
    coreference = (
        {
            "coreference": pronoun_probe["chosen_on_one_half"]["accuracy"],
            "coreference_best_p": pronoun_probe["best_of_all"]["p"],
            "coreference_untrained": pronoun_probe["baselines"]["untrained"]["accuracy"],
        }
        if pronoun_probe["testable"] is True
        else {}
    )
    pairs = {kind: entry for kind, entry in report["pairs"].items() if entry["testable"] is True}
    return {
        "testable": int(pronoun_probe["testable"]) + len(pairs),
        **coreference,
        **{kind: entry["model"]["accuracy"] for kind, entry in pairs.items()},
        **{f"{kind}_bigram": entry["baselines"]["bigram"]["accuracy"] for kind, entry in pairs.items()},
    }
