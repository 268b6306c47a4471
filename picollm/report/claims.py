"""A claim of the original with its test and verdict, and the correction for the number of claims.

There are four verdicts. *held*: there is evidence, at q < .05. *did not hold*: there is none, although the test could
have found it. *can't be tested here*: the test could not, for example because the text has too few of the words. *not
comparable*: the number depends on something the claim does not state, such as the training recipe. The claims that a p
alone decides share one false discovery rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from picollm.stats import false_discovery_rate, number_or_none

HELD, FAILED, UNTESTABLE, INCOMPARABLE = "held", "did not hold", "can't be tested here", "not comparable"
VERDICTS = (HELD, FAILED, UNTESTABLE, INCOMPARABLE)
ALPHA = 0.05


class Claim(TypedDict):
    section: str
    claim: str
    test: str
    verdict: str | None  # one of VERDICTS, once it is decided
    because: str
    p: float | None
    numbers: Mapping[str, float | str | None]


class DecidedClaim(Claim):
    q: float | None


def claim(
    section: str,
    text: str,
    test: str,
    *,
    p: float | None = None,
    verdict: str | None = None,
    because: str = "",
    **numbers: float | str | None,
) -> Claim:
    """Builds a claim. Without a `verdict`, `p` decides, after correction for the number of claims."""
    return {
        "section": section, "claim": text, "test": test, "verdict": verdict, "because": because,
        "p": None if p is None else number_or_none(p), "numbers": numbers,
    }  # fmt: skip


def untestable(row: Claim) -> Claim:
    """Marks a claim as untestable, unless it is not comparable, for a model that predicts no better than a 4-gram."""
    if row["verdict"] == INCOMPARABLE:
        return row
    return {**row, "verdict": UNTESTABLE, "because": "the model predicts no better than a 4-gram"}


def decided(claims: Sequence[Claim]) -> list[DecidedClaim]:
    """Adds q to the claims, and the verdicts that follow from q."""
    open_claims = [row["verdict"] is None for row in claims]
    p = [row["p"] if is_open else math.nan for row, is_open in zip(claims, open_claims, strict=True)]
    rows: list[DecidedClaim] = []
    for row, q, is_open in zip(claims, false_discovery_rate(np.array(p, dtype=float)), open_claims, strict=True):
        verdict = (HELD if q < ALPHA else FAILED) if is_open else row["verdict"]
        rows.append({**row, "q": number_or_none(q), "verdict": verdict})
    return rows
