"""File locks that allow one run at a time, and none while a job of a killed run is still writing.

They use flock, because the kernel releases it however the process ends; Snakemake's own lock outlives a kill.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from picollm.errors import PicollmError

FOLDER = Path(".snakemake/picollm")  # deleted together with Snakemake's records
HOLDER = "PICOLLM_RUN"  # names the run that holds the lock; set for its children and its jobs on other machines


def flock(path: Path, kind: int) -> IO | None:
    """Opens and locks a file; None if another process holds it. On a file system without locks nothing is locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115  the lock lasts as long as the file is open
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        pass
    return file


def has_locks(path: Path) -> bool:
    """Returns True if the file system of this locked file supports locks: some shared ones don't."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def hold(root: Path) -> AbstractContextManager:
    """Locks the repository for this process and its children. Raises PicollmError if another run or job holds a lock.

    While the lock is held no other run is possible, so a lock that Snakemake left behind is stale and is removed. On a
    file system without locks Snakemake's lock is the only one, and is kept.
    """
    if os.environ.get(HOLDER):
        return nullcontext()
    file = flock(root / FOLDER / "run.lock", fcntl.LOCK_EX)
    if file is None:
        owner = (root / FOLDER / "run.lock").read_text().strip() or "unknown"
        raise PicollmError(f"another run is active here ({owner}): wait for it, or end it")
    jobs = flock(root / FOLDER / "job.lock", fcntl.LOCK_EX)
    if jobs is None:
        owner = (root / FOLDER / "run.lock").read_text().strip()
        file.close()
        raise PicollmError(
            f"a job of an interrupted run ({owner or 'unknown'}) is still active here: wait for it, or end it "
            "(on a cluster: `squeue --me`, `scancel`)"
        )
    jobs.close()
    if has_locks(root / FOLDER / "run.lock"):
        for lock in (root / ".snakemake/locks").glob("*.lock"):
            lock.unlink()
    file.truncate(0)
    os.environ[HOLDER] = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
    file.write(os.environ[HOLDER])
    file.flush()
    return file


def refuse_beside_a_run(root: Path) -> None:
    """Raises PicollmError if a run or one of its jobs holds a lock, because files may be half-written."""
    for name in ("run.lock", "job.lock"):
        path = root / FOLDER / name
        if path.exists():
            file = flock(path, fcntl.LOCK_EX)
            if file is None:
                raise PicollmError("a run is active here: run `picollm verify` again when it has ended")
            file.close()


def last_run(root: Path) -> int | None:
    """Returns a time stamp that changes whenever a new run starts; None if there was no run."""
    path = root / FOLDER / "run.lock"
    return path.stat().st_mtime_ns if path.exists() else None


def job(root: Path) -> IO | None:
    """Takes the lock that a job holds while it writes; it is shared, because several jobs run at once."""
    return flock(root / FOLDER / "job.lock", fcntl.LOCK_SH)
