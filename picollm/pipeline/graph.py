"""dvc.yaml and dvc.lock as data, and what `dvc status` says about them.

Everything here reads. What can't be understood raises PicollmError: an error of a tool never means "current".
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx

from picollm.errors import PicollmError
from picollm.yaml12 import parse_yaml

MEND_LOCK = "take one whole side (`git checkout HEAD -- dvc.lock`), then `picollm sync`: what it disproves runs again"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "all"]


class Graph:
    """The stages of dvc.yaml in an order in which they can run. Paths are relative to the repository."""

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
        """The stages whose outputs a stage reads."""
        return set(self.edges.predecessors(stage))

    def downstream(self, stages: Iterable[str]) -> set[str]:
        """The stages and everything below them."""
        stages = set(stages)
        return stages.union(*(nx.descendants(self.edges, stage) for stage in stages))

    def rules(self, stage: str) -> list[str]:
        """Snakemake's rules that take part in a stage."""
        return self.commands[stage].partition(" --allowed-rules ")[2].partition(" -- ")[0].split()

    def sources(self, stage: str) -> list[str]:
        """Inputs that people write, except code, which is part of the fingerprint."""
        return [dep for dep in self.deps[stage] if dep not in self.maker and not dep.endswith(".py")]

    @property
    def every_source(self) -> list[str]:
        return sorted({path for stage in self.stages for path in self.sources(stage)})


def paths(entries: list) -> list[str]:
    """DVC writes an output as a path or as {path: options}."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def read_stages(path: Path, mend: str) -> dict[str, dict]:
    """Raises PicollmError, with what to do, where the file is damaged or holds merge conflict markers."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
        raise PicollmError(f"{path.name} holds git's merge conflict markers: {mend}")
    try:
        value = parse_yaml(text, path.name)
    except PicollmError as error:
        raise PicollmError(f"{path.name} is damaged ({error}): {mend}") from None
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise PicollmError(f"{path.name} is damaged (it has no table of stages): {mend}")
    return value["stages"]


def read_lock(root: Path) -> dict[str, dict]:
    """The stages of dvc.lock; none where there is no such file. A damaged key is still YAML, so shapes are checked."""
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
    """Why `dvc status` calls a stage changed."""

    edited: bool = False  # command, parameters, code, or inputs that people write
    data: set[str] = field(default_factory=set)  # inputs that another stage writes
    outs: dict[str, str] = field(default_factory=dict)  # path -> modified | deleted | not in cache | ...

    @property
    def only_outputs(self) -> bool:
        return not (self.edited or self.data)


def changes(status: Mapping[str, list], graph: Graph) -> dict[str, Change]:
    """`repo.status()` -> the changed stages, in the graph's order."""
    found = {}
    for stage in graph.stages:
        if stage not in status:
            continue
        found[stage] = change = Change()
        for entry in status[stage]:
            if isinstance(entry, str):  # "changed command"
                change.edited = True
                continue
            change.outs |= entry.get("changed outs", {})
            deps = set(entry.get("changed deps", {}))
            change.data |= deps & graph.maker.keys()
            change.edited |= bool(deps - graph.maker.keys())
    return found


def planned(root: Path) -> set[str]:
    """The rules that Snakemake would run now. Takes 1.5 s."""
    rows = (line.split("\t") for line in call([*SNAKEMAKE, "--summary"], root).splitlines())
    return {row[2] for row in rows if len(row) == 6 and row[0] != "output_file" and row[5] != "no update"}


def call(command: list[str], root: Path) -> str:
    """Standard output of a command; PicollmError with its last line where it fails."""
    environment = os.environ | {"PICOLLM_UNGUARDED": "1"}  # the Snakefile asks nothing back
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        said = next((line for line in lines if line.startswith("picollm: ")), lines[-1]).removeprefix("picollm: ")
        raise PicollmError(f"`{' '.join(command[2:4])} ...` failed: {said}")
    return done.stdout
