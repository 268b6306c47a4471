"""What is wrong in the workspace, in dvc.lock, in the manifests and in DVC's cache, by comparing each with the others.

A file is named once, with what a person can do about it, or with nothing where `picollm verify --fix` does it.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from picollm.config import load
from picollm.errors import PicollmError
from picollm.pipeline import machine, records, seal
from picollm.pipeline.evidence import FOLDERS, Evidence, files_below, git_files
from picollm.pipeline.objects import files_of, is_metric, object_path
from picollm.pipeline.records import MEND_LOCK

LOCKS = ".snakemake/locks/*.lock"


@dataclass(frozen=True)
class Problem:
    heading: str
    text: str
    remedy: str  # what a person can do; empty where --fix does it


class Look(Evidence):
    """The evidence, judged: `problems`, `notes` (heading, text), and what `mend` has to do."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.problems: list[Problem] = []
        self.notes: list[tuple[str, str]] = []
        self.lock_is_sound = True
        self.unrecorded: list[str] = []  # stages that ran since dvc.lock was written
        self.unlocked: list[str] = []  # stages that dvc.lock lacks
        self.aside: list[str] = []  # files of the workspace
        self.restore: dict[str, str] = {}  # {file of the workspace: md5}
        self.bad_objects: list[str] = []  # of the cache
        self.put_back: dict[str, str] = {}  # {object of the cache: whose it is}
        self.doubted: set[str] = set()  # files that a problem names already
        self.readers: dict[str, dict[str, str]] = defaultdict(dict)  # {output: {stage: other version, which it read}}
        self.edited: dict[str, list[str]] = defaultdict(list)  # {stage: inputs and parameters that are others now}
        self.listed: set[str] = set()  # outputs whose files are known
        self.sealed = (seal.read(root) or {}).get("watched", {})
        self.judge_leftovers()
        self.judge_lock()
        self.wanted = {stage: self.files_wanted(stage) for stage in self.table.outs}
        for stage in self.table.outs:
            self.judge_stage(stage)
        if self.unlocked:
            self.bad_lock(f"dvc.lock has no entry for {', '.join(self.unlocked)}")
        self.judge_edits()
        self.judge_manifests()
        self.judge_cache()
        self.judge_foreign()
        size = sum(found.size for found in self.of.values())
        self.problems += [Problem("Settings", *found) for found in machine.bad_settings(root, self.link_types)]
        self.notes += [("Settings", f"warning: {text}") for text in machine.warnings(root, self.cache, size)]
        self.notes += [("Machine", text) for text in machine.offers()]

    def damage(self, text: str, remedy: str = "") -> None:
        self.problems.append(Problem("Damage", text, remedy))

    def leftover(self, text: str, remedy: str = "") -> None:
        self.problems.append(Problem("Leftovers", text, remedy))

    def bad_lock(self, text: str) -> None:
        self.lock_is_sound = False
        self.damage(text, MEND_LOCK)

    # --- Leftovers

    def judge_leftovers(self) -> None:
        for path in sorted(self.root.glob(LOCKS)):
            self.leftover(f"{self.name(path)}: the lock of a run that was killed")
        marked = sorted(map(decoded, files_below(self.root / ".snakemake/incomplete")))
        maker = {name: stage for out, stage in self.table.maker.items() for name in (out, f"{out}/manifest.json")}
        self.half_written = {maker.get(path, "") for path in marked}
        if marked:
            self.leftover(f"{', '.join(marked)}: unfinished, as a run was killed", "`snakemake` makes it again")
        for path in self.partial:
            self.leftover(f"{path}: half a file")
            self.aside.append(path)
        for path in sorted(git_files(self.root, "--unmerged")):
            self.leftover(f"{path}: git's merge is not finished", f"edit it, then `git add {path}`")
        kept = files_below(self.root / "aside")
        if kept:
            size = sum(path.lstat().st_size for path in kept) / 1e6
            self.notes.append(("Leftovers", f"aside/ keeps {len(kept)} files, {size:.1f} MB, until you delete them"))

    # --- dvc.lock

    def judge_lock(self) -> None:
        """dvc.lock against dvc.yaml, itself, config.yaml, the code and other inputs."""
        stages = records.read_yaml(self.root / "dvc.yaml", "run `picollm dvc-yaml`")["stages"]
        for stage in sorted(self.lock.keys() - stages.keys()):
            self.bad_lock(f"dvc.lock names a stage {stage}, which dvc.yaml does not")
        written = {out["path"]: out["md5"] for entry in self.lock.values() for out in entry["outs"]}
        config = load(self.root / "config.yaml")
        for stage, entry in self.lock.items():
            odd = {out["path"] for out in entry["outs"]} ^ set(self.table.outs.get(stage, []))
            if odd and stage in stages:
                self.bad_lock(f"dvc.lock and dvc.yaml name different outputs of {stage} ({', '.join(sorted(odd))})")
            if stage in stages and entry["cmd"] != stages[stage]["cmd"]:
                self.bad_lock(f"dvc.lock and dvc.yaml name different commands of {stage}")
            for item in entry["deps"] + entry["outs"]:
                path, oid = item["path"], item["md5"]
                if path in written and oid != written[path]:
                    self.readers[path][stage] = oid
                elif path not in written and path not in self.table.maker and oid != self.version(path):
                    self.edited[stage].append(path)
                elif oid == self.version(path) and item["size"] != self.size(path):
                    self.bad_lock(f"dvc.lock names a wrong size of {path} ({stage})")
            for section, values in entry["params"]["config.yaml"].items():
                if config.get(section) != values:
                    self.edited[stage].append(f"config.yaml: {section}")

    def judge_edits(self) -> None:
        """A difference is an edit where Snakemake would run the stage, and damage of dvc.lock where it would not."""
        for stage in self.unrecorded:  # dvc.lock is about the run before
            self.edited.pop(stage, None)
        disputes = {path: [s for s in stages if s not in self.unrecorded] for path, stages in self.readers.items()}
        if not self.edited and not any(disputes.values()):
            return
        try:
            rows = {stage: row for stage, row in records.summary(self.root).items() if row.known}
        except PicollmError as error:
            rows = {}
            self.notes.append(
                ("Leftovers", f"warning: Snakemake can't say which stages are older than an edit: {error}")
            )
        stale: dict[str, list[str]] = defaultdict(list)
        for path, stages in disputes.items():
            if all(stage in rows and not rows[stage].current for stage in stages):
                for stage in stages:
                    stale[stage].append(path)
            else:
                text = f"{self.table.maker.get(path)} wrote another than {', '.join(stages)} read"
                self.bad_lock(f"dvc.lock names two versions of {path}: {text}")
        for stage, paths in self.edited.items():
            if stage in rows and rows[stage].current:
                self.bad_lock(f"dvc.lock names another {', '.join(paths)} than {stage} was made from")
            else:
                stale[stage] += paths
        if stale:
            causes = ", ".join(sorted({path for paths in stale.values() for path in paths}))
            stages = ", ".join(stage for stage in self.table.outs if stage in stale)
            self.notes.append(("Leftovers", f"{stages}: older than {causes}, and made again by the next run"))

    def files_wanted(self, stage: str) -> dict[str, str]:
        """{file: md5} as far as dvc.lock and the cache's lists say; of two versions the present one."""
        wanted: dict[str, str] = {}
        for out in self.lock.get(stage, {}).get("outs", []):
            path, oid = out["path"], out["md5"]
            if path not in self.files or self.version(path) in self.readers[path].values():
                continue
            if oid.endswith(".dir") and not self.sound(oid) and oid in self.have:
                wanted |= {file: self.of[file].md5 for file in self.files[path]}
            elif not oid.endswith(".dir") or self.sound(oid):
                wanted |= files_of(self.cache, out)
            else:
                continue
            self.listed.add(path)
        return wanted

    # --- The workspace

    def judge_stage(self, stage: str) -> None:
        wanted, outs = self.wanted[stage], self.table.outs[stage]
        present = [file for out in outs for file in self.files[out]]
        foreign = [file for out in outs if out in self.listed for file in self.files[out] if not covers(wanted, file)]
        wrong = [file for file, oid in wanted.items() if file not in self.of or self.of[file].md5 != oid]
        absent = all(is_metric(file) for file in present)
        if stage in self.half_written:
            self.doubted |= {*present, *wanted}
        elif (wrong or stage not in self.lock) and self.ran_since(stage):
            self.leftover(f"{stage}: it ran, but was killed before dvc.lock knew")
            self.unrecorded.append(stage)
            self.doubted |= {*present, *wanted}
        elif stage not in self.lock:
            if not absent or self.table.downstream([stage]) & self.lock.keys():
                self.unlocked.append(stage)
                self.doubted |= set(present)
        else:
            if absent:
                self.judge_absent(stage)
                wrong = [file for file in wrong if is_metric(file)]
            for file in wrong:
                self.judge_file(file, wanted[file])
            for out, oid in self.folders(self.lock[stage]).items():
                if self.files[out] and oid not in self.objects.keys() | self.have.keys():
                    self.damage(f"DVC's cache lacks {list_of(out)}", "`dvc pull`")
            for file in foreign:
                self.damage(f"{file}: foreign, {stage} did not write it{self.known_as(file)}")
                self.aside.append(file)
                self.doubted.add(file)

    def folders(self, entry: dict) -> dict[str, str]:
        """{folder: the object that lists its files} of an entry of dvc.lock, but for those in dispute."""
        outs = {out["path"]: out["md5"] for out in entry["outs"] if out["path"] in self.files}
        folders = {out: oid for out, oid in outs.items() if oid.endswith(".dir")}
        return {out: oid for out, oid in folders.items() if self.version(out) not in self.readers[out].values()}

    def ran_since(self, stage: str) -> bool:
        """Whether a run made the present files after dvc.lock was written: none that was sealed, and manifests hold."""
        lock = self.root / "dvc.lock"
        since = lock.stat().st_mtime if lock.exists() else 0
        outputs = [f"{out}/manifest.json" if (self.root / out).is_dir() else out for out in self.table.outs[stage]]
        return (
            all(records.made_by_snakemake(self.root, output) for output in outputs)
            and all((self.root / output).stat().st_mtime > since for output in outputs)
            and not any(self.disproved(file, entry) for manifest, file, entry in self.claims if manifest in outputs)
            and any(self.sealed.get(out) != seal.stamps(self.root, out) for out in self.table.outs[stage])
        )

    def judge_absent(self, stage: str) -> None:
        """Nothing is there: a clone before `dvc pull`, or somebody deleted it all."""
        files = {file: oid for file, oid in self.wanted[stage].items() if not is_metric(file)}
        whole = (
            all(self.source(file, oid) for file, oid in files.items()) and set(self.table.outs[stage]) <= self.listed
        )
        self.restore |= files if whole else {}
        self.doubted |= files.keys()
        self.damage(f"{stage}: its files are not here", "" if whole else "`dvc pull`, or `snakemake` makes them again")

    def judge_file(self, file: str, oid: str) -> None:
        """A file that is missing, or has other bytes than dvc.lock says."""
        self.doubted.add(file)
        found, source = self.of.get(file), self.source(file, oid)
        known = bool(found) and self.sound(found.md5)
        if source:
            self.restore[file] = oid
        elif known:
            self.damage(
                f"{file}: DVC's cache knows it, but not the version that dvc.lock names", f"`dvc pull`; {MEND_LOCK}"
            )
            return
        folder = (self.root / file).is_dir()
        if folder or (found and not known):
            self.aside.append(file)
        what = "damaged" if found else "missing" + ", a folder has its name" * folder
        if found and found.error:
            what = f"can't be read ({found.error})"
        bring = f"`git checkout HEAD -- {file}`" if is_metric(file) else "`dvc pull`"
        remedy = "" if source else f"{bring}; or `picollm verify --fix`, and `snakemake` makes it again"
        self.damage(f"{file}: {what}{self.known_as(file)}", remedy)

    def known_as(self, file: str) -> str:
        """Whose bytes a wrong file has."""
        here = self.of[file].md5 if file in self.of else ""
        other = next((path for files in self.wanted.values() for path, oid in files.items() if oid == here), None)
        if other:
            return f" (it holds the bytes of {other})"
        return " (it is a version that DVC's cache knows)" if self.sound(here) else ""

    def judge_manifests(self) -> None:
        """What dvc.lock does not disprove may still differ from its manifest."""
        wrong = [(manifest, manifest, "no JSON") for manifest in self.illegible]
        wrong += [(m, file, f"not what {m} says") for m, file, entry in self.claims if self.disproved(file, entry)]
        for manifest, file, what in wrong:
            if not {file, manifest} & self.doubted:
                stage = self.table.maker[manifest.removesuffix("/manifest.json")]
                self.damage(f"{file}: {what}", f"`snakemake -R {stage}` makes it again")

    def judge_foreign(self) -> None:
        """Files beside the outputs: nothing breaks, but nothing proves them either."""
        known = {path for paths in (*self.files.values(), *self.table.deps.values()) for path in paths}
        known |= git_files(self.root, *FOLDERS) | set(self.partial)
        folders = {".", *FOLDERS} | {str(parent) for path in known for parent in Path(path).parents}
        found = {self.name(path) for top in FOLDERS for path in files_below(self.root / top)} - known
        for path, count in sorted(Counter(topmost(Path(path), folders) for path in found).items()):
            files = f", {count} files" if count > 1 else ""
            self.damage(f"{path}: foreign, no stage writes or reads it{files}", "move it out of data/ and reports/")

    # --- DVC's cache

    def judge_cache(self) -> None:
        owners = {oid: file for files in self.wanted.values() for file, oid in files.items()}
        for entry in self.lock.values():
            owners |= {oid: list_of(out) for out, oid in self.folders(entry).items()}
        for oid, owner in sorted(owners.items(), key=lambda item: item[1]):
            if oid in self.objects and not self.sound(oid):
                self.judge_object(oid, owner)
            elif oid not in self.objects and oid in self.have and not is_metric(owner):
                self.damage(f"DVC's cache lacks {owner}")
                self.put_back[oid] = owner

    def judge_object(self, oid: str, owner: str) -> None:
        """A damaged object of the cache; `owner` is what dvc.lock names it for."""
        found = self.objects[oid]
        remedy = "" if oid in self.have or is_metric(owner) else "`picollm verify --fix` moves it away, then `dvc pull`"
        self.bad_objects.append(oid)
        if oid in self.have:
            self.put_back[oid] = owner
        what = f"can't be read ({found.error})" if found.error else "damaged"
        self.damage(f"{self.name(object_path(self.cache, oid))}: {what}; it is {owner}", remedy)


def covers(wanted: dict[str, str], file: str) -> bool:
    """Whether the file is wanted, or lies in a folder that has a wanted file's name."""
    return file in wanted or any(str(parent) in wanted for parent in Path(file).parents)


def list_of(out: str) -> str:
    return f"the list of the files of {out}"


def decoded(marker: Path) -> str:
    """The output that one of Snakemake's markers stands for."""
    try:
        return base64.urlsafe_b64decode(marker.name).decode()
    except (binascii.Error, UnicodeDecodeError):
        return marker.name


def topmost(path: Path, known: set[str]) -> str:
    """The path, or the highest of its folders that holds nothing known."""
    return next((f"{parent}/" for parent in reversed(path.parents) if str(parent) not in known), str(path))
