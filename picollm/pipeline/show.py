"""`picollm show PATH`: describes a file's origin, from dvc.lock, the receipt of its run and the file itself."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from picollm.errors import PicollmError
from picollm.hardware import in_words
from picollm.pipeline import receipts
from picollm.pipeline.fingerprint import rule_code, rule_fingerprint
from picollm.pipeline.graph import Graph, changes, read_lock
from picollm.pipeline.receipts import differing, files_of, md5
from picollm.pipeline.repository import cache_folder, dvc_repo, locked_files


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Turns {"a": {"b": 1}} into {"a.b": 1}; lists are kept as values."""
    if not isinstance(value, dict):
        return {prefix: value}
    below = {f"{prefix}.{name}" if prefix else str(name): item for name, item in value.items()}
    return {key: leaf for name, item in below.items() for key, leaf in flatten(item, name).items()}


def configured(entry: dict) -> dict[str, object]:
    """Returns the parameters of a stage's entry in dvc.lock, with dotted keys."""
    return flatten(entry.get("params", {}).get("config.yaml", {}))


def columns(rows: Iterable[list[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


@dataclass
class Artefact:
    """A file or folder that a rule writes: `path` is the rule's output `out` or inside it."""

    root: Path
    graph: Graph
    lock: dict[str, dict]
    path: str
    out: str

    @property
    def rule(self) -> str:
        return self.graph.maker[self.out]

    @property
    def entry(self) -> dict:
        """The rule's entry in dvc.lock; empty if no run is recorded."""
        return self.lock.get(self.rule, {})

    def recorded(self) -> dict[str, str]:
        """Returns {file: md5} of the output from dvc.lock. Raises PicollmError if its list is missing or damaged."""
        row = next((row for row in self.entry.get("outs", []) if row["path"] == self.out), None)
        if row is None:
            return {}
        return locked_files(cache_folder(self.root) if row["md5"].endswith(".dir") else Path(), row)

    def state(self) -> str:
        """Says if the files on disk are those that dvc.lock records; hashes everything."""
        try:
            recorded = self.recorded()
        except PicollmError as error:
            return f"unknown: {error}"
        files = {path: oid for path, oid in recorded.items() if f"{path}/".startswith(f"{self.path}/")}
        present = self.files()
        if not files and not present and self.path != self.out:
            raise unknown(self.graph, self.path, recorded)
        if not present:
            return "not here" if files else "not here, and dvc.lock records no run"
        if not files:
            return "not recorded in dvc.lock"
        return (
            "recorded" if files.keys() == set(present) and not differing(self.root, files) else "differs from dvc.lock"
        )

    def files(self) -> list[str]:
        return files_of(self.root, self.path)

    def run(self) -> dict[str, str]:
        """Returns the machine and time, from the receipt of the run that wrote these bytes, or from a report."""
        receipt, files = receipts.read(self.root).get(self.rule), self.files()
        if receipt and files and not differing(self.root, {f: receipt.outputs.get(f, "") for f in files}):
            machine = dict(receipt.machine)
            where = f"{machine.pop('platform')}, {machine.pop('cores')} cores"
            packages = ", ".join(f"{name} {version}" for name, version in machine.items())
            return {"ran on": where, "wall time": f"{receipt.seconds:.1f} s", "packages": packages}
        for out in self.graph.outs[self.rule]:
            try:
                name = out if out.endswith(".json") else f"{out}/manifest.json"
                hardware = json.loads((self.root / name).read_bytes())["hardware"]
                return {"ran on": f"{in_words(hardware)} ({name})"}
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return {"ran on": "not recorded here"}

    def code(self) -> dict[str, str]:
        """Returns the fingerprint of the current code, and how it differs from the code of the recorded run."""
        fingerprint = rule_fingerprint(self.rule, self.root)
        if fingerprint is None:
            return {"code": "unknown: one of its files can't be read"}
        files = {path.as_posix() for path in rule_code(self.rule, self.root)}
        ran = {dep["path"]: dep["md5"] for dep in self.entry.get("deps", []) if dep["path"].endswith(".py")}
        changed = ", ".join(sorted({*differing(self.root, ran), *(files ^ ran.keys())}))
        same = f"changed since the recorded run: {changed}" if changed else "as in the recorded run"
        return {"code": f"{len(files)} files, fingerprint {fingerprint}", "": same if ran else "no recorded run"}

    def text(self) -> str:
        files = self.files()
        size = sum((self.root / file).stat().st_size for file in files)
        facts = {"rule": self.rule, "state": self.state(), "size": f"{size:,} bytes" if files else "not here"}
        if files == [self.path]:
            facts["md5"] = md5(self.root / self.path)
        folder = files != [self.path] or self.path != self.out
        target = shlex.quote(f"{self.out}/manifest.json" if folder and files else self.out)
        facts |= self.run() | self.code()
        facts |= {"again": f"snakemake --cores all -R {self.rule} -- {target}", " ": f"dvc repro -f -s {self.rule}"}
        deps = {dep["path"]: dep["md5"] for dep in self.entry.get("deps", [])}
        deps = deps or dict.fromkeys(self.graph.deps[self.rule], "md5 not recorded")
        inputs = [[path, oid, self.graph.maker.get(path, "written by people")] for path, oid in deps.items()]
        values = [[key, json.dumps(value, ensure_ascii=False)] for key, value in configured(self.entry).items()]
        return "\n".join([
            self.path, *(f"  {key.strip():<10} {value}" for key, value in facts.items()),
            "inputs", *columns(row for row in inputs if not row[0].endswith(".py")),
            "parameters", *(columns(values) if values else ["  not recorded"]),
            "code", *(f"  {path}" for path in deps if path.endswith(".py")),
        ])  # fmt: skip


def source(root: Path, graph: Graph, lock: Mapping[str, dict], name: str) -> str:
    """Lists the rules that read a file which no rule writes, and whether it was edited since their recorded runs."""
    with dvc_repo(root) as repo:
        changed = changes(repo.status(), graph)
    rows = []
    for rule in graph.stages:
        dep = next((dep for dep in graph.deps[rule] if f"{name}/".startswith(f"{dep}/")), None)
        if name != "config.yaml" and dep is None:
            continue
        what = (
            f"sections {', '.join(graph.params[rule])}" if dep is None else f"as part of {dep}" if dep != name else ""
        )
        edited = (
            "edited since its recorded run" if rule in changed and changed[rule].edited else "as in its recorded run"
        )
        rows.append([rule, what, edited if rule in lock else "no recorded run"])
    return "\n".join(
        [name, f"  no rule writes it; {'read by' if rows else 'no rule reads it'}", *(columns(rows) if rows else [])]
    )


def unknown(graph: Graph, path: str, more: Iterable[str]) -> PicollmError:
    known = {*graph.maker, *(dep for deps in graph.deps.values() for dep in deps), *more}
    close = difflib.get_close_matches(path, sorted(known), 3, 0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`dvc stage list` names the rules' outputs"
    return PicollmError(f"no rule writes or reads {path}: {hint}")


def relative(root: Path, path: str) -> str:
    """Returns the path relative to the repository. Links are not followed: DVC may link a file into its cache."""
    full = Path(os.path.normpath(root.absolute() / path))
    for base in (root.absolute(), root.resolve()):
        if full.is_relative_to(base):
            return full.relative_to(base).as_posix()
    raise PicollmError(f"{path} lies outside the repository {root}: name a file inside it")


def show(root: Path, path: str) -> str:
    """Describes the origin of a file or folder, as lines of text; `path` is absolute or relative to `root`.

    Raises PicollmError if no rule writes or reads it.
    """
    if not (root / "dvc.yaml").is_file():
        raise PicollmError(f"{root} has no dvc.yaml: go to the repository's root, or run `picollm dvc-yaml`")
    graph, lock, name = Graph(root), read_lock(root), relative(root, path)
    out = next((out for out in graph.maker if f"{name}/".startswith(f"{out}/")), None)
    if out:
        return Artefact(root, graph, lock, name, out).text()
    below = [Artefact(root, graph, lock, out, out) for out in graph.maker if out.startswith(f"{name}/") or name == "."]
    if below:
        return "\n".join([name, *columns([artefact.path, artefact.rule, artefact.state()] for artefact in below)])
    if (root / name).is_file() or any(name in deps for deps in graph.deps.values()):
        return source(root, graph, lock, name)
    raise unknown(graph, name, [])
