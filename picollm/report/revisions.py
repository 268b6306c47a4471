"""Reads one revision of the project (a commit, or the working tree) from git and DVC's cache, without a checkout.

Files may have been written by another version of the code, so all are parsed in one place, `Revision.part`, which
handles failures.
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

WORKSPACE = "workspace"  # the working tree; takes precedence over a branch of that name


@dataclass
class Revision:
    """One side of the comparison. `notes` says what can't be read, as {path: why}."""

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
        """Reads a file that git tracks, or any file of the working tree; None if it is missing."""
        if self.commit is None:
            file = self.root / path
            return file.read_bytes() if file.is_file() else None
        try:
            return git(self.root, "cat-file", "blob", f"{self.commit}:./{path}")
        except PicollmError:
            return None

    def cached(self, path: str, oid: str | None) -> bytes | None:
        """Reads an object of DVC's cache and checks its md5; returns None, with a note, if it is not available."""
        file = object_path(self.cache, oid or "")
        if oid is None:
            self.note(path, "is not in its dvc.lock")
        elif not file.is_file():
            self.note(path, "isn't in DVC's cache: `dvc fetch --all-commits` may fetch it")
        elif md5(file) != oid.removesuffix(".dir"):
            self.note(path, "is damaged in DVC's cache: `picollm verify --fix`")
        else:
            return file.read_bytes()
        return None

    def read(self, path: str, oid: str | None = None) -> bytes | None:
        """Reads an output (`oid`: of a file in a folder); returns None, with a note, if it is not available."""
        oid = oid or self.outs.get(path, {}).get("md5")
        if self.commit and not is_metric(path):
            return self.cached(path, oid)
        data = self.tracked(path)
        if data is None:
            self.note(path, "is not committed" if self.commit else "is missing")
        elif oid and hashlib.md5(data).hexdigest() != oid:
            self.note(path, "differs from the file that its dvc.lock records")
        return data

    def files(self, folder: str) -> dict[str, str]:
        """Returns {path: md5} of a folder's files; empty, with a note, if their list is not available."""
        if self.commit:
            out = self.outs.get(folder, {})
            listed = self.cached(folder, out.get("md5")) is not None
            return locked_files(self.cache, out) if listed else {}
        digests = {path: md5(self.root / path) for path in files_of(self.root, folder)}
        if not digests:
            self.note(folder, "is missing")
        return digests

    def part(self, path: str, parse: Callable[[bytes], dict], oid: str | None = None) -> dict:
        """Returns what `parse` makes of an output; empty, with a note, if it is missing or has another form."""
        data = self.read(path, oid)
        try:
            return {} if data is None else parse(data)
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            self.note(path, f"has a form that this version can't read ({type(error).__name__})")
            return {}


def open_revision(root: Path, cache: Path, name: str) -> Revision:
    """Opens a revision. Raises PicollmError if git knows no such revision, or if no run is recorded in it."""
    commit, about, remedy = None, "the working tree", "run the pipeline, or `git checkout HEAD -- dvc.lock`"
    if name != WORKSPACE:
        try:
            commit = git(root, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}").decode().strip()
        except PicollmError:
            known = "name one of `git log --oneline --all`, or `workspace`"
            raise PicollmError(f"git knows no commit, tag or branch {name!r} here: {known}") from None
        about = git(root, "log", "-1", "--format=%h, %cs: %s", commit).decode(errors="replace").strip()
        remedy = "name a commit that has one (`git log --oneline -- dvc.lock`)"
    revision = Revision(name, commit, about, root, cache)
    text = revision.tracked("dvc.lock")
    if text is None:
        raise PicollmError(f"{name} has no dvc.lock, so no run is recorded in it: {remedy}")
    lock = table_of(text).get("stages")
    if not isinstance(lock, dict) or not all(isinstance(entry, dict) for entry in lock.values()):
        raise PicollmError(f"dvc.lock of {name} is damaged: {remedy}")
    revision.lock = lock
    return revision


def table_of(text: bytes) -> dict:
    """Parses YAML; empty if it is not a table."""
    try:
        value = parse_yaml(text.decode(errors="replace"), "it")
    except PicollmError:
        return {}
    return value if isinstance(value, dict) else {}
