"""`picollm verify`: hashes every file that dvc.lock names, in the workspace and in DVC's cache, and compares.

DVC does not do this: its state database regards a file with the old size and time stamp as unchanged, and it checks out
damaged objects of its cache. `--fix` moves what is wrong to aside/ and then runs `picollm sync`, which restores and
records; it deletes nothing but Snakemake's stale locks.
"""

from __future__ import annotations

import base64
import binascii
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline import locks, receipts, sync, verify_machine
from picollm.pipeline.graph import MEND_LOCK
from picollm.pipeline.receipts import files_of, md5
from picollm.pipeline.repository import dvc_repo, git, is_metric, locked_files, object_path

FOLDERS = ("data", "reports")
LOCKS = ".snakemake/locks/*.lock"
HEADINGS = ("Damage", "Leftovers", "Settings", "Machine")
THREADS = 4  # useful because hashlib releases the interpreter's lock


def hashed(path: Path) -> str:
    """Returns the md5 of a file's bytes, or why it can't be read."""
    try:
        return md5(path)
    except OSError as error:
        return f"can't be read ({error.strerror})"


@dataclass
class Audit:
    """Collects problems (heading, text, remedy; empty if --fix does it), notes, and the files that --fix moves."""

    state: sync.State
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)  # files of the workspace
    bad_objects: list[Path] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)  # stages that ran after dvc.lock was written

    def __post_init__(self) -> None:
        self.root, self.graph, self.lock = self.state.root, self.state.graph, self.state.lock
        self.no_list: dict[str, str] = {}  # {stage: why the files of its folder are unknown}
        self.wanted = {stage: self.files_wanted(stage) for stage in self.graph.stages}
        self.present = {stage: self.present_files(stage) for stage in self.graph.stages}
        self.hash()
        self.leftovers()
        for stage in self.graph.stages:
            self.judge(stage)
        self.judge_lock()
        self.judge_cache()
        self.foreign()
        size = sum((self.root / path).lstat().st_size for path in self.files)
        bad = verify_machine.bad_settings(self.root, self.link_types())
        self.problems += [("Settings", *setting) for setting in bad]
        warnings = verify_machine.warnings(self.root, self.state.cache, size)
        self.notes += [("Settings", f"warning: {text}") for text in warnings]
        self.notes += [("Machine", text) for text in verify_machine.machine_facts()]

    def link_types(self) -> list[str]:
        return self.state.repo.config["cache"].get("type") or []

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def damage(self, text: str, remedy: str = "") -> None:
        self.problems.append(("Damage", text, remedy))

    def leftover(self, text: str, remedy: str = "") -> None:
        self.problems.append(("Leftovers", text, remedy))

    def present_files(self, stage: str) -> list[str]:
        return [file for file in sync.present_files(self.state, stage) if not file.endswith(".partial")]

    def files_wanted(self, stage: str) -> dict[str, str]:
        """Returns {file: md5} from dvc.lock, without those of a folder whose list is missing or damaged."""
        wanted: dict[str, str] = {}
        for out in self.lock.get(stage, {}).get("outs", []):
            if out["path"] in self.graph.maker:
                try:
                    wanted |= locked_files(self.state.cache, out)
                except PicollmError as error:
                    self.no_list[stage] = str(error)
        return wanted

    def hash(self) -> None:
        """Sets `files`, {path: md5} of present files, and `objects`, {path: md5} of dvc.lock's objects in the cache."""
        oids = {out["md5"] for entry in self.lock.values() for out in entry["outs"]}
        oids = oids.union(*(wanted.values() for wanted in self.wanted.values()))
        objects = [path for oid in sorted(oids) if os.path.lexists(path := object_path(self.state.cache, oid))]
        files = sorted({file for files in self.present.values() for file in files})
        with ThreadPoolExecutor(THREADS) as pool:
            self.files = dict(zip(files, pool.map(hashed, (self.root / file for file in files)), strict=True))
            self.objects = dict(zip(objects, pool.map(hashed, objects), strict=True))

    def leftovers(self) -> None:
        for path in sorted(self.root.glob(LOCKS)):
            self.leftover(f"{self.name(path)}: the lock of a run that was killed")
        self.half_written = {
            decoded(path) for path in (self.root / ".snakemake/incomplete").rglob("*") if path.is_file()
        }
        if self.half_written:
            half = ", ".join(sorted(self.half_written))
            self.leftover(f"{half}: unfinished, as a run was killed", "`snakemake` makes it again")
        for path in sorted(file for top in FOLDERS for file in (self.root / top).rglob(".*.partial")):
            self.leftover(f"{self.name(path)}: half a file")
            self.aside.append(self.name(path))
        for path in sorted(git_files(self.root, "--unmerged")):
            self.leftover(f"{path}: git's merge is not finished", f"edit it, then `git add {path}`")
        for path in sorted((self.root / receipts.RECEIPTS).glob("*.json")):
            try:
                receipts.read_one(path)
            except PicollmError:
                self.notes.append(("Leftovers", f"{self.name(path)}: damaged or of another version, not used"))
            else:
                if path.stem not in self.graph.outs:
                    self.notes.append(("Leftovers", f"{self.name(path)}: of a rule that no longer exists, not used"))
        kept = files_of(self.root, "aside")
        if kept:
            size = sum((self.root / path).lstat().st_size for path in kept) / 1e6
            self.notes.append(("Leftovers", f"aside/ keeps {len(kept)} files, {size:.1f} MB, until you delete them"))

    def judge(self, stage: str) -> None:
        """Compares a stage's files with dvc.lock."""
        wanted, present = self.wanted[stage], self.present[stage]
        if self.half_written & {self.state.target(out) for out in self.graph.outs[stage]}:
            return
        wrong = [file for file, oid in wanted.items() if self.files.get(file) != oid]
        if (wrong or self.differs(stage)) and self.state.proven(stage) and not self.only_uncached(stage):
            self.leftover(f"{stage}: a finished run that dvc.lock does not name")
            self.unrecorded.append(stage)
        elif stage not in self.lock:
            if present or self.graph.downstream([stage]) & self.lock.keys():
                self.damage(f"dvc.lock has no entry for {stage}", MEND_LOCK)
        elif not self.same_outputs(stage):
            self.damage(f"dvc.lock and dvc.yaml name different outputs of {stage}", MEND_LOCK)
        elif all(map(is_metric, present)):
            whole = stage not in self.no_list and all(map(self.sound, wanted.values()))
            self.damage(
                f"{stage}: its files are not here", "" if whole else "`dvc pull`, or `snakemake` makes them again"
            )
        else:
            self.judge_files(stage, wrong)

    def differs(self, stage: str) -> bool:
        """Returns True if a stage's entry in dvc.lock is not for its current inputs, or contradicts another stage."""
        if stage not in self.lock or stage in self.no_list or not self.same_outputs(stage):
            return True
        written = {out["path"]: out["md5"] for entry in self.lock.values() for out in entry["outs"]}
        contradiction = any(written.get(dep["path"], dep["md5"]) != dep["md5"] for dep in self.lock[stage]["deps"])
        return contradiction or (stage in self.state.changed and self.state.changed[stage].edited)

    def same_outputs(self, stage: str) -> bool:
        return {out["path"] for out in self.lock[stage]["outs"]} == set(self.graph.outs[stage])

    def only_uncached(self, stage: str) -> bool:
        change = self.state.changed.get(stage)
        return change is not None and sync.only_uncached(self.state, stage, change)

    def judge_files(self, stage: str, wrong: list[str]) -> None:
        wanted = self.wanted[stage]
        for file in wrong:
            self.judge_file(file, wanted[file])
        if stage in self.no_list:  # damage of the cache is reported with the cache
            if not self.only_uncached(stage) and "damaged" not in self.no_list[stage]:
                self.damage(f"{stage}: {self.no_list[stage]}", MEND_LOCK)
            return
        for file in self.present[stage]:
            if file not in wanted and not any(str(parent) in wanted for parent in Path(file).parents):
                self.damage(f"{file}: foreign, not written by {stage}")
                self.aside.append(file)

    def judge_file(self, file: str, oid: str) -> None:
        """Reports a file that is missing, or has other bytes than dvc.lock says."""
        actual, folder = self.files.get(file), (self.root / file).is_dir()
        what = "damaged" if actual else "missing" + ", a folder has its name" * folder
        if actual and actual.startswith("can't"):
            what = actual
        if actual or folder:
            self.aside.append(file)
        bring = f"`git checkout HEAD -- {file}`" if is_metric(file) else "`dvc pull`"
        again = f"{bring}; or `picollm verify --fix`, and `snakemake` makes it again"
        self.damage(f"{file}: {what}", "" if self.sound(oid) else again)

    def sound(self, oid: str) -> bool:
        """Returns True if the cache has the object, undamaged."""
        return self.objects.get(object_path(self.state.cache, oid)) == oid.removesuffix(".dir")

    def judge_lock(self) -> None:
        for stage in sorted(self.lock.keys() - self.graph.outs.keys()):
            self.damage(f"dvc.lock names a stage {stage}, which dvc.yaml does not", MEND_LOCK)
        edited = [stage for stage, change in self.state.changed.items() if change.edited and stage in self.lock]
        edited = [stage for stage in edited if stage not in self.unrecorded]
        if edited:
            text = f"{', '.join(edited)}: parameters, code or inputs were edited since, so the next run makes it again"
            self.notes.append(("Leftovers", text))

    def judge_cache(self) -> None:
        """Checks the objects that dvc.lock names; those of other projects that share the cache are not checked."""
        owners = {oid: file for wanted in self.wanted.values() for file, oid in wanted.items()}
        outs = [out for entry in self.lock.values() for out in entry["outs"]]
        lists = {out["md5"]: out["path"] for out in outs if out["md5"].endswith(".dir")}
        owners |= {oid: f"the list of the files of {path}" for oid, path in lists.items()}
        present = set(self.files.values())
        for oid, owner in sorted(owners.items(), key=lambda item: item[1]):
            path = object_path(self.state.cache, oid)
            here = oid in present or (oid in lists and (self.root / lists[oid]).is_dir())
            if path in self.objects and not self.sound(oid):
                actual = self.objects[path]
                self.bad_objects.append(path)
                remedy = "" if here or is_metric(owner) else "`picollm verify --fix` moves it away, then `dvc pull`"
                what = actual if actual.startswith("can't") else "damaged"
                self.damage(f"{self.name(path)}: {what}; it is {owner}", remedy)
            elif path not in self.objects and here and not is_metric(owner):
                self.damage(f"DVC's cache lacks {owner}")

    def foreign(self) -> None:
        """Reports files next to the outputs: they break nothing, but nothing accounts for them either."""
        known = {path for paths in (*self.present.values(), *self.graph.deps.values()) for path in paths}
        known |= git_files(self.root, *FOLDERS) | set(self.aside)
        folders = {".", *FOLDERS} | {str(parent) for path in known for parent in Path(path).parents}
        unknown = {file for top in FOLDERS for file in files_of(self.root, top)} - known
        unknown = {file for file in unknown if not any(dep in known for dep in map(str, Path(file).parents))}
        for path, count in sorted(Counter(topmost(Path(path), folders) for path in unknown).items()):
            files = f", {count} files" if count > 1 else ""
            self.damage(f"{path}: foreign, no stage writes or reads it{files}", "move it out of data/ and reports/")


