"""The seal: a note of the state in which both tools were last known to agree, so that the next run need not ask again.

It holds the hashes of dvc.yaml and dvc.lock and, like git's index, size and time stamp of every output, of every input
that people write, and of Snakemake's own records; and it names the objects that DVC's cache must have. While none of
that moved, Snakemake sees by itself whatever a person edits (parameters, code, inputs); once it did, `picollm sync`
finds out what still holds. Code and config.yaml are not in it: both tools look at their content anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from picollm.data.files import write_json
from picollm.pipeline.exclusive import FOLDER
from picollm.pipeline.objects import files_of, is_metric, object_path
from picollm.pipeline.records import METADATA, Table

SEAL = FOLDER / "seal.json"
RECORDS = [str(METADATA), ".snakemake/incomplete"]


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def entry_digest(entry: object) -> str:
    """Of one stage's entry in dvc.lock."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def stamps(root: Path, path: str) -> dict[str, list[int]]:
    """{file: [bytes, time stamp in ns]} of a file, or of every file below a folder."""
    found, top = {}, os.path.join(root, path)
    files = [top] if os.path.isfile(top) else [os.path.join(d, f) for d, _, names in os.walk(top) for f in names]
    for file in sorted(files):
        status = os.lstat(file)
        found[os.path.relpath(file, root)] = [status.st_size, status.st_mtime_ns]
    return found


def read(root: Path) -> dict | None:
    try:
        return json.loads((root / SEAL).read_text())
    except (OSError, ValueError):
        return None


def intact(root: Path, outs: list[str]) -> bool:
    """Whether nothing moved since the seal, or there is nothing yet that would need one. Milliseconds."""
    seal = read(root)
    if seal is None:
        return not any((root / out).exists() for out in outs)
    now = {path: stamps(root, path) for path in seal["watched"]}
    return (
        seal["watched"] == now
        and all((root / path).exists() for path in seal["objects"])
        and seal["dvc.yaml"] == digest(root / "dvc.yaml")
        and seal["dvc.lock"] == digest(root / "dvc.lock")
    )


def write(root: Path, table: Table, lock: dict[str, dict], cache: Path) -> None:
    """Seal the present state."""
    locked = [out for entry in lock.values() for out in entry["outs"] if not is_metric(out["path"])]
    oids = {oid for out in locked for oid in (out["md5"], *files_of(cache, out).values())}
    write_json(
        root / SEAL,
        {
            "dvc.yaml": digest(root / "dvc.yaml"),
            "dvc.lock": digest(root / "dvc.lock"),
            "stages": {stage: entry_digest(entry) for stage, entry in lock.items()},
            "objects": [os.path.relpath(object_path(cache, oid), root) for oid in sorted(oids)],
            "watched": {path: stamps(root, path) for path in [*table.maker, *table.sources, *RECORDS]},
        },
    )


def lift(root: Path) -> None:
    (root / SEAL).unlink(missing_ok=True)
