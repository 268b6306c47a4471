"""Crash-tolerant work: a journal of completed parts, and a parent that restarts the process without what ended it.

A backend that raises loses only its own results. One that crashes, breaks the GPU (after an illegal access every later
call of the process fails, from any backend) or never returns is identified by the journal's last mark: the process
ends, and a new one resumes without that backend.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from picollm.errors import PicollmError, one_line

BROKEN = 75  # exit code of a process whose GPU no longer works
LIMIT = 600.0  # seconds without a mark: a compilation takes less, even on a slow machine
MARK_SECONDS = 1.0  # shortest interval between identical marks: they are written between timed calls
POLL_SECONDS = 0.5


class Journal:
    """Journal; `entries` has the completed parts by key; without a folder it is in memory only.

    folder/done.jsonl has a line per entry, folder/now the running backend and its task.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.at = folder, 0.0
        self.entries: dict[str, Any] = {}
        self.marked: tuple[str, str] | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.read(folder)

    def read(self, folder: Path) -> None:
        with suppress(FileNotFoundError):
            for line in (folder / "done.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # left by a process killed while writing
                    key, value = json.loads(line)
                    self.entries[key] = value

    def add(self, key: str, value: Any) -> Any:
        self.entries[key] = value
        if self.folder:
            with open(self.folder / "done.jsonl", "a", encoding="utf-8") as file:
                # The newline keeps a truncated line from merging with this one.
                file.write(f"\n{json.dumps([key, value], allow_nan=False)}\n")
        return value

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Returns the entry under the key; if missing, adds the result of `make`."""
        return self.entries[key] if key in self.entries else self.add(key, make())

    @property
    def ended(self) -> dict[str, str]:
        """Backends that ended a process, and how."""
        return {key.removeprefix("ended "): why for key, why in self.entries.items() if key.startswith("ended ")}

    def mark(self, backend: str = "", where: str = "") -> None:
        """Marks this backend as running from now on; without one, no backend is to blame."""
        now = time.monotonic()
        if not self.folder or (backend, where) == self.marked and now - self.at < MARK_SECONDS:
            return
        self.marked, self.at = (backend, where), now
        (self.folder / "now").write_text(f"{backend}\n{where}", encoding="utf-8")

    def last_mark(self) -> tuple[str, str]:
        if not self.folder:
            return "", ""
        try:
            backend, _, where = (self.folder / "now").read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return "", ""
        return backend, where

    def watched(self, backend: str, where: str, run: Callable) -> Callable:
        """Wraps `run` with a mark; ends this process if `run` raises and leaves a broken GPU."""

        def call(*inputs):
            self.mark(backend, where)
            try:
                return run(*inputs)
            except Exception as error:
                self.end_if_broken(backend, where, error)
                raise

        return call

    def end_if_broken(self, backend: str, where: str, error: Exception) -> None:
        if self.folder and gpu_is_broken():
            self.add(f"ended {backend}", f"it broke the GPU {where}: {one_line(error)[:200]}")
            sys.stderr.flush()
            os._exit(BROKEN)  # an orderly teardown needs the GPU


def gpu_is_broken() -> bool:
    """Tests if this process can no longer use its GPU; running out of memory does not count."""
    torch = sys.modules.get("torch")  # heavy to import: the parent does not need it
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def supervise(command: list[str], journal: Path, *, needed: str, limit: float = LIMIT) -> None:
    """Runs a command that keeps a journal in this folder; reruns it for each backend that ends it, until it is done.

    Raises PicollmError with the reason that the command itself recorded (`child`), or if the only one to blame is
    `needed`, the backend without which nothing can be measured.
    """
    Journal(journal).add("error", None)  # clears the error of an earlier attempt
    while ended := run_once(command, journal, limit):
        kept = Journal(journal)
        if kept.entries["error"]:
            raise PicollmError(kept.entries["error"])
        backend, where = kept.last_mark()
        if backend in ("", needed) or (backend in kept.ended and ended != BROKEN_WORDS):
            raise PicollmError(f"the measurement {ended} {where}".rstrip())
        if backend not in kept.ended:
            kept.add(f"ended {backend}", f"it {ended} {where}")
        kept.mark()


BROKEN_WORDS = "broke the GPU"


def run_once(command: list[str], journal: Path, limit: float) -> str | None:
    """Runs the command; returns None if it succeeded, else how it ended, in words."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    changed, since = None, start
    try:
        while time.monotonic() - since < limit:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SECONDS)
                if code < 0:
                    return f"ended its process ({signal.Signals(-code).name})"
                return {0: None, BROKEN: BROKEN_WORDS}.get(code, f"ended its process (exit code {code})")
            if (now := stamp(journal)) != changed:
                changed, since = now, time.monotonic()
        return f"gave no answer for {limit:g} s"
    finally:
        with suppress(ProcessLookupError):  # also kills its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stamp(journal: Path) -> tuple[int, ...]:
    files = [journal / "now", journal / "done.jsonl"]
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


def child(work: Callable[[Journal], None], journal: Path) -> None:
    """Runs the work of a supervised command, records its error for the parent, and exits when the parent ends."""

    def follow() -> None:
        os.read(0, 1)  # not through sys.stdin, whose lock Python needs at exit
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    kept = Journal(journal)
    try:
        work(kept)
    except PicollmError as error:
        kept.add("error", str(error))
        sys.exit(1)
