"""Lays out the map of all heads on the report's first screen: their place, class and the cost of removing them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from picollm.report.style import LETTERS
from picollm.stats import SIGNIFICANT

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport
    from picollm.mechanisms.ablation import AblationReport

STEP, GAP = 71.0, 4.0  # maximum size of a cell, and the gap in it, in the units of the drawing
WIDE, HIGH = 568.0, 434.0  # size of all cells: eight layers of seven heads fill it
LEFT, TOP = 48.0, 20.0
LARGEST = 0.46  # radius of the costliest head, in cells
SMALLEST = 1.8
ROOM = 30.0  # a smaller cell has no letter, and the first layer's number no word


def head_map(heads: HeadsReport, ablation: AblationReport) -> dict:
    """Returns cells with layers from left to right and heads from top to bottom. The AREA of a disc is the increase of
    the loss; it is hollow without a certain effect, barred if the loss falls; a dashed cell has an unstable label."""
    n_layers, n_heads = heads["n_layers"], heads["n_heads"]
    step = min(STEP, WIDE / n_layers)
    most = max(max(abs(head["delta"]) for head in ablation["heads"]), 1e-9)
    high, cells = min(step * 0.87, HIGH / n_heads), []
    for head, ablated in zip(heads["heads"], ablation["heads"], strict=True):
        column = head["layer"]
        row = head["head"]
        certain = ablated["q"] < SIGNIFICANT
        radius = max(SMALLEST, LARGEST * (min(step, high) - GAP) * math.sqrt(abs(ablated["delta"]) / most))
        cells.append({
            "name": head["name"], "label": head["label"],
            "letter": LETTERS[head["label"]] if min(step, high) > ROOM else "",
            "x": round(LEFT + column * step, 1), "y": round(TOP + row * high, 1),
            "width": round(step - GAP, 1), "height": round(high - GAP, 1),
            "radius": round(radius, 2),
            "hollow": not certain, "barred": certain and ablated["delta"] < 0, "dashed": head["unstable"],
            "title": f"{head['name']}: {head['label']}"
            + (f" ({head['tag']})" if head["tag"] else "")
            + f"; without it {ablated['delta']:+.4f} nats ({ablated['low']:+.4f} to {ablated['high']:+.4f})",
        })  # fmt: skip
    return {
        "cells": cells,
        "width": round(LEFT + n_layers * step, 1),
        "height": round(TOP + n_heads * high, 1),
        "columns": [
            {"text": str(n) if n or step < ROOM else "layer 0", "x": round(LEFT + (n + 0.47) * step, 1)}
            for n in range(n_layers)
        ],
        "rows": [
            {"text": str(n) if n else "head 0", "y": round(TOP + (n + 0.47) * high + 4, 1)} for n in range(n_heads)
        ],
        "largest": f"{most:.3f}",
    }
