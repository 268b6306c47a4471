"""What the page is made of: the chapters' reports and maps, read and checked.

One that can't be used costs the page the parts that need it, and no more: there it says what to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from picollm.attention.maps import CategoryMaps, load_categories
from picollm.errors import PicollmError
from picollm.files import read_json
from picollm.seed_summary import for_report

FIGURES = "reports/figures/manifest.json"
PATHS = {
    "data": "data/tokens/manifest.json",
    "engine": "data/engine/manifest.json",
    **{name: f"reports/{name}.json" for name in (
        "training", "heads", "clusters", "mechanisms", "emergence", "ablation", "probes", "findings", "benchmark",
        "profile",
    )},
}  # fmt: skip
# The format that the page reads of each report that has one; tests/test_sources.py holds them equal to what is written.
FORMATS = {
    "data": 3, "engine": 2, "heads": 3, "clusters": 3, "mechanisms": 4, "emergence": 3, "ablation": 2, "probes": 2,
    "findings": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """`reports` by name. `absent`: what is wrong with each that is missing, damaged or of another format, and what to
    run; `old`: the same of those that are there but out of date. Both name the maps `maps`, the figures `figures`."""

    reports: Mapping[str, Any]
    categories: Sequence[CategoryMaps] = ()
    absent: dict[str, str] = field(default_factory=dict)
    old: dict[str, str] = field(default_factory=dict)


def read_sources(paths: Mapping[str, str], maps: Sequence[str], figures: str = FIGURES) -> Sources:
    """`paths` of the reports by name, `maps` of the attention files, `figures` of the manifest of the figures."""
    reports, absent = {}, {}
    for name, path in paths.items():
        try:
            if not Path(path).exists():
                raise PicollmError(f"{path} is missing: run `{run(path)}`")
            found = read_json(path)
            if found.get("format") != FORMATS.get(name, found.get("format")):
                what = f"{path} has format {found.get('format')}, and this page reads {FORMATS[name]}"
                raise PicollmError(f"{what}: run `{run(path, again=True)}`")
            reports[name] = found
        except PicollmError as error:
            absent[name] = str(error)
    categories: list[CategoryMaps] = []
    try:
        categories = load_categories(maps)
    except PicollmError as error:
        absent["maps"] = str(error)
    if not Path(figures).exists():
        absent["figures"] = f"{figures} is missing: run `{run(figures)}`"
    return Sources(reports, categories, absent)


def with_seeds(sources: Sources, cfg: Mapping[str, Any], manifest: str = PATHS["data"]) -> Sources:
    """With `seeds` among the reports where report.seeds names a spread over them; `manifest`: of the packed tokens."""
    path = cfg["report"]["seeds"]
    if path is None or "data" in sources.absent:
        return sources
    return replace(sources, reports={**sources.reports, "seeds": for_report(path, cfg, manifest)})


def run(path: str, again: bool = False) -> str:
    """The command that makes a file, `again` even where Snakemake takes it for current."""
    return f"snakemake --cores all {'--force ' if again else ''}-- {path}"
