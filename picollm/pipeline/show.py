"""`picollm show PATH`: where a file comes from, out of what dvc.lock, git and the artefacts themselves hold."""

from __future__ import annotations

import csv
import difflib
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline import records, seal
from picollm.pipeline.fingerprint import code_files, fingerprint
from picollm.pipeline.job import RAN_ON
from picollm.pipeline.objects import differing, files_of, md5
from picollm.pipeline.records import Table
from picollm.pipeline.repository import dvc_repo, git
from picollm.yaml12 import read_yaml

COMMITS = 100  # of dvc.lock, looked through at most


# --- Sources: DVC's cache, parameters, descriptions of hardware


@cache
def cache_folder(root: Path) -> Path:
    """DVC's local cache, wherever its configuration puts it."""
    with dvc_repo(root) as repo:
        return Path(repo.cache.local.path)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    if not isinstance(value, dict):
        return {prefix: value}
    below = {f"{prefix}.{name}" if prefix else str(name): item for name, item in value.items()}
    return {key: leaf for name, item in below.items() for key, leaf in flatten(item, name).items()}


def configured(entry: dict) -> dict[str, object]:
    """The parameters of a stage's entry in dvc.lock, dotted."""
    return flatten(entry.get("params", {}).get("config.yaml", {}))


def hardware_of(report: object) -> dict:
    """What a report says of the machine it was measured on; most chapters nothing."""
    return report.get("hardware", {}) if isinstance(report, dict) else {}


def machine(hardware: dict) -> str:
    """One line, without versions."""
    cpu, gpu = hardware.get("cpu"), hardware.get("gpu")
    if not cpu:
        return f"{hardware.get('device')}; the machine is not recorded"
    graphics = f"{gpu['name']}, driver {gpu['driver']}" if gpu else "no NVIDIA GPU"
    threads, memory = hardware["threads"], hardware["memory_gib"]
    return f"{cpu['model']}, {cpu['cores']} cores ({threads} threads used), {memory} GiB; {graphics}"


# --- An artefact


