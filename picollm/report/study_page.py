"""Renders the page of the full study, in Markdown, from study.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from picollm.report.page import number, percent
from picollm.stats import BOOTSTRAPS, SIGNIFICANT

MOST = 12  # heads in the first table
LARGEST = 3  # heads named for a category


def study_page(template: str | Path, study: Mapping) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"percent": percent, "number": number, "effect": effect}
    return environment.from_string(Path(template).read_text(encoding="utf-8")).render(
        study=study,
        effective=effective,
        strongest=strongest,
        of=lambda heads, name: next(head for head in heads if head["name"] == name),
        bootstraps=BOOTSTRAPS,
        significant=SIGNIFICANT,
        most=min(MOST, len(study["classes"])),
    )


def effect(row: Mapping) -> str:
    """Formats an effect in nats and its interval."""
    return f"{row['delta']:+.4f} ({row['low']:+.4f} … {row['high']:+.4f})"


def effective(heads: Sequence[Mapping]) -> list[Mapping]:
    return [head for head in heads if head["q"] < SIGNIFICANT]


def strongest(heads: Sequence[Mapping], with_accuracy: bool = False) -> str:
    top = sorted(heads, key=lambda head: -abs(head["delta"]))[:LARGEST]
    without = [f" [{percent(head['accuracy'])}]" if with_accuracy else "" for head in top]
    return "; ".join(f"{head['name']} {effect(head)}{left}" for head, left in zip(top, without, strict=True)) or "–"
