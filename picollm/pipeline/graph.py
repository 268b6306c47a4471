"""Reads dvc.yaml, dvc.lock and the result of `dvc status`; writes nothing.

Anything that can't be parsed raises PicollmError: a tool's error never means "current".
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx

from picollm.errors import PicollmError, reason_of
from picollm.yaml12 import parse_yaml

MEND_LOCK = (
    "restore it (`git checkout HEAD -- dvc.lock`), then run `picollm sync`; rules whose results differ run again"
)
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "all"]


class Graph:
    """The stages of dvc.yaml in topological order. Paths are relative to the repository."""

    def __init__(self, root: Path) -> None:
        entries = read_stages(root / "dvc.yaml", "run `picollm dvc-yaml`")
        self.deps: dict[str, list[str]] = {name: entry["deps"] for name, entry in entries.items()}
        self.outs = {name: paths(entry.get("outs", []) + entry.get("metrics", [])) for name, entry in entries.items()}
        self.params = {name: [s for e in entry["params"] for s in e["config.yaml"]] for name, entry in entries.items()}
        self.commands = {name: entry["cmd"] for name, entry in entries.items()}
        self.maker = {out: stage for stage, outs in self.outs.items() for out in outs}
        self.edges = nx.DiGraph()
        self.edges.add_nodes_from(entries)
        self.edges.add_edges_from((self.maker[d], s) for s, deps in self.deps.items() for d in deps if d in self.maker)
        try:
            self.stages: list[str] = list(nx.lexicographical_topological_sort(self.edges, list(entries).index))
        except nx.NetworkXUnfeasible:
            raise PicollmError("dvc.yaml has a cycle: run `picollm dvc-yaml`") from None

    def upstream(self, stage: str) -> set[str]:
        """Returns the stages whose outputs a stage reads."""
        return set(self.edges.predecessors(stage))

    def downstream(self, stages: Iterable[str]) -> set[str]:
        """Returns the stages and all stages that depend on them."""
        stages = set(stages)
        return stages.union(*(nx.descendants(self.edges, stage) for stage in stages))

    def rules(self, stage: str) -> list[str]:
        """Returns the Snakemake rules that belong to a stage."""
        return self.commands[stage].partition(" --allowed-rules ")[2].partition(" -- ")[0].split()

    def sources(self, stage: str) -> list[str]:
        """Returns the inputs that no stage writes, except code, which is part of the fingerprint."""
        return [dep for dep in self.deps[stage] if dep not in self.maker and not dep.endswith(".py")]

    @property
    def every_source(self) -> list[str]:
        return sorted({path for stage in self.stages for path in self.sources(stage)})


def paths(entries: list) -> list[str]:
    """Returns the paths of outputs, which DVC writes as a path or as {path: options}."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def read_stages(path: Path, remedy: str) -> dict[str, dict]:
    """Reads a file's stages. Raises PicollmError, with the `remedy`, if it is damaged or has merge conflict markers."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
        raise PicollmError(f"{path.name} contains git's merge conflict markers: {remedy}")
    try:
        value = parse_yaml(text, path.name)
    except PicollmError as error:
        raise PicollmError(f"{path.name} is damaged ({error}): {remedy}") from None
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise PicollmError(f"{path.name} is damaged (it has no table of stages): {remedy}")
    return value["stages"]


def read_lock(root: Path) -> dict[str, dict]:
    """Reads the stages of dvc.lock; none without such a file. A damaged key is still YAML, so types are checked."""
    if not (root / "dvc.lock").exists():
        return {}
    lock = read_stages(root / "dvc.lock", MEND_LOCK)
    for stage, entry in lock.items():
        try:
            items = entry["deps"] + entry["outs"]
            whole = all(isinstance(item[key], str) for item in items for key in ("path", "md5"))
            whole = whole and all(item["hash"] == "md5" and item["size"] >= 0 for item in items)
            whole = whole and isinstance(entry["params"]["config.yaml"], dict) and isinstance(entry["cmd"], str)
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise PicollmError(f"dvc.lock is damaged (stage {stage}): {MEND_LOCK}")
    return lock


@dataclass
class Change:
    """The reasons why `dvc status` reports a stage as changed."""

    edited: bool = False  # command, parameters, code, or inputs that no stage writes
    data: set[str] = field(default_factory=set)  # inputs written by another stage
    outs: dict[str, str] = field(default_factory=dict)  # path -> modified | deleted | not in cache | ...

    @property
    def only_outputs(self) -> bool:
        return not (self.edited or self.data)


def changes(status: Mapping[str, list], graph: Graph) -> dict[str, Change]:
    """Turns `repo.status()` into the changed stages, in the graph's order."""
    changed = {}
    for stage in graph.stages:
        if stage not in status:
            continue
        changed[stage] = change = Change()
        for entry in status[stage]:
            if isinstance(entry, str):  # "changed command"
                change.edited = True
                continue
            change.outs |= entry.get("changed outs", {})
            deps = set(entry.get("changed deps", {}))
            change.data |= deps & graph.maker.keys()
            change.edited |= bool(deps - graph.maker.keys())
    return changed


def planned(root: Path) -> set[str]:
    """Asks Snakemake which rules it would run now. Takes 1.5 s."""
    rows = (line.split("\t") for line in call([*SNAKEMAKE, "--summary"], root).splitlines())
    return {row[2] for row in rows if len(row) == 6 and row[0] != "output_file" and row[5] != "no update"}


def call(command: list[str], root: Path) -> str:
    """Returns a command's standard output. Raises PicollmError with its last line if it fails."""
    environment = os.environ | {"PICOLLM_UNGUARDED": "1"}  # prevents the Snakefile from starting another sync
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PicollmError(f"`{' '.join(command[2:4])} ...` failed: {reason_of(done.stderr or done.stdout)}")
    return done.stdout
