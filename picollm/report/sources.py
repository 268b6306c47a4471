"""Reads and checks the page's sources: the chapters' reports and maps.

If one can't be used, only the parts that need it are missing from the page, which says there what to run.
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
# The format of each report that the page can read; tests/test_sources.py checks that they equal the written formats.
FORMATS = {
    "data": 3, "engine": 2, "heads": 3, "clusters": 3, "mechanisms": 4, "emergence": 3, "ablation": 2, "probes": 3,
    "findings": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """The `reports` by name. `absent` says what is wrong with each that is missing, damaged or of another format, and
    what to run; `old` does so for those that are out of date. Both also have the keys `maps` and `figures`."""

    reports: Mapping[str, Any]
    categories: Sequence[CategoryMaps] = ()
    absent: dict[str, str] = field(default_factory=dict)
    old: dict[str, str] = field(default_factory=dict)


def read_sources(paths: Mapping[str, str], maps: Sequence[str], figures: str = FIGURES) -> Sources:
    """Reads the sources: `paths` are those of reports by name, `maps` of attention files, `figures` of a manifest."""
    reports, absent = {}, {}
    for name, path in paths.items():
        try:
            if not Path(path).exists():
                raise PicollmError(f"{path} is missing: run `{run(path)}`")
            report = read_json(path)
            if report.get("format") != FORMATS.get(name, report.get("format")):
                what = f"{path} has format {report.get('format')}, but this page reads format {FORMATS[name]}"
                raise PicollmError(f"{what}: run `{run(path, again=True)}`")
            reports[name] = report
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
    """Adds `seeds` to the reports if report.seeds names a spread over seeds; `manifest`: of the packed tokens."""
    path = cfg["report"]["seeds"]
    if path is None or "data" in sources.absent:
        return sources
    return replace(sources, reports={**sources.reports, "seeds": for_report(path, cfg, manifest)})


def run(path: str, again: bool = False) -> str:
    """Returns the command that makes a file, with `again` even if Snakemake considers it current."""
    return f"snakemake --cores all {'--force ' if again else ''}-- {path}"
