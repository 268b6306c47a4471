"""Packs one zip to share, with a run's report, figures, numbers, model and provenance."""

from __future__ import annotations

import zipfile
from pathlib import Path

from picollm.errors import PicollmError
from picollm.files import atomic_path

NEEDED = Path("reports/final.html")
FILES = ("config.yaml", "dvc.lock", "dvc.yaml", "README.md", "LICENSE", "CITATION.cff")
FOLDERS = ("reports", "data/model", "data/engine")
LEFT_OUT = ("snapshots", ".engine", ".gitignore")  # large, or made for one machine


def bundle(root: Path, output: Path) -> int:
    """Writes the zip, with equal bytes for equal files; returns the number of files. Raises PicollmError if there is no
    report."""
    if not (root / NEEDED).exists():
        raise PicollmError(f"{NEEDED} is missing: run `make report` first")
    paths = [root / name for name in FILES if (root / name).exists()]
    for folder in FOLDERS:
        paths += sorted(path for path in (root / folder).rglob("*") if path.is_file())
    kept = [path for path in paths if not any(part in str(path.relative_to(root)) for part in LEFT_OUT)]
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in kept:
            entry = zipfile.ZipInfo(f"picollm/{path.relative_to(root)}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return len(kept)
