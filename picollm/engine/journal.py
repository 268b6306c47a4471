"""Work that may end its process: a journal of what is done, and a parent that starts it again without what ended it.

A backend that raises costs only itself. One that crashes, that breaks the GPU (after an illegal access every later call
of the process fails, whoever makes it) or that never returns is known by the journal's last mark: the process ends, and
a new one goes on without that backend from where the old one was.
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

BROKEN = 75  # the exit code of a process whose GPU answers nobody any more
LIMIT = 600.0  # seconds without a mark: a compilation, on a slow machine too, takes less
MARK_SECONDS = 1.0  # marks of one and the same are written no more often: they stand between timed calls
POLL_SECONDS = 0.5


class Journal:
    """`entries`, by key, are what is done; without a folder in memory alone.

    folder/done.jsonl has a line for each entry, folder/now the backend at work and at what.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.at = folder, 0.0
        self.entries: dict[str, Any] = {}
        self.marked: tuple[str, str] | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self.read()

    def read(self) -> None:
        with suppress(FileNotFoundError):
            for line in (self.folder / "done.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # of a process that was killed while it wrote
                    key, value = json.loads(line)
                    self.entries[key] = value

    def add(self, key: str, value: Any) -> Any:
        self.entries[key] = value
        if self.folder:
            with open(self.folder / "done.jsonl", "a", encoding="utf-8") as file:
                # A line that was cut off must not swallow this one.
                file.write(f"\n{json.dumps([key, value], allow_nan=False)}\n")
        return value

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What is there under the key, else what `make` returns, and then it is there."""
        return self.entries[key] if key in self.entries else self.add(key, make())

    @property
    def ended(self) -> dict[str, str]:
        """Backends that ended a process, and how."""
        return {key.removeprefix("ended "): why for key, why in self.entries.items() if key.startswith("ended ")}

    def mark(self, backend: str = "", where: str = "") -> None:
        """From here on this backend is at work; without one, none is to blame."""
        now = time.monotonic()
        if not self.folder or (backend, where) == self.marked and now - self.at < MARK_SECONDS:
            return
        self.marked, self.at = (backend, where), now
        (self.folder / "now").write_text(f"{backend}\n{where}", encoding="utf-8")

    def last_mark(self) -> tuple[str, str]:
        try:
            backend, _, where = (self.folder / "now").read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return "", ""
        return backend, where

    def watched(self, backend: str, where: str, run: Callable) -> Callable:
        """`run`, marked; where it raises and leaves a broken GPU behind, this process ends."""

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
            os._exit(BROKEN)  # what would be torn down in order needs the GPU


def gpu_is_broken() -> bool:
    """Whether this process can't use its GPU any more; too little memory is no such thing."""
    torch = sys.modules.get("torch")  # heavy: the parent has no need of it
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def supervise(command: list[str], journal: Path, *, needed: str, limit: float = LIMIT) -> None:
    """Run a command that keeps a journal in this folder, again for each backend that ends it, until it is done.

    Raises PicollmError with what the command itself gave as the reason (`child`), or where nothing but `needed`, the
    backend without which there is nothing to measure, is to blame.
    """
    Journal(journal).add("error", None)  # of an attempt before this one
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
    """None where the command succeeded; else how it ended, in words."""
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
        with suppress(ProcessLookupError):  # and what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stamp(journal: Path) -> tuple[int, ...]:
    files = [journal / "now", journal / "done.jsonl"]
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


def child(work: Callable[[Journal], None], journal: Path) -> None:
    """What a supervised command does: the work, its error as a reason for the parent, an end when the parent ends."""

    def follow() -> None:
        os.read(0, 1)  # not through sys.stdin, whose lock Python wants at its end
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    kept = Journal(journal)
    try:
        work(kept)
    except PicollmError as error:
        kept.add("error", str(error))
        sys.exit(1)
