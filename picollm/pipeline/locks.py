"""File locks: one run at a time, and none while a job of a killed run is still writing.

flock, because the kernel gives it back whatever ends the process; Snakemake's own lock outlives a kill.
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

FOLDER = Path(".snakemake/picollm")  # it goes when Snakemake's records go
HOLDER = "PICOLLM_RUN"  # which run holds the lock: set for its children, and for its jobs on other machines


def flock(path: Path, kind: int) -> IO | None:
    """The open, locked file; None where another process holds it. A file system without locks locks nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115  it is locked as long as it is open
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        pass
    return file


def has_locks(path: Path) -> bool:
    """Whether the file system of this locked file has any: some shared ones have not."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def hold(root: Path) -> AbstractContextManager:
    """Lock the repository for this process and its children. Raises PicollmError where somebody else is at work.

    Once it is held nobody else can be, so a lock that Snakemake left behind is stale, and is removed; where the file
    system has no locks, Snakemake's is the only one, and stays.
    """
    if os.environ.get(HOLDER):
        return nullcontext()
    file = flock(root / FOLDER / "run.lock", fcntl.LOCK_EX)
    if file is None:
        owner = (root / FOLDER / "run.lock").read_text().strip() or "unknown"
        raise PicollmError(f"another run is at work here ({owner}): wait for it, or end it")
    jobs = flock(root / FOLDER / "job.lock", fcntl.LOCK_EX)
    if jobs is None:
        owner = (root / FOLDER / "run.lock").read_text().strip()
        file.close()
        raise PicollmError(
            f"a job of an interrupted run ({owner or 'unknown'}) is still at work here: wait for it, or end it "
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
    """Raises PicollmError where a run or its job holds a lock: files are half-written then."""
    for name in ("run.lock", "job.lock"):
        path = root / FOLDER / name
        if path.exists():
            file = flock(path, fcntl.LOCK_EX)
            if file is None:
                raise PicollmError("a run is at work here: verify when it has ended")
            file.close()


def last_run(root: Path) -> int | None:
    """Changes whenever a new run starts."""
    path = root / FOLDER / "run.lock"
    return path.stat().st_mtime_ns if path.exists() else None


def job(root: Path) -> IO | None:
    """The lock that a job holds while it writes; shared, as several run at once."""
    return flock(root / FOLDER / "job.lock", fcntl.LOCK_SH)
