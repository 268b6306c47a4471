"""What the two tools recorded about each stage: dvc.lock and `dvc status`, and `snakemake --summary`.

Everything here reads. Anything that can't be understood raises PicollmError: an error of a tool is never "current".
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from picollm.errors import PicollmError
from picollm.yaml12 import parse_yaml

METADATA = Path(".snakemake/metadata")
MEND_LOCK = "take one whole side (`git checkout HEAD -- dvc.lock`), then `picollm sync`: what it disproves runs again"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "all"]


@dataclass(frozen=True)
class Table:
    """dvc.yaml: what each stage reads and writes, as paths relative to the repository, in the graph's order."""

    deps: dict[str, list[str]]
    outs: dict[str, list[str]]  # metrics included
    params: dict[str, list[str]]
    rules: dict[str, list[str]]  # Snakemake's, that take part in a stage

    @property
    def maker(self) -> dict[str, str]:
        """The stage that writes a path."""
        return {out: stage for stage, outs in self.outs.items() for out in outs}

    def upstream(self, stage: str) -> set[str]:
        """The stages whose outputs a stage reads."""
        return {self.maker[dep] for dep in self.deps[stage] if dep in self.maker}

    def downstream(self, stages: Iterable[str]) -> set[str]:
        """The stages and everything below them."""
        found = set(stages)
        for stage in self.deps:  # in the graph's order: what is above stands before
            if self.upstream(stage) & found:
                found.add(stage)
        return found

    @property
    def sources(self) -> list[str]:
        """Inputs that people write: no stage's output and no code, whose bytes are part of the fingerprint."""
        deps = {dep for deps in self.deps.values() for dep in deps}
        return sorted(dep for dep in deps - self.maker.keys() if not dep.endswith(".py"))


def read_yaml(path: Path, mend: str) -> dict:
    """Raises PicollmError, with what to do, where the file is no YAML table or holds merge conflict markers."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
        raise PicollmError(f"{path.name} holds git's merge conflict markers: {mend}")
    try:
        value = parse_yaml(text, path.name)
    except PicollmError as error:
        raise PicollmError(f"{path.name} is damaged ({error}): {mend}") from None
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise PicollmError(f"{path.name} is damaged (it has no table of stages): {mend}")
    return value


def read_table(root: Path) -> Table:
    stages = read_yaml(root / "dvc.yaml", "run `picollm dvc-yaml`")["stages"]
    table = Table({}, {}, {}, {})
    waiting = dict(stages)
    written = {path for stage in stages.values() for path in paths(stage.get("outs", []) + stage.get("metrics", []))}
    done: set[str] = set()
    while waiting:  # the graph's order
        ready = [name for name, stage in waiting.items() if (set(stage["deps"]) & written) <= done]
        if not ready:
            raise PicollmError("dvc.yaml has a cycle: run `picollm dvc-yaml`")
        for name in ready:
            stage = waiting.pop(name)
            table.deps[name] = stage["deps"]
            table.outs[name] = paths(stage.get("outs", []) + stage.get("metrics", []))
            table.rules[name] = stage["cmd"].partition(" --allowed-rules ")[2].partition(" -- ")[0].split()
            table.params[name] = [section for entry in stage["params"] for section in entry["config.yaml"]]
            done |= set(table.outs[name])
    return table


def paths(entries: list) -> list[str]:
    """DVC writes an output as a path or as {path: options}."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def read_lock(root: Path) -> dict[str, dict]:
    """The stages of dvc.lock; none where there is no such file."""
    path = root / "dvc.lock"
    if not path.exists():
        return {}
    stages = read_yaml(path, MEND_LOCK)["stages"]
    check_shape(stages)
    return stages


def check_shape(lock: dict[str, dict]) -> None:
    """Raises PicollmError where a stage of dvc.lock lacks what every stage has: a damaged key is still YAML."""
    for stage, entry in lock.items():
        try:
            whole = all(isinstance(item[key], str) for item in entry["deps"] + entry["outs"] for key in ("path", "md5"))
            whole = whole and all(item["hash"] == "md5" and item["size"] >= 0 for item in entry["deps"] + entry["outs"])
            whole = whole and isinstance(entry["params"]["config.yaml"], dict) and isinstance(entry["cmd"], str)
        except (KeyError, TypeError):
            whole = False
        if not whole:
            raise PicollmError(f"dvc.lock is damaged (stage {stage}): {MEND_LOCK}")


@dataclass
class Complaints:
    """Why `dvc status` calls a stage changed, in the words that decide what may be done about it."""

    command: bool = False
    sources: set[str] = field(default_factory=set)  # parameters, code, and inputs that people write
    data: set[str] = field(default_factory=set)  # inputs that another stage writes
    outs: dict[str, str] = field(default_factory=dict)  # path -> modified | deleted | not in cache | ...


def complaints(status: dict[str, list], table: Table) -> dict[str, Complaints]:
    """`repo.status()` -> the changed stages, in the graph's order."""
    maker = table.maker
    found = {}
    for stage in table.deps:
        if stage not in status:
            continue
        found[stage] = why = Complaints()
        for entry in status[stage]:
            if isinstance(entry, str):
                why.command = True
                continue
            why.outs |= entry.get("changed outs", {})
            for dep in entry.get("changed deps", {}):
                (why.data if dep in maker else why.sources).add(dep)
    return found


@dataclass
class Row:
    """What `snakemake --summary` says of a rule's outputs, all of them together."""

    outputs: list[str] = field(default_factory=list)
    known: bool = True  # Snakemake has a record of the run that made them
    missing: bool = False  # one of them at least
    reasons: set[str] = field(default_factory=set)  # of the rule's own to run it: "params changed", ...
    runs: bool = False  # it would run the rule; for a missing file only where something else needs it

    @property
    def current(self) -> bool:
        return self.known and not (self.missing or self.reasons or self.runs)


def summarize(text: str) -> dict[str, Row]:
    """The table of `snakemake --summary` (output, date, rule, log, status, plan) -> a row for each rule."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) != 6 or cells[0] == "output_file":
            continue
        output, _, rule, log, status, plan = cells
        row = rows.setdefault(rule, Row())
        row.outputs.append(output)
        row.known &= log != "-"  # every rule has a log, so a missing one means that Snakemake never saw the run
        row.missing |= status == "missing"
        row.reasons |= {status} - {"ok", "missing"}
        row.runs |= plan != "no update"
    return rows


def summary(root: Path) -> dict[str, Row]:
    return summarize(run([*SNAKEMAKE, "--summary"], root))


def run(command: list[str], root: Path) -> str:
    """Standard output of a command; PicollmError with its last line where it fails."""
    environment = os.environ | {"PICOLLM_UNGUARDED": "1"}  # the Snakefile asks nothing back
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        said = next((line for line in lines if line.startswith("picollm: ")), lines[-1]).removeprefix("picollm: ")
        raise PicollmError(f"`{' '.join(command[2:4])} ...` failed: {said}")
    return done.stdout


def made_by_snakemake(root: Path, output: str) -> bool:
    """Whether nobody wrote the file since the run that Snakemake recorded: its record keeps the file's time stamp."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    try:
        record = json.loads((root / METADATA / name).read_text())
        return record["endtime"] == (root / output).stat().st_mtime
    except (OSError, ValueError, KeyError):
        return False
