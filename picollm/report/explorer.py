"""Prepares the data of the report's explorer: attention maps with one byte per weight, and the facts of each head.

A map is the lower triangle of its weights, row by row, head after head, as round(255 sqrt(p)): a decoded weight has an
error of .004 at most, and a smaller one if the weight is small. A sentence's maps are one block of base64, which the
page decodes when the sentence is selected.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import SETS
from picollm.attention.labels import SINK_FLAG
from picollm.attention.maps import CategoryMaps

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport
    from picollm.mechanisms.ablation import AblationReport
    from picollm.mechanisms.emergence import EmergenceReport
    from picollm.mechanisms.mechanisms import MechanismsReport
    from picollm.stats import DefinedInterval, Interval

BUDGET = 5_000_000  # bytes of base64 for all maps; fewer if the page has less room (page.py)
KAPPAS = ("self", "prev", "local", "sink", *SETS)


def encoded(weights_LHQK: NDArray) -> str:
    """Encodes the lower triangles of all heads as base64."""
    maps_HQK = weights_LHQK.reshape(-1, *weights_LHQK.shape[-2:])
    row, key = np.tril_indices(maps_HQK.shape[-1])
    return base64.b64encode(np.rint(255 * np.sqrt(maps_HQK[:, row, key])).astype(np.uint8).tobytes()).decode()


def decoded(text: str, heads: int) -> NDArray[np.float64]:
    """Decodes the result of `encoded` as the page does, [H, Q, K]; for tests."""
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(heads, -1)
    n = int((np.sqrt(8 * packed.shape[1] + 1) - 1) / 2)
    maps = np.zeros((heads, n, n))
    maps[:, *np.tril_indices(n)] = (packed / 255) ** 2
    return maps


def size_of(tokens: int, heads: int) -> int:
    """Returns the bytes of base64 that a sentence takes."""
    return 4 * -(-heads * tokens * (tokens + 1) // 2 // 3)


def chosen(categories: Sequence[CategoryMaps], heads: int, most: int, budget: int = BUDGET) -> list[list[int]]:
    """Returns the numbers of the sentences to show per category: its first ones, at most `most`, within the budget. The
    first of every category is chosen before the second of any, and so on; one that does not fit is skipped."""
    taken: list[list[int]] = [[] for _ in categories]
    for round_ in zip_longest(*(range(min(most, len(category.ids))) for category in categories)):
        for category, number in enumerate(round_):
            if number is None:
                continue
            size = size_of(len(categories[category].ids[number]), heads)
            if size <= budget:
                budget -= size
                taken[category].append(number)
    return taken


def sentences(categories: Sequence[CategoryMaps], heads: int, most: int, budget: int) -> tuple[list[dict], list[str]]:
    """Returns the categories with their sentences as tokens, and the maps of all sentences in order."""
    shown, maps = [], []
    for category, numbers in zip(categories, chosen(categories, heads, most, budget), strict=True):
        rows = []
        for number in numbers:
            rows.append({"text": category.texts[number], "tokens": category.tokens[number], "maps": len(maps)})
            maps.append(encoded(category.maps[number]))
        shown.append({"name": category.category, "title": category.title, "of": len(category.ids), "sentences": rows})
    return shown, maps


def facts(
    heads: HeadsReport, mechanisms: MechanismsReport, ablation: AblationReport, emergence: EmergenceReport
) -> list[dict]:
    """Returns what the explorer shows about each head."""
    longest = str(max(mechanisms["lengths"]))
    rows = []
    for number, head in enumerate(heads["heads"]):
        ablated, scored = ablation["heads"][number], mechanisms["heads"][number]
        rows.append({
            "name": head["name"],
            "original": f"L{head['layer'] + 1}H{head['head'] + 1}",
            "label": head["label"],
            "tag": head["tag"],
            "seen": head["seen"],
            "stability": head["stability"],
            "sink": head["sink_flag"],
            "looks_at": [[row["token"], row["share"]] for row in head["looks_at"]],
            "kappas": {name: triple(head["statistics"][f"kappa_{name}"]) for name in KAPPAS},
            "shares": {name: triple(head["statistics"][name]) for name in ("broad", "positional", "content")},
            "categories": head["category_labels"],
            "by_category": head["by_category"],
            "loss": {name: ablated[name] for name in ("delta", "low", "high", "q")},
            "on": {kind: row["delta"] for kind, row in ablated["on"].items()},
            "scores": {name: triple(by_length[longest]) for name, by_length in scored["scores"].items()},
            "copying": triple(scored["copying"]),
            "induction": scored["induction_head"],
            "direct": triple(scored["direct"]),
            "over_time": {
                name: [row["heads"][name][number] for row in emergence["snapshots"]]
                for name in ("kappa_max", "kappa_set", "content", "induction")
            },
        })  # fmt: skip
    return rows


def triple(row: Interval | DefinedInterval) -> list[float | None]:
    return [row["value"], row["low"], row["high"]]


def thresholds(heads: HeadsReport) -> dict[str, float | None]:
    """Returns the value at which each kappa counts as an effect: the null band in the explorer."""
    value: dict[str, float | None] = {name: row["value"] for name, row in heads["thresholds"].items()}
    return {name: value[name if name in value else "kappa"] for name in KAPPAS} | {"sink": SINK_FLAG}
