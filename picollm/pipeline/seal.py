"""The seal: detects in milliseconds if anything changed since both tools last agreed, so that a run starts at once.

Like git's index it compares sizes and time stamps: of every output, of inputs that no rule writes, of both tools'
records, and the existence of the objects that DVC's cache must have. Code and config.yaml are not included: both tools
check their content. `guard` in rules/common.smk checks the seal at the start of a run; if it is broken,
picollm.pipeline.sync runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from picollm.files import write_json
from picollm.pipeline.locks import FOLDER
from picollm.pipeline.receipts import RECEIPTS
from picollm.pipeline.repository import METADATA

SEAL = FOLDER / "seal.json"
RECORDS = ["dvc.yaml", "dvc.lock", str(METADATA), ".snakemake/incomplete", str(RECEIPTS)]


def digest(root: Path, watched: Iterable[str], objects: Iterable[str]) -> str:
    """Hashes names, sizes and time stamps of the files in `watched`, and which `objects` exist.

    dvc.yaml and dvc.lock are hashed by content, because git rewrites them when it switches to a branch and back.
    """
    hasher = hashlib.sha256()
    for top in watched:
        if top in ("dvc.yaml", "dvc.lock"):
            data = (root / top).read_bytes() if (root / top).exists() else b""
            hasher.update(f"{top} {hashlib.sha256(data).hexdigest()}\n".encode())
            continue
        start = os.path.join(root, top)
        files = (
            [start] if os.path.isfile(start) else [os.path.join(d, f) for d, _, names in os.walk(start) for f in names]
        )
        for file in sorted(files):
            status = os.lstat(file)
            hasher.update(f"{file.removeprefix(str(root))} {status.st_size} {status.st_mtime_ns}\n".encode())
    for path in objects:
        hasher.update(f"{path} {os.path.exists(os.path.join(root, path))}\n".encode())
    return hasher.hexdigest()


def intact(root: Path, outs: list[str]) -> bool:
    """Returns True if nothing changed since the seal, or if no output exists yet."""
    try:
        seal = json.loads((root / SEAL).read_text())
        return seal["digest"] == digest(root, seal["watched"], seal["objects"])
    except (OSError, ValueError, KeyError, TypeError):
        return not any((root / out).exists() for out in outs)


def write(root: Path, watched: list[str], objects: list[str]) -> None:
    watched = [*watched, *RECORDS]
    write_json(root / SEAL, {"digest": digest(root, watched, objects), "watched": watched, "objects": objects})


def remove(root: Path) -> None:
    (root / SEAL).unlink(missing_ok=True)