@dataclass
class Artefact:
    """A file or folder that a rule writes: `path`, which is the rule's output `out` or lies inside it."""

    root: Path
    table: Table
    entry: dict  # the stage's in dvc.lock; empty where it has no recorded run
    path: str
    out: str
    problem: str = field(default="", init=False)  # why the recorded files aren't known

    @property
    def rule(self) -> str:
        return self.table.maker[self.out]

    def locked(self, out: str) -> dict:
        return next((row for row in self.entry.get("outs", []) if row["path"] == out), {})

    def recorded(self, out: str) -> dict[str, str]:
        """{file: md5} of an output, as dvc.lock has it."""
        row = self.locked(out)
        if not row:
            return {}
        try:
            return files_of(cache_folder(self.root) if row["md5"].endswith(".dir") else Path(), row)
        except PicollmError as error:
            self.problem = str(error)
            return {}

    def state(self) -> str:
        """Whether what lies there is what dvc.lock records; everything is hashed."""
        inside = f"{self.path}/"
        files = {path: oid for path, oid in self.recorded(self.out).items() if f"{path}/".startswith(inside)}
        present = seal.stamps(self.root, self.path)
        if self.problem:
            return f"not known: {self.problem}"
        if not files and not present and self.path != self.out:
            raise unknown(self.table, self.path, [*self.recorded(self.out)])
        if not present:
            return "not here" if files else "not here, and dvc.lock records no run"
        if not files:
            return "not recorded in dvc.lock"
        same = files.keys() == present.keys() and not differing(self.root, files)
        return "recorded" if same else "differs from dvc.lock"

    def identity(self) -> dict[str, str]:
        """State, size and md5: of what lies there, else of what dvc.lock records."""
        found, row = {"state": self.state()}, self.locked(self.out)
        sizes = [size for size, _ in seal.stamps(self.root, self.path).values()]
        if not sizes and self.path == self.out and "size" in row:
            sizes = [row["size"]]
        found["size"] = f"{sum(sizes):,} bytes" if sizes else "not known"
        known = row.get("md5") if self.path == self.out else self.recorded(self.out).get(self.path)
        here = md5(self.root / self.path) if (self.root / self.path).is_file() else None
        found["md5"] = here or known or "not known"
        if here and known and here != known:
            found["md5"] += f" (dvc.lock: {known})"
        return found

    def again(self) -> list[str]:
        """The commands that make it once more; Snakemake knows a folder by its manifest."""
        folder = self.out != self.path or (self.root / self.out).is_dir() or self.locked(self.out).get("nfiles")
        target = shlex.quote(f"{self.out}/manifest.json" if folder else self.out)
        return [f"snakemake --cores all -R {self.rule} -- {target}", f"dvc repro -f -s {self.rule}"]

    def measured_on(self) -> dict[str, str]:
        """Hardware and versions, from the rule's recorded output that tells them."""
        for out in self.table.outs[self.rule]:
            name = out if out.endswith(".json") else f"{out}/manifest.json"
            oid = self.recorded(out).get(name)
            if oid is None or differing(self.root, {name: oid}):
                continue
            try:
                hardware = hardware_of(json.loads((self.root / name).read_bytes()))
                if hardware:
                    packages = {"Python": hardware.get("python"), **hardware.get("packages", {})}
                    versions = ", ".join(f"{key} {value}" for key, value in packages.items() if value)
                    return {"hardware": f"{machine(hardware)} ({name})", "packages": versions or "not recorded"}
            except (ValueError, KeyError, AttributeError):
                continue
        return ran_on(self.root, self.rule)

    def code(self) -> dict[str, str]:
        """Snakemake's fingerprint of the present code, and whether the recorded run had the same files."""
        script = Path("workflow_scripts") / f"{self.rule}.py"
        try:
            files = code_files(script, self.root)
        except (OSError, SyntaxError):
            return {"code": f"not known: {script} or a module of it can't be read"}
        ran = {dep["path"]: dep["md5"] for dep in self.entry.get("deps", []) if dep["path"].endswith(".py")}
        changed = sorted({*differing(self.root, ran), *({path.as_posix() for path in files} ^ ran.keys())})
        verdict = f"changed since the recorded run: {', '.join(changed)}" if changed else "as in the recorded run"
        return {
            "code": f"{len(files)} files, fingerprint {fingerprint(files, self.root)}",
            "": verdict if self.entry else "no recorded run",
        }

    def text(self) -> str:
        facts = {"rule": self.rule, **self.identity(), "commit": commit(self.root, self.rule)}
        facts |= {"wall time": wall_time(self.root, self.rule), **self.measured_on(), **self.code()}
        lines = [self.path, *(f"  {key:<10} {value}" for key, value in facts.items())]
        snakemake, dvc = self.again()
        lines += [f"  {'again':<10} {snakemake}", f"  {'':<10} {dvc}"]
        deps = {dep["path"]: dep["md5"] for dep in self.entry.get("deps", [])}
        deps = deps or dict.fromkeys(self.table.deps[self.rule], "md5 not recorded")
        maker = self.table.maker
        inputs = [[path, oid, maker.get(path, "written by people")] for path, oid in deps.items()]
        lines += ["inputs", *columns([row for row in inputs if not row[0].endswith(".py")])]
        values = [[key, json.dumps(value, ensure_ascii=False)] for key, value in configured(self.entry).items()]
        lines += ["parameters", *(columns(values) or ["  not recorded"])]
        return "\n".join([*lines, "code", *(f"  {path}" for path in deps if path.endswith(".py"))])


def columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def ran_on(root: Path, rule: str) -> dict[str, str]:
    """The machine and the packages of the rule's last run here, from its log."""
    log = root / f"logs/{rule}.log"
    *_, last = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""] if log.exists() else [""]
    if not last.startswith(RAN_ON):
        return {"hardware": "not recorded here", "packages": "not recorded here"}
    found = json.loads(last.removeprefix(RAN_ON))
    hardware = f"{found.pop('platform')}, {found.pop('cores')} cores (the rule's last run here)"
    return {"hardware": hardware, "packages": ", ".join(f"{name} {version}" for name, version in found.items())}


def wall_time(root: Path, rule: str) -> str:
    """What Snakemake measured, if the last run of the rule was here."""
    try:
        with open(root / f"logs/benchmarks/{rule}.tsv", newline="") as file:
            *_, last = csv.DictReader(file, delimiter="\t")
        return f"{float(last['s']):.1f} s (the rule's last run here)"
    except (OSError, ValueError, KeyError, TypeError):
        return "not recorded here"


