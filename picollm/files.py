"""Writes files so that a reader never sees an incomplete one, and hashes them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from picollm.errors import PicollmError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder: renamed to `path` after fsync on success, removed on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """Returns the path if it exists, else the first folder above it that does."""
    return next(place for place in (path, *path.parents) if place.exists())


def sync_folder(folder: Path) -> None:
    """Makes a rename durable: until then a power cut could restore the old name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Writes readable JSON with a final newline. Refuses NaN and infinity, on which readers disagree."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, columns: Collection[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a header and the rows."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())


def read_json(path: str | Path) -> Any:
    """Reads JSON; the type is that declared by its writer. Raises PicollmError if the file is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: check the path, or run the rule that writes it") from None
    except ValueError as error:
        raise PicollmError(
            f"{path} is not valid JSON ({error}): repair it or, if a rule wrote it, delete it and run that rule again"
        ) from None


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
