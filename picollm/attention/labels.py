"""From statistics to one word a head: the corrected rule, and the uncorrected one that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import SETS
from picollm.stats import percentile_99

LABELS = ("diagonal", "local", "token-specific", "global", "sink", "mixed")
DIAGONAL, LOCAL, TOKEN, GLOBAL, SINK, MIXED = range(len(LABELS))

PREVIOUS_SHARE = 0.6  # of kappa_local: a local head is tagged previous-token
TAG_KAPPA = 0.1  # from which the interval of a set's kappa must begin to give a token-specific head its tag
SINK_FLAG = 0.3  # kappa_sink from which a label is said to describe the remainder (Gu et al. 2024, arXiv 2410.10781)
RAW_MASS = 0.5  # the raw rule's threshold (Clark et al. 2019, arXiv 1906.04341)
CONFIDENT = 0.8  # share of replicates below which a label is called uncertain

RULE = (
    "sink: non_sink < thresholds.sink",
    "diagonal: else the largest of kappa_self, kappa_prev, kappa_local >= thresholds.kappa, and it is kappa_self",
    "local: else that kappa >= thresholds.kappa;"
    f" tagged previous-token where kappa_prev >= thresholds.kappa and >= {PREVIOUS_SHARE} kappa_local",
    "token-specific: else content >= thresholds.content;"
    f" tagged with the set of keys whose kappa's interval begins highest, where that is >= {TAG_KAPPA}",
    "global: else broad >= thresholds.broad",
    "mixed: else",
)
RAW_RULE = (
    f"uncorrected for length and sink: diagonal where raw_self >= {RAW_MASS}; else local or token-specific, whichever"
    f" of raw_local and raw_token is larger, where that is >= {RAW_MASS}; else global"
)


@dataclass(frozen=True)
class Thresholds:
    """Of config.yaml's section `heads`: least kappa of a diagonal or local head, least content of a token-specific one,
    least broad of a global one, and the non-sink mass below which a head is a sink."""

    kappa: float
    content: float
    broad: float
    sink: float


def strongest_kappa(values: Mapping[str, NDArray]) -> NDArray:
    """The largest of the three positional kappas, NaN only where all are."""
    return np.fmax.reduce([values["kappa_self"], values["kappa_prev"], values["kappa_local"]])


def percentiles_99(values: Mapping[str, NDArray]) -> dict[str, float]:
    """Of null values, the 99th percentile of each statistic and of `kappa_max`, the kappa that the rule looks at."""
    values = {**values, "kappa_max": strongest_kappa(values)}
    return {name: percentile_99(column) for name, column in values.items()}


def effective_thresholds(configured: Thresholds, null: Mapping[str, float], permuted_kappa: float) -> Thresholds:
    """An effect counts from the larger of its configured size and the 99th percentile of the nulls.

    `null` are those of untrained models, `permuted_kappa` that of the strongest kappa where the keys of each row were
    shuffled. Shuffling makes all that is not broad content, so that it says nothing of `content`. `broad` and `sink`
    stay as configured: they ask for no evidence against chance, and the null itself is broad.
    """
    return Thresholds(
        kappa=float(np.fmax.reduce([configured.kappa, null["kappa_max"], permuted_kappa])),  # NaN: there is no null
        content=float(np.fmax(configured.content, null["content"])),
        broad=configured.broad,
        sink=configured.sink,
    )


def assign(values: Mapping[str, NDArray], thresholds: Thresholds) -> NDArray[np.int64]:
    """Indices into LABELS, of the statistics' shape (heads last, any replicates before). RULE says it in words."""
    strongest = strongest_kappa(values)
    positional = strongest >= thresholds.kappa
    conditions = [
        values["non_sink"] < thresholds.sink,
        positional & (values["kappa_self"] >= strongest),
        positional,
        values["content"] >= thresholds.content,
        values["broad"] >= thresholds.broad,
    ]
    return np.select(conditions, [SINK, DIAGONAL, LOCAL, TOKEN, GLOBAL], default=MIXED)


def assign_raw(values: Mapping[str, NDArray]) -> NDArray[np.int64]:
    """The uncorrected labels of RAW_RULE, for comparison only: in short sentences uniform attention comes out local."""
    local, token = values["raw_local"], values["raw_token"]
    conditions = [values["raw_self"] >= RAW_MASS, np.maximum(local, token) < RAW_MASS, local >= token]
    return np.select(conditions, [DIAGONAL, GLOBAL, LOCAL], default=TOKEN)


def tags(
    values: Mapping[str, NDArray], low: Mapping[str, NDArray], labels_H: NDArray, thresholds: Thresholds
) -> list[str | None]:
    """What is known beyond the label: previous-token of a local head, a set of keys of a token-specific one.

    `low` are the lower ends of the intervals: the sets differ much in how many rows they have.
    """
    least_H = np.fmax(thresholds.kappa, PREVIOUS_SHARE * values["kappa_local"])
    previous_H = values["kappa_prev"] >= least_H
    kappas_NH = np.nan_to_num(np.stack([low[f"kappa_{name}"] for name in SETS]), nan=-1.0)
    best_H, names = kappas_NH.argmax(0), list(SETS)
    found: list[str | None] = []
    for h, label in enumerate(labels_H):
        if label == LOCAL and previous_H[h]:
            found.append("previous-token")
        elif label == TOKEN and kappas_NH[best_H[h], h] >= TAG_KAPPA:
            found.append(names[best_H[h]])
        else:
            found.append(None)
    return found


def margins(
    values: Mapping[str, NDArray], replicates: Mapping[str, NDArray], labels_H: NDArray, thresholds: Thresholds
) -> NDArray[np.float64]:
    """How far the statistic that gave a head its label is from its threshold, in standard deviations of its
    bootstrap, [H]: of a mixed head, how far it stays below being broad. NaN where the bootstrap doesn't vary."""

    def distance(found: NDArray, drawn: NDArray, threshold: float, sign: int) -> NDArray:
        spread = drawn.std(0)
        return np.divide(sign * (found - threshold), spread, out=np.full_like(found, np.nan), where=spread > 0)

    positional = distance(strongest_kappa(values), strongest_kappa(replicates), thresholds.kappa, 1)
    broad = distance(values["broad"], replicates["broad"], thresholds.broad, 1)
    by_label = {
        DIAGONAL: positional,
        LOCAL: positional,
        TOKEN: distance(values["content"], replicates["content"], thresholds.content, 1),
        GLOBAL: broad,
        SINK: distance(values["non_sink"], replicates["non_sink"], thresholds.sink, -1),
        MIXED: -broad,
    }
    return np.choose(labels_H, [by_label[k] for k in range(len(LABELS))])


def confidence(labels_H: NDArray, replicates_RH: NDArray) -> NDArray[np.float64]:
    """Share of the bootstrap replicates that give a head its own label, [H]."""
    return (replicates_RH == labels_H).mean(0)


def counts(labels: NDArray) -> NDArray[np.int64]:
    """How many heads have each label: [..., H] to [..., len(LABELS)]."""
    return (labels[..., None] == np.arange(len(LABELS))).sum(-2)
