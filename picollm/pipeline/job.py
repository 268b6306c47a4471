"""Wraps every workflow script: writes its log and its receipt, and prints one clear line if it fails.

    with job() as rule:
        write_json(rule.outputs.report, compute(rule.inputs.weights, rule.cfg["model"]))
        rule.report_result("validation loss 6.39 nats")      # the main result, for the run's display

All log messages and warnings go to the rule's log. Messages from INFO up also go to the console or, if the run draws a
picture, warnings and errors go into the picture. A traceback goes only to the log.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picollm import progress
from picollm.errors import PicollmError, one_line
from picollm.model.interruption import ignore_signals
from picollm.pipeline import locks, receipts
from picollm.pipeline.fingerprint import code_files, fingerprint, imported_modules
from picollm.yaml12 import read_yaml

INTERRUPTED = 130  # the exit code that shells use


class IntoPicture(logging.Handler):
    """Passes warnings and errors to the picture, through the job's status file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelname, record.getMessage()))
        progress.report(said=self.said)


@dataclass(frozen=True)
class Rule:
    """The rule that a script runs for; `cfg` has the sections of config.yaml that the rule reads."""

    name: str
    inputs: Any  # attributes by name, as in Snakemake
    outputs: Any
    cfg: Mapping[str, Any]
    code: str  # fingerprint of the script and the modules it imports
    threads: int
    wildcards: Any
    log: Path

    def report_result(self, text: str) -> None:
        """Reports the main result, for the run's display."""
        progress.report(result=text)


def given() -> Rule:
    """Returns the rule of the running script, from Snakemake, which defines `snakemake` in it, or run by hand."""
    main = sys.modules["__main__"]
    job: Any = getattr(main, "snakemake", None)
    if job is None:
        from picollm.pipeline.by_hand import job_of  # imports Snakemake

        try:
            job = job_of(Path(str(main.__file__)).stem)
        except PicollmError as error:
            sys.exit(f"picollm: {error}")
    name = job.rule if isinstance(job.rule, str) else job.rule.name
    params = job.params
    return Rule(name, job.input, job.output, params.cfg, params.code, job.threads, job.wildcards, Path(job.log[0]))


@contextmanager
def job(rule: Rule | None = None) -> Iterator[Rule]:
    """Runs a script's body; an error prints one line `rule: reason (log: path)` and exits with code 1.

    Snakemake removes what the failed rule had written.
    """
    rule = rule or given()
    file = start_logging(rule)
    lock = locks.job(Path.cwd())  # held until this process ends, so that the next run sees a killed run's job
    try:
        start, inputs = time.monotonic(), receipts.digests(rule.inputs)
        check_before(rule)
        yield rule
        if "DVC_STAGE" in os.environ:
            check_after(rule, inputs)
        receipts.write(rule, inputs, time.monotonic() - start)
    except (PicollmError, OSError) as error:
        to_log(file, traceback.format_exc())
        text = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC:
            where = getattr(error, "filename", None) or Path.cwd()
            text += f": free some space on the disk of {where}, and run again"
        if isinstance(error, PicollmError) and error.exit_code != 1:  # ended by request
            requeue()
            stop(text, error.exit_code)
        fail(text, rule.log)
    except KeyboardInterrupt:
        stop("stopped from the keyboard: run again to resume", INTERRUPTED)
    except Exception as error:
        to_log(file, traceback.format_exc())
        fail(f"{type(error).__name__}: {one_line(error)[:300]}", rule.log)
    finally:
        if lock:
            lock.close()


def start_logging(rule: Rule) -> logging.FileHandler:
    """Sends all messages to the rule's log, and from INFO up to the console, or warnings into the picture; returns the
    log's handler."""
    rule.log.parent.mkdir(parents=True, exist_ok=True)
    if base := os.environ.get(progress.STATUS):
        os.environ[progress.STATUS] = f"{base}/{rule.name}"
    console = IntoPicture() if progress.PICTURE in os.environ else logging.StreamHandler(sys.stderr)
    file = logging.FileHandler(rule.log, mode="w", encoding="utf-8")
    console.setFormatter(logging.Formatter(f"{rule.name}: %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False  # libraries' warnings go to the log, not to the console
    logging.getLogger("py.warnings").addHandler(file)
    return file


def to_log(file: logging.FileHandler, text: str) -> None:
    """Writes only to the rule's log."""
    if file.stream:
        file.stream.write(text)


def fail(reason: str, log: Path) -> None:
    logging.getLogger().error("FAILED: %s (log: %s)", reason, log)
    sys.exit(1)


def stop(reason: str, code: int) -> None:
    ignore_signals()  # further signals of the same request: the process is already ending
    logging.getLogger().warning("%s", reason)
    sys.exit(code)


def requeue() -> None:
    """Puts the job back into Slurm's queue if Slurm ended it (preemption or a time limit).

    Otherwise a job that exits during its grace time counts as failed. Slurm refuses to requeue a job that a
    user cancelled.
    """
    if "SLURM_JOB_ID" in os.environ and (scontrol := shutil.which("scontrol")):
        ignore_signals()  # of Slurm, while this job ends
        subprocess.run([scontrol, "requeue", os.environ["SLURM_JOB_ID"]], capture_output=True)


def code_now() -> str:
    """Returns the fingerprint of the running script (several rules may share one)."""
    script = Path("workflow_scripts") / Path(str(sys.modules["__main__"].__file__)).name
    return fingerprint(code_files(script, Path()), Path())


def check_before(rule: Rule) -> None:
    """Raises PicollmError if the code changed after Snakemake read it: the result would be recorded for other code."""
    if code_now() != rule.code:
        raise PicollmError("the code was edited after the run began: start the run again")


def check_after(rule: Rule, inputs: dict[str, str]) -> None:
    """Raises PicollmError if what the job read changed while it ran: DVC hashes it only afterwards."""
    config = read_yaml("config.yaml")
    code_files.cache_clear()
    imported_modules.cache_clear()
    same = {section: config[section] for section in rule.cfg} == rule.cfg and code_now() == rule.code
    if not same or receipts.digests(rule.inputs) != inputs:
        raise PicollmError(
            "config.yaml, the code or an input was edited during the run, and DVC would record the result under the "
            "new values: start `dvc repro` again (edits during a run of `snakemake` are safe)"
        )