def git_files(root: Path, *arguments: str) -> set[str]:
    """Returns the paths that `git ls-files` lists; none without git."""
    try:
        lines = os.fsdecode(git(root, "ls-files", "-z", *arguments)).split("\0")
    except PicollmError:
        return set()
    return {line.rpartition("\t")[2] for line in lines if line}


def decoded(marker: Path) -> str:
    """Returns the output that one of Snakemake's markers stands for."""
    try:
        return base64.urlsafe_b64decode(marker.name).decode()
    except (binascii.Error, UnicodeDecodeError):
        return marker.name


def topmost(path: Path, known: Iterable[str]) -> str:
    """Returns the path, or the topmost of its folders that contains nothing known."""
    return next((f"{parent}/" for parent in reversed(path.parents) if str(parent) not in known), str(path))


def verify(root: Path, fix: bool) -> int:
    """Prints problems, notes and a verdict; returns 0 if everything is proven, else 1. With `fix`, repairs first.

    Raises PicollmError if a run is active, or if dvc.lock, dvc.yaml, config.yaml or a folder can't be used.
    """
    try:
        if fix:
            stale = sorted(root.glob(LOCKS))
            lock = locks.hold(root)  # noqa: F841  held until the verdict
            done = [f"{path.relative_to(root)}: removed" for path in stale] + repair(root)
            for line in ["Repaired", *(f"  {line}" for line in done)] if done else []:
                print(line)
        else:
            locks.refuse_beside_a_run(root)
        before, start = locks.last_run(root), time.monotonic()
        audit = audited(root)
        seconds = time.monotonic() - start
        if locks.last_run(root) != before:
            raise PicollmError("a run was active during the check: run `picollm verify` again when it has ended")
    except OSError as error:
        raise PicollmError(str(error)) from None
    show(audit, seconds)
    return 1 if audit.problems else 0


