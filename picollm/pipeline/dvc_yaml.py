"""Generates dvc.yaml from Snakemake's rules: one stage per rule, so that one graph has two drivers.

A stage's deps are the rule's inputs and code files, its params the config sections it reads, its outs the rule's
outputs: `manifest.json` stands for its whole folder, and files in reports/metrics/ are metrics, which git tracks.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from picollm.errors import PicollmError
from picollm.files import nearest_existing
from picollm.inputs import corpus_dependencies, corpus_files
from picollm.pipeline.fingerprint import rule_code
from picollm.pipeline.receipts import artefact

HEADER = "# Generated from rules/*.smk by `picollm dvc-yaml`: edit the rules, not this file.\n"
LATENCIES, EMERGENCE = "reports/figures/benchmark.csv", "reports/figures/emergence.csv"
# Plots of `dvc plots show` and `dvc plots diff`.
PLOTS = [
    {"reports/training.csv": {"x": "step", "y": ["loss", "validation_loss"], "title": "Training"}},
    {
        "benchmark": {
            "x": {LATENCIES: "p50"},
            "y": {LATENCIES: "name"},
            "template": "bar_horizontal",
            "title": "Latency by backend, output and batch",
            "x_label": "median, ms",
        }
    },
    {
        "emergence": {
            "x": {EMERGENCE: "step"},
            "y": {EMERGENCE: ["kappa_max", "kappa_set", "previous", "duplicate", "induction"]},
            "title": "Heads with an effect",
            "y_label": "heads",
        }
    },
]


@dataclass(frozen=True)
class Stage:
    """A Snakemake rule as DVC needs it. Paths are relative to the repository."""

    name: str
    inputs: list[str]
    outputs: list[str]
    sections: list[str]
    code: list[str] = field(default_factory=list)
    helpers: list[str] = field(default_factory=list)  # other rules that help to make the outputs


def stages_of(rules: Iterable, root: Path, corpus: dict) -> list[Stage]:
    """Returns the stages for Snakemake's rules; `corpus` is the config's section. `all` has no artefact of its own.

    A rule with temporary outputs is not a stage: it belongs to the stage whose script it shares. Rules that write into
    study/ are not stages either, because `dvc repro` would rerun them at every change. A folder of text is one
    dependency: DVC hashes everything in it.
    """
    from snakemake.io import is_flagged  # already imported if there are rules

    files, folders = set(corpus_files(corpus)), corpus_dependencies(corpus)
    rules = [rule for rule in rules if rule.output and not rule.output[0].startswith("study/")]
    temporary = [path for rule in rules for path in rule.output if is_flagged(path, "temp")]

    def inputs(rule) -> list[str]:
        kept = [str(path) for path in rule.input if not any(other.match(path) for other in temporary)]
        return [path for path in kept if path not in files] + folders * (not files.isdisjoint(kept))

    return [
        Stage(
            name=rule.name,
            inputs=inputs(rule),
            outputs=[str(path) for path in rule.output],
            sections=list(rule.params.cfg),
            code=[str(path) for path in rule_code(rule.name, root)],
            helpers=[other.name for other in rules if other is not rule and other.script == rule.script],
        )
        for rule in rules
        if not any(path in temporary for path in rule.output)
    ]


def entry_of(stage: Stage) -> dict:
    deps = sorted({artefact(path) for path in stage.inputs} | set(stage.code))
    outs = sorted({artefact(path) for path in stage.outputs})
    metrics = [path for path in outs if path.startswith("reports/metrics/")]
    entry: dict[str, Any] = {
        "cmd": "snakemake --cores all --quiet progress rules host reason --allowed-rules "
        f"{' '.join([stage.name, *stage.helpers])} -- {stage.name}",
        "deps": deps,
        "params": [{"config.yaml": sorted(stage.sections)}],
        "outs": [path for path in outs if path not in metrics],
    }
    if metrics:
        entry["metrics"] = [{path: {"cache": False}} for path in metrics]
    return entry


def dvc_yaml(stages: list[Stage]) -> str:
    entries = {stage.name: entry_of(stage) for stage in stages}
    text, writer = io.StringIO(), YAML()
    writer.width = 4096
    writer.dump({"stages": entries, "plots": PLOTS}, text)
    return HEADER + text.getvalue()


def check_writable(stages: list[Stage], root: Path) -> None:
    """Raises PicollmError if an output's folder can't be written; Snakemake would show a traceback, and only later."""
    outputs = {root / path for stage in stages for path in map(os.path.dirname, stage.outputs)}
    for folder in map(nearest_existing, sorted(outputs | {root / "logs/benchmarks", root / ".snakemake/picollm"})):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PicollmError(f"{folder} can't be written (read-only, or another user's): make it writable first")


def refuse_cycle(stages: list[Stage]) -> None:
    """Raises PicollmError if the configuration names a file that depends on the rule that reads it."""
    maker = {path: stage.name for stage in stages for path in stage.outputs}
    graph = {stage.name: {maker[path] for path in stage.inputs if path in maker} for stage in stages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise PicollmError(
            f"a rule would read what depends on it ({' -> '.join(error.args[1])}): the paths in config.yaml "
            "(model.checkpoint, corpus.path, attention.sentences, report.seeds) must not name files that rules write"
        ) from None


def check_dvc_yaml(stages: list[Stage], path: Path, write: bool) -> None:
    """Writes dvc.yaml, or raises PicollmError if the file differs from what the rules give, or has a cycle."""
    refuse_cycle(stages)
    wanted = dvc_yaml(stages)
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    if present == wanted:
        return
    if frozen := re.findall(r"^  (\w+):\n(?:    .*\n)*?    frozen: true", present, re.M):
        raise PicollmError(
            f"{path}: frozen stages are not supported, because Snakemake would run them anyway: "
            f"`dvc unfreeze {' '.join(frozen)}`"
        )
    if not write:
        raise PicollmError(f"{path} differs from what the rules and config.yaml give: run `picollm dvc-yaml`")
    path.write_text(wanted, encoding="utf-8")
