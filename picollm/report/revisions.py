"""One revision of the project (a commit, or the working tree), read from git and DVC's cache without a checkout.

Files may have been written by another version of the code, so each is parsed in one place, `Revision.part`, where that
may fail.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline.receipts import files_of, md5
from picollm.pipeline.repository import git, is_metric, locked_files, object_path
from picollm.yaml12 import parse_yaml

WORKSPACE = "workspace"  # the working tree; the word wins over a branch of that name


@dataclass
class Revision:
    """One side of the comparison. What can't be read of it is said in `notes`, {path: why}."""

    name: str
    commit: str | None  # None: the working tree
    about: str
    root: Path
    cache: Path
    lock: dict[str, dict] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def outs(self) -> dict[str, dict]:
        return {out["path"]: out for entry in self.lock.values() for out in entry.get("outs", [])}

    def note(self, path: str, why: str) -> None:
        self.notes[path] = f"{path} of {self.name} {why}"

    def tracked(self, path: str) -> bytes | None:
        """A file that git keeps; of the working tree, any file."""
        if self.commit is None:
            file = self.root / path
            return file.read_bytes() if file.is_file() else None
        try:
            return git(self.root, "cat-file", "blob", f"{self.commit}:./{path}")
        except PicollmError:
            return None

    def cached(self, path: str, oid: str | None) -> bytes | None:
        """An object of DVC's cache, proved by its md5; None, with a note, where it can't be had."""
        file = object_path(self.cache, oid or "")
        if oid is None:
            self.note(path, "is not in its dvc.lock")
        elif not file.is_file():
            self.note(path, "isn't in DVC's cache: `dvc fetch --all-commits` may bring it")
        elif md5(file) != oid.removesuffix(".dir"):
            self.note(path, "is damaged in DVC's cache: `picollm verify --fix`")
        else:
            return file.read_bytes()
        return None

    def read(self, path: str, oid: str | None = None) -> bytes | None:
        """The bytes of an output (`oid`: of a file in a folder); None, with a note, where they can't be had."""
        oid = oid or self.outs.get(path, {}).get("md5")
        if self.commit and not is_metric(path):
            return self.cached(path, oid)
        data = self.tracked(path)
        if data is None:
            self.note(path, "is not committed" if self.commit else "isn't there")
        elif oid and hashlib.md5(data).hexdigest() != oid:
            self.note(path, "is another file than its dvc.lock records")
        return data

    def files(self, folder: str) -> dict[str, str]:
        """{path: md5} of the files of a folder; empty, with a note, where their list can't be had."""
        if self.commit:
            out = self.outs.get(folder, {})
            listed = self.cached(folder, out.get("md5")) is not None
            return locked_files(self.cache, out) if listed else {}
        found = {path: md5(self.root / path) for path in files_of(self.root, folder)}
        if not found:
            self.note(folder, "isn't there")
        return found

    def part(self, path: str, parse: Callable[[bytes], dict], oid: str | None = None) -> dict:
        """What `parse` makes of an output; empty, with a note, where it is missing or has another form."""
        data = self.read(path, oid)
        try:
            return {} if data is None else parse(data)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            self.note(path, f"has a form that this version can't read ({type(error).__name__})")
            return {}


def open_revision(root: Path, cache: Path, name: str) -> Revision:
    """Raises PicollmError where git knows no such revision, or no run is recorded in it."""
    commit, about, mend = None, "the working tree", "run the pipeline, or `git checkout HEAD -- dvc.lock`"
    if name != WORKSPACE:
        try:
            commit = git(root, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}").decode().strip()
        except PicollmError:
            known = "name one of `git log --oneline --all`, or `workspace`"
            raise PicollmError(f"git knows no commit, tag or branch {name!r} here: {known}") from None
        about = git(root, "log", "-1", "--format=%h, %cs: %s", commit).decode(errors="replace").strip()
        mend = "name a commit that has one (`git log --oneline -- dvc.lock`)"
    revision = Revision(name, commit, about, root, cache)
    text = revision.tracked("dvc.lock")
    if text is None:
        raise PicollmError(f"{name} has no dvc.lock, so no run is recorded in it: {mend}")
    lock = table_of(text).get("stages")
    if not isinstance(lock, dict) or not all(isinstance(entry, dict) for entry in lock.values()):
        raise PicollmError(f"dvc.lock of {name} is damaged: {mend}")
    revision.lock = lock
    return revision


def table_of(text: bytes) -> dict:
    """Empty where it is no YAML table."""
    try:
        value = parse_yaml(text.decode(errors="replace"), "it")
    except PicollmError:
        return {}
    return value if isinstance(value, dict) else {}
