"""`picollm page`: writes the report's page from the current files, even if a run is unfinished or out of date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from picollm.attention.sentences import CATEGORIES
from picollm.console.status import next_run
from picollm.errors import PicollmError
from picollm.files import write_text
from picollm.pipeline.receipts import artefact
from picollm.report.page import render
from picollm.report.sources import FIGURES, PATHS, read_sources, run, with_seeds
from picollm.yaml12 import read_yaml


def page_of_now(output: Path, cfg: dict[str, Any]) -> list[str]:
    """Writes the page; returns what is wrong with each missing or outdated report, and what to run. If files were moved
    or edited since the last run, that comes first: it is then unknown which reports are out of date.

    Raises PicollmError if there is no report.
    """
    maps = [f"data/attention/{category}.npz" for category in CATEGORIES]
    sources = read_sources(PATHS, maps)
    if not sources.reports:
        raise PicollmError(f"nothing to show yet: {next(iter(sources.absent.values()))}")
    try:
        waiting, first = made_by(next_run()), []
    except PicollmError as error:
        waiting, first = set(), [str(error)]
    old = {
        name: f"{path} is out of date: run `{run(path)}`"
        for name, path in (PATHS | {"maps": maps[0], "figures": FIGURES}).items()
        if artefact(path) in waiting and name not in sources.absent
    }
    write_text(output, render(Path(FIGURES), with_seeds(replace(sources, old=old), cfg), cfg))
    return [*first, *(sources.absent | old).values()]


def made_by(rules: Sequence[str]) -> set[str]:
    """Returns the files and folders that these rules make."""
    stages = read_yaml("dvc.yaml")["stages"]
    return {path for name in rules if name in stages for path in stages[name]["outs"]}
