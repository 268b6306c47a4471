"""Manifests verify artefacts of many files: a manifest.json, written last, with {file, bytes, sha256} of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, cast

from picollm.errors import PicollmError, rerun
from picollm.files import sha256


class Entry(TypedDict):
    file: str
    bytes: int
    sha256: str


def describe(path: Path) -> Entry:
    """Builds the entry of one file next to the manifest."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def entries(manifest: object) -> Iterator[Entry]:
    """Yields every such entry of a manifest, at any depth."""
    if isinstance(manifest, dict):
        if {"file", "bytes", "sha256"} <= manifest.keys():
            yield cast(Entry, manifest)
        manifest = list(manifest.values())
    if isinstance(manifest, list):
        for item in manifest:
            yield from entries(item)


def verified(manifest_path: str | Path, entry: Entry, rule: str) -> Path:
    """Checks an entry's file by its hash. Raises PicollmError naming the rule to run if it is missing or differs."""
    path = Path(manifest_path).parent / entry["file"]
    if not path.exists():
        raise PicollmError(f"{path} is missing although {manifest_path} lists it: {rerun(rule)}")
    if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
        raise PicollmError(f"{path} is damaged (its sha256 differs from the manifest's): {rerun(rule)}")
    return path


def clear(manifest_path: Path, *patterns: str) -> None:
    """Removes an earlier manifest, then the earlier run's files next to it, so that no file is left unlisted."""
    manifest_path.unlink(missing_ok=True)
    for pattern in (*patterns, ".*.partial"):
        for old in manifest_path.parent.glob(pattern):
            old.unlink()
