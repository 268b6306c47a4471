"""Fetches files of a dataset repository on the Hugging Face hub, or of a local folder with its layout.

It does not use `datasets.load_dataset`, which streams without a checksum or makes another copy; the files are plain
parquet. `huggingface_hub`, on which it is built, resumes a broken download and stores each file under its sha256.
"""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from picollm.errors import PicollmError, one_line
from picollm.files import sha256

log = logging.getLogger(__name__)
PATIENCE = 5  # seconds until a silent hub counts as unreachable; by default the library tries for 24 s


@cache
def fetch(repository: str, revision: str, folder: str) -> Path:
    """Returns a local folder with the repository's `folder` at a commit, every file verified by its sha256.

    Raises PicollmError if the hub can't be reached, does not know the repository or commit, or sent other bytes.
    """
    if Path(repository).is_dir():
        if not (Path(repository) / folder).is_dir():
            raise PicollmError(f"corpus.hub = {repository} has no folder {folder}: it must have the hub's layout")
        return Path(repository) / folder
    from huggingface_hub import constants, snapshot_download  # 0.6 s

    wanted = {"repo_id": repository, "repo_type": "dataset", "revision": revision, "allow_patterns": f"{folder}/*"}
    try:
        local = snapshot_download(**wanted, local_files_only=True)
    except OSError:  # not cached, or not completely
        log.info("fetching %s/%s at %s from %s", repository, folder, revision[:12], constants.ENDPOINT)
        try:
            refuse_silence(constants.ENDPOINT)
            local = snapshot_download(**wanted, etag_timeout=PATIENCE)
        except (OSError, ValueError) as error:  # the library's own errors are of these classes
            raise PicollmError(
                f"{repository} can't be fetched from {constants.ENDPOINT} ({one_line(error)[:160]}): check the network "
                f"and corpus.revision, or copy its folder {folder} here and set corpus.source: local and corpus.path, "
                "or set corpus.source: enwiki-sample"
            ) from None
    files = sorted(path for path in Path(local, folder).rglob("*") if path.is_file())
    for file in files:
        check_sha256(file)
    if not files:
        raise PicollmError(f"{repository} has no folder {folder} at {revision}: check corpus.hub and corpus.revision")
    return Path(local, folder)


def refuse_silence(endpoint: str) -> None:
    """Raises OSError within PATIENCE seconds if nobody answers."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None


def check_sha256(file: Path) -> None:
    """Checks a file against its sha256, the name of the blob it links to. Raises PicollmError if the bytes differ."""
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
        raise PicollmError(f"{file.name} has a wrong checksum: delete {blob} and run again")
