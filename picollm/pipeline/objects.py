"""DVC's cache, read as what it is: files named after the md5 of their bytes, and a list of files for each folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from picollm.errors import PicollmError


def is_metric(path: str) -> bool:
    """Whether git keeps the output and DVC does not."""
    return path.startswith("reports/metrics/")


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def object_path(cache: Path, oid: str) -> Path:
    """Where the object lies below DVC's cache folder (`.../files/md5`)."""
    return cache / oid[:2] / oid[2:]


def files_of(cache: Path, out: dict) -> dict[str, str]:
    """The files of one `outs` entry of dvc.lock, {path: md5}; the list of a folder is an object of the cache itself.

    Raises PicollmError where that list is missing or damaged.
    """
    path, oid = out["path"], out["md5"]
    if not oid.endswith(".dir"):
        return {path: oid}
    listing = object_path(cache, oid)
    if not listing.exists():
        raise PicollmError(f"DVC's cache has no list of the files of {path}: `dvc pull` may bring it")
    if md5(listing) != oid.removesuffix(".dir"):
        raise PicollmError(f"DVC's list of the files of {path} is damaged ({listing}): `picollm verify --fix`")
    return {f"{path}/{entry['relpath']}": entry["md5"] for entry in json.loads(listing.read_bytes())}


def differing(root: Path, files: dict[str, str]) -> list[str]:
    """Of {path: md5}, the paths that are missing below `root` or have other bytes; everything is hashed."""
    return [path for path, oid in files.items() if not (root / path).is_file() or md5(root / path) != oid]