def commit(root: Path, stage: str) -> str:
    """The commit that last changed the stage's entry in dvc.lock."""

    def entry(text: str) -> str | None:
        found = re.search(rf"^  {re.escape(stage)}:\n((?:    .*\n?)*)", text, re.MULTILINE)
        return found and found[1]

    try:
        present = entry((root / "dvc.lock").read_text(encoding="utf-8"))
        log = git(root, "log", f"-{COMMITS}", "--format=%H %h, %cs: %s", "--", "dvc.lock").decode(errors="replace")
    except (OSError, PicollmError):
        return "not committed"
    found, lines = "", log.splitlines() if present else []
    for line in lines:
        name, said = line.split(" ", 1)
        try:
            if entry(git(root, "cat-file", "blob", f"{name}:./dvc.lock").decode()) != present:
                break
        except PicollmError:  # the commit removed the file
            break
        found = said
    else:
        found += " (or an earlier one)" if len(lines) == COMMITS else ""
    return found or "not committed"


# --- Everything else


def source(root: Path, table: Table, lock: dict[str, dict], name: str) -> str:
    """The rules that read a file which no rule writes, and whether it changed since their recorded runs."""
    rows = []
    for rule, deps in table.deps.items():
        entry = lock.get(rule, {})
        if name == "config.yaml":
            config = flatten(read_yaml(root / name))
            ran = configured(entry)
            same = all(config.get(key) == value for key, value in ran.items())
            row = [rule, f"sections {', '.join(table.params[rule])}"]
        elif dep := next((dep for dep in deps if f"{name}/".startswith(f"{dep}/")), None):
            ran = {row["path"]: row["md5"] for row in entry.get("deps", []) if row["path"] == dep}
            same = not (edited(root, rule, dep) if (root / dep).is_dir() else differing(root, ran))
            row = [rule if dep == name else f"{rule}, as part of {dep}"]
        else:
            continue
        said = "as in its recorded run" if same else "changed since its recorded run"
        rows.append([*row, said if ran else "no recorded run"])
    return "\n".join([name, f"  no rule writes it; {'read by' if rows else 'no rule reads it'}", *columns(rows)])


def edited(root: Path, rule: str, folder: str) -> bool:
    """Whether a folder that a rule reads changed since the recorded run; DVC keeps no list of its files."""
    with dvc_repo(root) as repo:
        reasons = [entry for entry in repo.status(targets=[rule]).get(rule, []) if isinstance(entry, dict)]
    return any(folder in entry.get("changed deps", {}) for entry in reasons)


def unknown(table: Table, path: str, more: list[str]) -> PicollmError:
    known = {*table.maker, *(dep for deps in table.deps.values() for dep in deps), *more}
    close = difflib.get_close_matches(path, sorted(known), 3, 0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`dvc stage list` names the rules' outputs"
    return PicollmError(f"no rule writes or reads {path}: {hint}")


def relative(root: Path, path: str) -> str:
    """The path below the repository. No link is followed: DVC may link a file into its cache."""
    full = Path(os.path.normpath(root.absolute() / path))
    for base in (root.absolute(), root.resolve()):
        if full.is_relative_to(base):
            return full.relative_to(base).as_posix()
    raise PicollmError(f"{path} lies outside the repository {root}: name a file inside it")


def show(root: Path, path: str) -> str:
    """Where a file or folder of the repository comes from, as lines of text; `path` is absolute or relative to `root`.

    Raises PicollmError where no rule writes or reads it.
    """
    if not (root / "dvc.yaml").is_file():
        raise PicollmError(f"{root} holds no dvc.yaml: go to the repository's root, or run `picollm dvc-yaml`")
    table, lock, name = records.read_table(root), records.read_lock(root), relative(root, path)

    def artefact(path: str, out: str) -> Artefact:
        return Artefact(root, table, lock.get(table.maker[out], {}), path, out)

    out = next((out for out in table.maker if f"{name}/".startswith(f"{out}/")), None)
    if out:
        return artefact(name, out).text()
    below = [artefact(out, out) for out in table.maker if out.startswith(f"{name}/") or name == "."]
    if below:
        return "\n".join([name, *columns([[found.path, found.rule, found.state()] for found in below])])
    if (root / name).is_file() or any(name in deps for deps in table.deps.values()):
        return source(root, table, lock, name)
    raise unknown(table, name, [])
