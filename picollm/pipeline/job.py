"""What every workflow script runs inside: its log file, and one clear line when it fails.

    with job(snakemake) as found:
        ...
        found("validation loss 6.39 nats")      # the one thing to know of it, for the run's display

Everything logged or warned goes to the rule's log and, from INFO up, to the console, or under a picture of the run its
warnings and errors into the picture; a traceback goes to the log alone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from picollm import progress
from picollm.errors import PicollmError, one_line
from picollm.model.interruption import ignore_signals
from picollm.pipeline import exclusive
from picollm.pipeline.fingerprint import code_files, fingerprint, imported_modules
from picollm.yaml12 import read_yaml

INTERRUPTED = 130  # as shells call it
RAN_ON = "ran on: "  # the log's last line, for `picollm show`


class IntoPicture(logging.Handler):
    """Warnings and errors, through the job's status file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelname, record.getMessage()))
        progress.report(said=self.said)


@contextmanager
def job(snakemake) -> Iterator[Callable[[str], None]]:
    """Exit code 1 after one line `rule: reason (log: path)`; what the rule had written is removed by Snakemake."""
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if base := os.environ.get(progress.STATUS):
        os.environ[progress.STATUS] = f"{base}/{snakemake.rule}"
    console = IntoPicture() if progress.PICTURE in os.environ else logging.StreamHandler(sys.stderr)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    console.setFormatter(logging.Formatter(f"{snakemake.rule}: %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False  # warnings of libraries: to the log, not to the person
    logging.getLogger("py.warnings").addHandler(file)
    lock = exclusive.job(Path.cwd())  # held as long as this process lives: a killed run's job is seen by the next run
    try:
        check_before(snakemake.params)
        yield lambda text: progress.report(found=text)
        if "DVC_STAGE" in os.environ:
            check_after(snakemake.params)
        file.stream.write(f"{RAN_ON}{json.dumps(surroundings())}\n")
    except (PicollmError, OSError) as error:
        file.stream.write(traceback.format_exc())
        text = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC:
            where = getattr(error, "filename", None) or Path.cwd()
            text += f": make room where {where} lies, and run again"
        if isinstance(error, PicollmError) and error.exit_code != 1:  # ended by request
            stop(text, error.exit_code)
        fail(snakemake.rule, text, path)
    except KeyboardInterrupt:
        stop("stopped from the keyboard: run again to go on", INTERRUPTED)
    except Exception as error:
        file.stream.write(traceback.format_exc())
        fail(snakemake.rule, f"{type(error).__name__}: {one_line(error)[:300]}", path)
    finally:
        if lock:
            lock.close()


def fail(rule: str, reason: str, log: Path) -> None:
    logging.getLogger().error("FAILED: %s (log: %s)", reason, log)
    sys.exit(1)


def stop(said: str, code: int) -> None:
    ignore_signals()  # the rest of the same request: the process ends as it is
    logging.getLogger().warning("%s", said)
    sys.exit(code)


def surroundings() -> dict[str, str]:
    """Where the job ran and with which of picollm's packages, by name."""
    try:
        names = [re.split(r"[^\w.-]", requirement)[0] for requirement in metadata.requires("picollm") or []]
    except metadata.PackageNotFoundError:  # not installed, only on the path
        names = []
    found = {"platform": platform.platform(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    for name in sorted(set(names)):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def code_now() -> str:
    """Of the script that runs; rules may share one."""
    script = Path("workflow_scripts") / Path(sys.modules["__main__"].__file__).name
    return fingerprint(code_files(script, Path()), Path())


def check_before(params) -> None:
    """Raises PicollmError where the code changed since Snakemake read it: the result would get a wrong name."""
    if code_now() != params.code:
        raise PicollmError("its code was edited after the run began: start the run again")


def check_after(params) -> None:
    """Raises PicollmError where config.yaml or the code changed while the job ran: DVC hashes both only afterwards."""
    config = read_yaml("config.yaml")
    code_files.cache_clear()
    imported_modules.cache_clear()
    if {section: config[section] for section in params.cfg} != params.cfg or code_now() != params.code:
        raise PicollmError(
            "config.yaml or its code was edited while it ran, and DVC would file the result under the new values: "
            "start `dvc repro` again (a run of `snakemake` may be edited under)"
        )
