"""Records the training workload with Nsight Systems if it is installed, else with torch.profiler.

In both cases the workload runs in its own process, and its named ranges are returned as a Timeline.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from picollm.errors import PicollmError
from picollm.files import atomic_path, write_json
from picollm.profiling import workload
from picollm.profiling.timeline import Timeline, read_kineto, read_nsys

log = logging.getLogger(__name__)

# nsys mixes its own messages, in no fixed order, with those of its target: a shell saves the latter, and its failure.
APART = '"$@" 2>"$0" || echo $? >"$0.code"'
HINT = "it may lack permission to write in $TMPDIR or /tmp/nvidia; `nsys status --environment` says more"
LIMIT = 600  # seconds without progress: a step, its compilation, and a report of several gigabytes take less
MARK = "PICOLLM_CAPTURE"  # in the environment of every process that a call starts
IMPORTERS = ("/usr/lib/nsight-systems", "/opt/nvidia/nsight-systems")  # where packages install the host-linux folder


class HungError(PicollmError):
    """Signals that a program was killed because it made no progress."""


@dataclass(frozen=True)
class Capture:
    """A capture; `file`: for Nsight Systems, or for Perfetto and chrome://tracing; `reason`: why this tool was used."""

    tool: str
    version: str
    reason: str
    file: Path
    loss_path: str
    timeline: Timeline


def capture(tool: str, spec: dict, folder: Path) -> Capture:
    """Runs the workload of `spec` (see workload.py) under `tool`: auto, nsys or torch.profiler.

    Raises PicollmError if nsys is requested and can't record; `auto` then uses torch.profiler and reports why.
    """
    if tool == "torch.profiler":
        return with_torch(spec, folder, "configured")
    nsys = shutil.which("nsys")
    try:
        if nsys is None:
            raise PicollmError("nsys is not on PATH: install Nsight Systems, or set profile.tool to torch.profiler")
        return with_nsys(nsys, spec, folder, "configured" if tool == "nsys" else "nsys is installed")
    except PicollmError as error:
        if tool == "nsys":
            raise
        if nsys:
            log.warning("nsys can't be used (%s); using torch.profiler instead", error)
        return with_torch(spec, folder, str(error))


def with_nsys(nsys: str, spec: dict, folder: Path, reason: str) -> Capture:
    # Without a GPU nothing reads the system calls (osrt), and tracing them doubles the import time.
    traces = "cuda,nvtx,osrt" if torch.cuda.is_available() else "nvtx"
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "training")
        report, database = base.with_suffix(".nsys-rep"), base.with_suffix(".sqlite")
        profile = [nsys, "profile", "-t", traces, "-s", "none", "--cpuctxsw=none", "-f", "true", "-o", str(base)]
        shell = [*profile, "sh", "-c", APART]
        output = record(shell, base.with_suffix(".errors"), workload_command(spec, Path(scratch)))
        if not report.exists():
            import_by_hand(nsys, base.with_suffix(".qdstrm"), report)
        call([nsys, "export", "--type", "sqlite", "-f", "true", "-o", str(database), str(report)], LIMIT)
        timeline = read_nsys(database)
        file = folder / report.name
        with atomic_path(file) as temporary:
            shutil.copyfile(report, temporary)
    version = call([nsys, "--version"], LIMIT).split()[-1]
    return Capture("nsys", version, reason, file, loss_path(output), timeline)


