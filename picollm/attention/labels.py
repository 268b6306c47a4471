"""Turns statistics into one label per head, by the corrected rule and by the uncorrected rule it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import SETS
from picollm.stats import finite, number_or_none, percentile, percentile_99

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport

LABELS = ("diagonal", "local", "token-specific", "content-based", "global", "sink", "mixed")
DIAGONAL, LOCAL, TOKEN, CONTENT, GLOBAL, SINK, MIXED = range(len(LABELS))

PREVIOUS_SHARE = 0.6  # share of kappa_local at which a local head is tagged previous-token
SET_KAPPA = 0.1  # minimum kappa for the set of keys of a token-specific head
SINK_FLAG = 0.3  # kappa_sink at which a label is flagged as describing the remainder (Gu et al. 2024, arXiv 2410.10781)
RAW_MASS = 0.5  # the raw rule's threshold (Clark et al. 2019, arXiv 1906.04341)
STABLE = 0.8  # share of replicates below which a label is unstable

RULE = (
    "sink: non_sink < thresholds.sink",
    "diagonal: else the largest of kappa_self, kappa_prev, kappa_local >= thresholds.kappa, and it is kappa_self",
    "local: else that kappa >= thresholds.kappa;"
    f" tagged previous-token where kappa_prev >= thresholds.kappa and >= {PREVIOUS_SHARE} kappa_local",
    "token-specific: else content >= thresholds.content, and the kappa of a set of keys > the threshold of that set;"
    " tagged with the set whose kappa exceeds its threshold by the largest factor",
    "content-based: else content >= thresholds.content: neither uniform nor explained by offsets, as random projections"
    " of random embeddings are too where their logits are as large",
    "global: else broad >= thresholds.broad",
    "mixed: else",
)
RAW_RULE = (
    f"uncorrected for length and sink: diagonal where raw_self >= {RAW_MASS}; else local or token-specific, whichever"
    f" of raw_local and raw_token is larger, where that is >= {RAW_MASS}; else global"
)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds from the `heads` section of config.yaml: minimum kappa of a diagonal or local head, minimum content of
    a content-based head, minimum broad of a global head, and the non-sink mass below which a head is a sink; `sets`
    holds the minimum kappa of each set of keys for a token-specific head."""

    kappa: float
    content: float
    broad: float
    sink: float
    sets: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SETS, SET_KAPPA))


def thresholds_of(report: HeadsReport) -> Thresholds:
    """Reads the effective thresholds from a heads.json."""
    value = {name: row["value"] for name, row in report["thresholds"].items()}
    sets = {name: value.pop(name) for name in SETS}
    return Thresholds(**value, sets=sets)


def strongest_kappa(values: Mapping[str, NDArray]) -> NDArray:
    """Returns the largest of the three positional kappas, NaN only if all are."""
    return np.fmax.reduce([values["kappa_self"], values["kappa_prev"], values["kappa_local"]])


def strongest_set(values: Mapping[str, NDArray], thresholds: Thresholds) -> tuple[NDArray, NDArray[np.int64]]:
    """Returns the largest kappa of a set of keys, in multiples of the set's threshold (NaN if none is defined), and
    the set's index in SETS."""
    times_N = np.stack([values[f"kappa_{name}"] / thresholds.sets[name] for name in SETS])
    return np.fmax.reduce(times_N), np.nan_to_num(times_N, nan=-np.inf).argmax(0)


def percentiles_99(values: Mapping[str, NDArray]) -> dict[str, float]:
    """Returns the 99th percentiles of null values, per statistic and for `kappa_max`, the kappa that the rule uses."""
    values = {**values, "kappa_max": strongest_kappa(values)}
    return {name: percentile_99(column) for name, column in values.items()}


def effective_thresholds(
    configured: Thresholds, null: Mapping[str, float], sharpened: Mapping[str, NDArray], permuted_kappa: float
) -> Thresholds:
    """Returns the thresholds, with those of kappa, content and each set raised to what chance gives if it gives more.

    `null` holds 99th percentiles of untrained models, `permuted_kappa` that of the strongest kappa after shuffling each
    row's keys. Shuffling turns all that is not broad into content, so it gives no bound for `content`. `broad` and
    `sink` stay as configured: they need no evidence against chance, and the null itself is broad. `sharpened` holds the
    statistics of sharpened untrained heads: their kappas bound those of offsets and of sets of keys,
    each set at the percentile at which at most 1 % of heads exceed any of them. Their content is large by construction.
    """
    family = 1 - 0.01 / len(SETS)  # with few heads, this percentile is the maximum
    return Thresholds(
        kappa=float(
            np.fmax.reduce([
                configured.kappa, null["kappa_max"], permuted_kappa, percentile(strongest_kappa(sharpened), 0.99)
            ])  # NaN if there is no null
        ),
        content=float(np.fmax(configured.content, null["content"])),
        broad=configured.broad,
        sink=configured.sink,
        sets={
            name: float(np.fmax(configured.sets[name], percentile(sharpened[f"kappa_{name}"], family, method="higher")))
            for name in SETS
        },
    )  # fmt: skip


class Threshold(TypedDict):
    """One effective threshold: its configured value, what each null gives, and which of these it comes from."""

    value: float
    configured: float
    null_percentile_99: float | None
    sharpened_percentile_99: float | None
    shuffled_percentile_99: float | None
    source: Literal["configured", "null"]


