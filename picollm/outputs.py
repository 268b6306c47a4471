"""Checks what a command is asked to write: before hours of work, and never over the pipeline's own files."""

from __future__ import annotations

import os
from pathlib import Path

from picollm.errors import PicollmError
from picollm.files import nearest_existing

OWN = ("data", "reports", ".git", ".dvc", ".snakemake")
# The commands' default outputs (picollm.cli): written again even if the user committed the previous one.
DEFAULTS = (
    "page.html", "comparison.html", "picollm.zip", "exported", "analysis", "seeds.json", "optimized", "profile"
)  # fmt: skip


def new_file(name: str) -> Path:
    """Returns the path of a file to write. Raises PicollmError if it must not or can't be written."""
    path = Path(name)
    if path.is_dir():
        raise PicollmError(f"{path} is a folder: name a file")
    refuse_own(path)
    check_writable(path.parent)
    return path


def new_folder(name: str) -> Path:
    """Returns the path of a folder to write into. Raises PicollmError if it must not or can't be written."""
    path = Path(name)
    refuse_own(path)
    check_writable(path)
    return path


def refuse_own(path: Path) -> None:
    """Raises PicollmError for what a rule or git accounts for: such a file would be lost, or be taken for a result."""
    root, full = Path.cwd().resolve(), path.resolve()
    if not full.is_relative_to(root):
        return
    inside = full.relative_to(root)
    if str(inside) in DEFAULTS:
        return
    if not inside.parts or inside.parts[0] in OWN or tracked(root, inside):
        raise PicollmError(f"{path} belongs to the pipeline or to git: choose another name for the output")


def tracked(root: Path, path: Path) -> bool:
    """Returns True if git has the file, or a file in the folder."""
    from picollm.pipeline.repository import git  # imported here: not every command writes, and the import takes 0.1 s

    try:
        return bool(git(root, "ls-files", "--", str(path)))
    except PicollmError:  # no repository
        return False


def check_writable(folder: Path) -> None:
    """Raises PicollmError if files can't be written into the folder, or if it can't be created."""
    present = nearest_existing(folder)
    if not present.is_dir():
        raise PicollmError(f"{present} is a file, not a folder: choose another name")
    if not os.access(present, os.W_OK | os.X_OK):
        raise PicollmError(f"{folder} can't be written (no permission to write): choose another folder")
