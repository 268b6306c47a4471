"""From statistics to one word a head: the corrected rule, and the uncorrected one that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABELS = ("diagonal", "local", "token-specific", "global", "sink", "mixed")
DIAGONAL, LOCAL, TOKEN, GLOBAL, SINK, MIXED = range(len(LABELS))

SELF_SHARE = 0.6  # of the mass on offsets 0 to window: diagonal rather than local
PREVIOUS_SHARE = 0.6  # of kappa_local: a local head is tagged previous-token
SINK_FLAG = 0.3  # kappa_sink from which a label is said to describe the remainder (Gu et al. 2024, arXiv 2410.10781)
RAW_MASS = 0.5  # the raw rule's threshold (Clark et al. 2019, arXiv 1906.04341)
CONFIDENT = 0.8  # share of replicates below which a label is called uncertain

RULE = (
    "sink: non_sink < thresholds.sink",
    "diagonal: else the largest of kappa_self, kappa_prev, kappa_local >= thresholds.kappa"
    f" and share_self >= {SELF_SHARE}",
    "local: else that kappa >= thresholds.kappa;"
    f" tagged previous-token where kappa_prev >= {PREVIOUS_SHARE} kappa_local",
    "token-specific: else content >= thresholds.content",
    "global: else broad >= thresholds.broad",
    "mixed: else",
)
RAW_RULE = (
    f"uncorrected for length and sink: diagonal where raw_self >= {RAW_MASS}; else local or token-specific, whichever"
    f" of raw_local and raw_token is larger, where that is >= {RAW_MASS}; else global"
)


@dataclass(frozen=True)
class Thresholds:
    """Least kappa of a diagonal or local head, least content of a token-specific, least broad of a global, and the
    non-sink mass below which a head is a sink."""

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
    return {name: float(np.quantile(column, 0.99)) for name, column in values.items()}


def in_force(configured: Thresholds, null: Mapping[str, float]) -> Thresholds:
    """An effect counts from the larger of its configured size and the null's 99th percentile.

    `broad` and `sink` stay as configured: they ask for no evidence against chance, and the null itself is broad.
    """
    return Thresholds(
        kappa=max(configured.kappa, null["kappa_max"]),
        content=max(configured.content, null["content"]),
        broad=configured.broad,
        sink=configured.sink,
    )


def assign(values: Mapping[str, NDArray], thresholds: Thresholds) -> NDArray[np.int64]:
    """Indices into LABELS, of the statistics' shape (heads last, any replicates before). RULE says it in words."""
    positional = strongest_kappa(values) >= thresholds.kappa
    conditions = [
        values["non_sink"] < thresholds.sink,
        positional & (values["share_self"] >= SELF_SHARE),
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


def is_previous_token(values: Mapping[str, NDArray], labels: NDArray) -> NDArray[np.bool_]:
    """Which local heads are previous-token heads."""
    return (labels == LOCAL) & (values["kappa_prev"] >= PREVIOUS_SHARE * values["kappa_local"])


def confidence(labels_H: NDArray, replicates_RH: NDArray) -> NDArray[np.float64]:
    """Share of the bootstrap replicates that give a head its own label, [H]."""
    return (replicates_RH == labels_H).mean(0)


def counts(labels: NDArray) -> NDArray[np.int64]:
    """How many heads have each label: [..., H] to [..., len(LABELS)]."""
    return (labels[..., None] == np.arange(len(LABELS))).sum(-2)
