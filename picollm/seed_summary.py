"""Summary of `picollm seeds`: mean and extremes over seeds, agreement of two seeds, and the configuration it is for.

It is separate from picollm.seeds, which trains, so that an edit of the training loop does not make the report stale.

Shape suffixes: S seed, H head, L label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from picollm.errors import PicollmError
from picollm.files import read_json, sha256
from picollm.wording import count

FORMAT = 2
SECTIONS = ("model", "pretrain", "compute", "attention", "heads")  # config sections that determine the results of seeds
IRRELEVANT = ("seed", "snapshots", "checkpoint_every", "loading")  # keys of these sections that don't


def recipe(config: Mapping[str, Mapping[str, Any]], manifest: str | Path) -> str:
    """Hashes everything that determines the results of seeds except the seed; `manifest` is the packed tokens'."""
    kept = {name: {k: v for k, v in config[name].items() if k not in IRRELEVANT} for name in SECTIONS}
    files = [sha256(manifest), sha256(config["attention"]["sentences"])]
    return hashlib.sha256(json.dumps([kept, files], sort_keys=True).encode()).hexdigest()


def summary(seeds: Sequence[int], losses: Sequence[float], labels_SH: NDArray[np.int64], recipe_hash: str) -> dict:
    """Mean and extremes of the loss and of each class's share; over pairs of seeds, the share of heads with one label.

    `recipe_hash` is the one from `recipe`.
    """
    from picollm.attention.labels import LABELS  # imported here: SciPy takes seconds, and the Snakefile needs SECTIONS

    shares_SL = (labels_SH[:, :, None] == np.arange(len(LABELS))).mean(1)
    pairs = list(combinations(range(len(seeds)), 2))
    agree = [float((labels_SH[a] == labels_SH[b]).mean()) for a, b in pairs]
    chance = [float(shares_SL[a] @ shares_SL[b]) for a, b in pairs]
    return {
        "format": FORMAT,
        "recipe": recipe_hash,
        "seeds": list(seeds),
        "validation_loss": spread(losses),
        "shares": {label: spread(shares_SL[:, k]) for k, label in enumerate(LABELS)},
        "agreement": float(np.mean(agree)) if pairs else None,
        "agreement_by_chance": float(np.mean(chance)) if pairs else None,
    }


def spread(values: Sequence[float] | NDArray) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "least": float(np.min(values)), "most": float(np.max(values))}


def spread_text(row: Mapping[str, float], form: str) -> str:
    """Formats a spread as text; `form` is the format of one number."""
    return f"{row['mean']:{form}} ({row['least']:{form}} to {row['most']:{form}})"


def lines(report: Mapping[str, Any]) -> list[str]:
    """Formats the summary as lines of text."""
    text = [f"{count(len(report['seeds']), 'seed')}: validation loss {spread_text(report['validation_loss'], '.3f')}"]
    for label, row in report["shares"].items():
        if row["most"]:
            text.append(f"{label:15} {spread_text(row, '.0%')} of the heads")
    if report["agreement"] is not None:
        text.append(
            f"Of two seeds {report['agreement']:.0%} of the heads have the same class; by chance "
            f"{report['agreement_by_chance']:.0%}."
        )
    return text


def for_report(path: str | Path, config: Mapping[str, Mapping[str, Any]], manifest: str | Path) -> dict:
    """Reads a file of `summary` and adds `current`: true if it is for this configuration and these tokens."""
    report = read_json(path)
    if report.get("format") != FORMAT:
        raise PicollmError(f"{path} is of another format: run `picollm seeds` again")
    return report | {"file": str(path), "current": report["recipe"] == recipe(config, manifest)}
