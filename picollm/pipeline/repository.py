"""Access to git, to DVC and to DVC's cache, whose files are named after their md5, with a list of files per folder."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.errors import PicollmError, one_line
from picollm.pipeline.receipts import md5

if TYPE_CHECKING:
    from dvc.repo import Repo

METADATA = Path(".snakemake/metadata")


def git(root: Path, *arguments: str) -> bytes:
    """Returns the standard output of a git command. Raises PicollmError, with git's last line, if it fails."""
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
    """Opens DVC's view of the repository. In the block, `root` is the working folder: DVC names stages relative to it.

    Raises PicollmError for every DvcException of the block.
    """
    from dvc.exceptions import DvcException  # the import takes half a second, and not every command needs it
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with chdir(root), Repo(str(root)) as repo:
            yield repo
    except (DvcException, SCMError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise PicollmError(f"DVC: {one_line(f'{error}{cause}')}") from None


@cache
def cache_folder(root: Path) -> Path:
    """Returns the folder of DVC's local cache, as DVC's configuration sets it."""
    with dvc_repo(root) as repo:
        return Path(repo.cache.local.path)


def is_metric(path: str) -> bool:
    """Returns True if git, and not DVC, stores the output."""
    return path.startswith("reports/metrics/")


def object_path(cache: Path, oid: str) -> Path:
    """Returns an object's path in DVC's cache folder (`.../files/md5`)."""
    return cache / oid[:2] / oid[2:]


def locked_files(cache: Path, out: dict) -> dict[str, str]:
    """Returns the files of one `outs` entry of dvc.lock, {path: md5}; a folder's list is itself an object of the cache.

    Raises PicollmError if that list is missing or damaged.
    """
    path, oid = out["path"], out["md5"]
    if not oid.endswith(".dir"):
        return {path: oid}
    listing = object_path(cache, oid)
    if not listing.exists():
        raise PicollmError(f"DVC's cache has no list of the files of {path}: `dvc pull` may fetch it")
    if md5(listing) != oid.removesuffix(".dir"):
        raise PicollmError(f"DVC's list of the files of {path} is damaged ({listing}): `picollm verify --fix`")
    return {f"{path}/{entry['relpath']}": entry["md5"] for entry in json.loads(listing.read_bytes())}


def known_to_snakemake(root: Path, output: str) -> bool:
    """Returns True if Snakemake has a record of a run that made the output: without one it notices no edit."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    try:
        return "params" in json.loads((root / METADATA / name).read_text())
    except (OSError, ValueError):
        return False