def record(profile: list[str], errors: Path, workload: list[str]) -> str:
    """Runs nsys; returns the workload's output. Raises PicollmError if the workload failed, nsys hung, or nsys failed
    twice: on a busy machine its own processes occasionally lose contact with one another."""
    output = ""
    for again in (True, False):
        try:
            with one_at_a_time():
                output = call([*profile, str(errors), *workload], LIMIT, errors)
            break
        except PicollmError as error:
            check_workload(errors)
            if isinstance(error, HungError):
                raise
            if not again:
                raise PicollmError(f"{error} ({HINT})") from None
            log.warning("%s; retrying once", error)
    check_workload(errors)
    return output


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Waits for the user's other captures: of nsys 2022.4 runs started four at a time, one in twenty died early."""
    with Path(tempfile.gettempdir(), f"picollm-nsys-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_workload(errors: Path) -> None:
    """Logs the workload's stderr; raises PicollmError if the shell of APART recorded its failure."""
    stderr = errors.read_text() if errors.exists() else ""  # nsys may have failed before starting it
    log.debug("%s", stderr)
    code = errors.with_suffix(".errors.code")
    if code.exists():
        code = code.read_text().strip()
        raise PicollmError(f"the workload under nsys failed with exit code {code}: {last_line(stderr) or 'no output'}")


def import_by_hand(nsys: str, raw: Path, report: Path) -> None:
    """Runs nsys's importer: Debian's nsys 2022.4 records but does not find it, as it is not in the expected folder."""
    folders = [Path(nsys).resolve().parent.parent, *map(Path, IMPORTERS)]
    importers = [path for folder in folders for path in sorted(folder.glob("**/host-linux-*/QdstrmImporter"))]
    if not raw.exists() or not importers:
        raise PicollmError(f"nsys wrote no report, and QdstrmImporter is in none of {', '.join(map(str, folders))}")
    call([str(importers[0]), "-i", str(raw), "-o", str(report)], LIMIT)


def with_torch(spec: dict, folder: Path, reason: str) -> Capture:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "training.trace.json"
    with tempfile.TemporaryDirectory() as scratch, atomic_path(file) as temporary:
        trace = Path(scratch, file.name)
        output = call([*workload_command(spec, Path(scratch)), "--trace", str(trace)])
        shutil.copyfile(trace, temporary)
    return Capture("torch.profiler", torch.__version__, reason, file, loss_path(output), read_kineto(file))


def workload_command(spec: dict, scratch: Path) -> list[str]:
    path = scratch / "workload.json"
    write_json(path, spec)
    return [sys.executable, "-m", workload.__name__, "--spec", str(path)]


def loss_path(output: str) -> str:
    return re.findall(r"^loss path: (.*)$", output, re.MULTILINE)[-1]


def call(command: list[str], limit: float | None = None, alive: Path | None = None) -> str:
    """Runs a command, logs its output and returns its stdout. Raises PicollmError with the last line of stderr.

    No process that it started outlives it. With `limit` it is killed, and HungError raised, after that many seconds, or
    that many seconds in which the file `alive` has not grown.
    """
    # One thread: the compiler's worker processes would be recorded too.
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", MARK: (mark := uuid.uuid4().hex)}
    name = Path(command[0]).name
    # Files, not pipes: a surviving process that inherited a pipe would keep its reader waiting.
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            ended = wait(process, limit, alive)
        finally:
            end(mark)
            process.wait()
        out.seek(0), err.seek(0)
        output, errors = out.read(), err.read()
    log.debug("%s\n%s%s", " ".join(command), output, errors)
    if not ended:
        raise HungError(
            f"{name} hung: nothing happened for {limit:g} seconds, so it was killed; set profile.tool to torch.profiler"
        )
    if process.returncode:
        message = last_line(errors) or last_line(output) or "no output"
        raise PicollmError(f"{name} failed with exit code {process.returncode}: {message}")
    return output


def wait(process: subprocess.Popen, limit: float | None, alive: Path | None) -> bool:
    """Waits for the process; returns True if it exited before the limit."""
    seen, since = None, time.monotonic()
    while limit is None or time.monotonic() - since < limit:
        with suppress(subprocess.TimeoutExpired):
            process.wait(None if limit is None else min(limit, 1.0))
            return True
        size = alive.stat().st_size if alive and alive.exists() else None
        if size != seen:
            seen, since = size, time.monotonic()
    return False


def end(mark: str) -> None:
    """Kills the remaining processes of a call: nsys leaves some behind, in another session and with another parent."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it exited meanwhile, or is another user's
            if process.environ().get(MARK) == mark:
                process.kill()


def last_line(output: str) -> str:
    return (output.strip().splitlines() or [""])[-1][:300]
