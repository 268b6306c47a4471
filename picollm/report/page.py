"""The report: one HTML file from a template, with every picture inside and no script, so that it opens anywhere."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from picollm.engine.table import on_cpu
from picollm.report.gallery import embedded
from picollm.report.style import LABEL_COLOURS
from picollm.report.summary import lines


def percent(share: float | None, digits: int = 1) -> str:
    return "not defined" if share is None else f"{share * 100:.{digits}f} %"


def number(value: float | int | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def with_interval(row: dict, digits: int = 2) -> Markup:
    """A statistic and its 95 % interval: {value, low, high}."""
    if row["value"] is None:
        return Markup("–")
    interval = "" if row["low"] is None else f"{row['low']:.{digits}f} … {row['high']:.{digits}f}"
    return Markup('{} <span class="interval">{}</span>').format(f"{row['value']:.{digits}f}", interval)


def render(template: Path, figures: Path, chapters: dict[str, dict], metrics: dict[str, dict], cfg: dict) -> str:
    """The same inputs give the same bytes. Raises PicollmError where a figure is missing or damaged."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "with_interval": with_interval}
    pictures = embedded(figures)
    groups: dict[str, list[dict]] = {}
    for entry in pictures.values():
        if entry["group"]:
            groups.setdefault(entry["group"], []).append(entry)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        **chapters,
        metrics=metrics,
        cfg=cfg,
        pictures=pictures,
        groups=groups,
        on_cpu=on_cpu,
        lines=lines(metrics, chapters["heads"], chapters["benchmark"]),
        colours=LABEL_COLOURS,
    )