def threshold_origins(
    configured: Thresholds,
    used: Thresholds,
    band: Mapping[str, float],
    sharpened: Mapping[str, NDArray],
    permuted_kappa: float,
) -> dict[str, Threshold]:
    """Returns the origin of each effective threshold."""
    null = {"kappa": band["kappa_max"], "content": band["content"]}
    as_sharpened = {"kappa": strongest_kappa(sharpened), **{name: sharpened[f"kappa_{name}"] for name in used.sets}}

    def row(name: str, value: float, own: float) -> Threshold:
        return {
            "value": finite(value),
            "configured": own,
            "null_percentile_99": number_or_none(null[name]) if name in null else None,
            "sharpened_percentile_99": number_or_none(percentile_99(as_sharpened[name]))
            if name in as_sharpened
            else None,
            "shuffled_percentile_99": number_or_none(permuted_kappa) if name == "kappa" else None,
            "source": "configured" if value == own else "null",
        }

    return {
        **{
            name: row(name, getattr(used, name), getattr(configured, name))
            for name in ("kappa", "content", "broad", "sink")
        },
        **{name: row(name, value, configured.sets[name]) for name, value in used.sets.items()},
    }


def assign(values: Mapping[str, NDArray], thresholds: Thresholds) -> NDArray[np.int64]:
    """Returns indices into LABELS in the shape of the statistics (heads last, replicates before); RULE in words."""
    strongest = strongest_kappa(values)
    positional = strongest >= thresholds.kappa
    conditions = [
        values["non_sink"] < thresholds.sink,
        positional & (values["kappa_self"] >= strongest),
        positional,
        (values["content"] >= thresholds.content) & (strongest_set(values, thresholds)[0] > 1),
        values["content"] >= thresholds.content,
        values["broad"] >= thresholds.broad,
    ]
    return np.select(conditions, [SINK, DIAGONAL, LOCAL, TOKEN, CONTENT, GLOBAL], default=MIXED)


def assign_raw(values: Mapping[str, NDArray]) -> NDArray[np.int64]:
    """Returns the uncorrected labels of RAW_RULE, for comparison only: it calls uniform short sentences local."""
    local, token = values["raw_local"], values["raw_token"]
    conditions = [values["raw_self"] >= RAW_MASS, np.maximum(local, token) < RAW_MASS, local >= token]
    return np.select(conditions, [DIAGONAL, GLOBAL, LOCAL], default=TOKEN)


def tags(values: Mapping[str, NDArray], labels_H: NDArray, thresholds: Thresholds) -> list[str | None]:
    """Refines the labels: previous-token for a local head, the set of keys for a token-specific one, else None."""
    least_H = np.fmax(thresholds.kappa, PREVIOUS_SHARE * values["kappa_local"])
    previous_H = values["kappa_prev"] >= least_H
    best_H, names = strongest_set(values, thresholds)[1], list(SETS)
    tag: list[str | None] = []
    for h, label in enumerate(labels_H):
        if label == LOCAL and previous_H[h]:
            tag.append("previous-token")
        elif label == TOKEN:
            tag.append(names[best_H[h]])
        else:
            tag.append(None)
    return tag


def margins(
    values: Mapping[str, NDArray], replicates: Mapping[str, NDArray], labels_H: NDArray, thresholds: Thresholds
) -> NDArray[np.float64]:
    """Distance of the statistic that decided a head's label from its threshold, in standard deviations of its
    bootstrap, [H]; for a mixed head, how far it is below being broad; for a content-based one also how far below being
    token-specific, if that is nearer. NaN if the bootstrap doesn't vary."""

    def distance(observed: NDArray, drawn: NDArray, threshold: float, sign: int) -> NDArray:
        spread = drawn.std(0)
        return np.divide(sign * (observed - threshold), spread, out=np.full_like(observed, np.nan), where=spread > 0)

    positional = distance(strongest_kappa(values), strongest_kappa(replicates), thresholds.kappa, 1)
    broad = distance(values["broad"], replicates["broad"], thresholds.broad, 1)
    token = distance(strongest_set(values, thresholds)[0], strongest_set(replicates, thresholds)[0], 1.0, 1)
    content = distance(values["content"], replicates["content"], thresholds.content, 1)
    by_label = {
        DIAGONAL: positional,
        LOCAL: positional,
        TOKEN: token,
        CONTENT: np.fmin(content, -token),
        GLOBAL: broad,
        SINK: distance(values["non_sink"], replicates["non_sink"], thresholds.sink, -1),
        MIXED: -broad,
    }
    return np.choose(labels_H, [by_label[k] for k in range(len(LABELS))])


def stability(labels_H: NDArray, replicates_RH: NDArray) -> NDArray[np.float64]:
    """Share of the bootstraps of the sentences that give a head its own label, [H].

    It covers these sentences and this model only: another training seed gives heads other labels.
    """
    return (replicates_RH == labels_H).mean(0)


def counts(labels: NDArray) -> NDArray[np.int64]:
    """Counts the heads with each label: [..., H] to [..., len(LABELS)]."""
    return (labels[..., None] == np.arange(len(LABELS))).sum(-2)


def by_label(numbers: NDArray) -> dict[str, int]:
    return {label: int(n) for label, n in zip(LABELS, numbers, strict=True)}
