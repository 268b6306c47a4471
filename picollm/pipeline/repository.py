"""The repository as git and DVC know it. What they refuse becomes one line."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.errors import PicollmError, one_line

if TYPE_CHECKING:
    from dvc.repo import Repo


def git(root: Path, *arguments: str) -> bytes:
    """Standard output of a git command. Raises PicollmError, with git's last line, where it fails."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    except FileNotFoundError:
        raise PicollmError("git is not installed") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        if "dubious ownership" in lines[0]:
            lines = [f"{root} belongs to another user: `{lines[-1].strip()}`, if you trust it"]
        raise PicollmError(f"`git {arguments[0]}` failed: {lines[-1]}")
    return done.stdout


@contextmanager
def dvc_repo(root: Path) -> Iterator[Repo]:
    """DVC's view of the repository. Inside, `root` is the working folder: DVC names stages relative to it.

    Raises PicollmError for every DvcException of the block.
    """
    from dvc.exceptions import DvcException  # half a second, which not every command needs
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with chdir(root), Repo(str(root)) as repo:
            yield repo
    except (DvcException, SCMError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PicollmError(f"DVC: {one_line(f'{error}{cause}')}") from None
