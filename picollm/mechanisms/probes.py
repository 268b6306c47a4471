"""The linguistic probes of a model: coreference by attention, and what minimal pairs test by likelihood.

Shape suffixes: I item, P pair, H head (layers flattened).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from picollm.attention.controls import untrained_models
from picollm.data.ngram import NGrams
from picollm.mechanisms.coreference import (
    best_on_other_half,
    candidate_weights,
    clusters_of,
    coreference,
    prefers_gold,
    split_clusters,
    tokenised,
)
from picollm.mechanisms.intervention import baseline, each_head
from picollm.mechanisms.minimal_pairs import Continuations
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.templates import pairs, references
from picollm.model.transformer import Transformer
from picollm.stats import SIGNIFICANT, accuracy, cluster_means, per_head, preferred

FORMAT = 1


def probe_heads(s: ModelAndText) -> dict:
    """The content of probes.json."""
    untrained = list(untrained_models(s.model.config, models=s.cfg["null_models"], seed=s.cfg["seed"]))
    ngrams = NGrams(s.train, s.model.config.vocab_size)
    return {
        "format": FORMAT,
        "coreference": by_attention(s, untrained),
        "pairs": {kind: by_likelihood(s, kind, untrained, ngrams) for kind in pairs()},
    }


def by_attention(s: ModelAndText, untrained: Sequence[Transformer]) -> dict:
    """Coreference; `shows` where the chosen heads are right more often than every rule, the mean of all heads and
    untrained models, and the best of all is so beyond exchanged pronouns."""
    items, seed = tokenised(references(), s.model.config.context), s.cfg["seed"]
    report = coreference(candidate_weights(s.model, items, s.device), items, s.counts, s.names, seed=seed)
    gold_I, cluster_I = np.array([item.gold for item in items]), clusters_of(items)
    first_I = split_clusters(cluster_I, seed)
    chosen = [
        best_on_other_half(prefers_gold(candidate_weights(other, items, s.device), gold_I), first_I)[1]
        for other in untrained
    ]
    report["untrained"] = accuracy(np.mean(chosen, axis=0), cluster_I)
    rivals = [*report["baselines"].values(), report["mean_of_heads"], report["untrained"]]
    above = report["chosen_on_one_half"]["low"] > max(row["accuracy"] for row in rivals)
    return report | {"shows": bool(above and report["best_of_all"]["p"] < SIGNIFICANT)}


def by_likelihood(s: ModelAndText, kind: str, untrained: Sequence[Transformer], ngrams: NGrams) -> dict:
    """Accuracy of the model, of both n-grams and of untrained models; `shows` where it is above chance and them."""
    found = Continuations(pairs()[kind])

    def right_of(model: Transformer) -> NDArray:
        return preferred(found.margins(partial(baseline, model.to(s.device)), s.device))

    others = {name: preferred(margin_P) for name, margin_P in found.by_ngrams(ngrams).items()}
    others["untrained"] = np.mean([right_of(other) for other in untrained], axis=0)
    own, *rivals = (accuracy(right_P, found.cluster_P) for right_P in (right_of(s.model), *others.values()))
    strongest = max(0.5, *(row["accuracy"] for row in rivals))
    return {
        "model": own,
        "baselines": dict(zip(others, rivals, strict=True)),
        "shows": bool(own["low"] > strongest),
    }


def head_effects(s: ModelAndText, kind: str) -> dict:
    """What a kind of pair loses without each head: nats of the margin, and the accuracy that remains."""
    found, seed = Continuations(pairs()[kind]), s.cfg["seed"]
    whole_P = found.margins(partial(baseline, s.model), s.device)
    margin_HP = found.margins(lambda ids, scored: each_head(s.model, ids, "mean", s.means, scored), s.device)
    heads = per_head(cluster_means(whole_P - margin_HP, found.cluster_P), s.names, seed=seed)
    return {
        "whole_model": accuracy(preferred(whole_P), found.cluster_P),
        "heads": [
            {**head, "accuracy": float(preferred(margin_P).mean())}
            for head, margin_P in zip(heads, margin_HP, strict=True)
        ],
    }


def metrics(report: Mapping) -> dict[str, float]:
    """Flat scalars with stable names for `dvc metrics diff`."""
    found = report["coreference"]
    return {
        "coreference": found["chosen_on_one_half"]["accuracy"],
        "coreference_best_p": found["best_of_all"]["p"],
        "coreference_untrained": found["untrained"]["accuracy"],
        **{kind: entry["model"]["accuracy"] for kind, entry in report["pairs"].items()},
        **{f"{kind}_bigram": entry["baselines"]["bigram"]["accuracy"] for kind, entry in report["pairs"].items()},
    }