def audited(root: Path) -> Audit:
    with dvc_repo(root) as repo:
        return Audit(sync.State(root, repo))


def repair(root: Path) -> list[str]:
    """Sets aside what is wrong, then syncs; returns lines that say what was done."""
    audit = audited(root)
    if not any(heading in ("Damage", "Leftovers") for heading, *_ in audit.problems):
        return []
    for path in audit.bad_objects:
        away = root / "aside" / time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime()) / Path("cache", *path.parts[-2:])
        away.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, away)  # not rename: the cache may be on another disk
    sync.set_aside(root, audit.aside)
    done = [f"{audit.name(path)}: moved to aside/" for path in audit.bad_objects]
    done += [f"{path}: moved to aside/" for path in audit.aside]
    try:
        sync.sync(root)
    except PicollmError as error:
        done.append(f"`picollm sync` failed: {error}")
    return done


def show(audit: Audit, seconds: float) -> None:
    for heading in HEADINGS:
        lines = [f"{text}: {remedy}" if remedy else text for h, text, remedy in audit.problems if h == heading]
        lines += [text for where, text in audit.notes if where == heading]
        for line in [heading, *(f"  {line}" for line in lines)] if lines else []:
            print(line)
    sizes = [audit.root / path for path in audit.files] + [*audit.objects]
    size = sum(path.lstat().st_size for path in sizes) / 1e9
    count, fixed = len(audit.problems), sum(not remedy for *_, remedy in audit.problems)
    verdict = (
        f"{count} problem{'s' * (count > 1)}" if count else "all proven" if audit.files else "nothing has run here yet"
    )
    verdict += f"; `picollm verify --fix` repairs {fixed} of them" if fixed else ""
    print(
        f"verify: {len(audit.files)} files, {len(audit.objects)} cache objects, {size:.1f} GB hashed in "
        f"{seconds:.1f} s: {verdict}"
    )
