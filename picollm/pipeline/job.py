"""What every workflow script runs inside: its log, its receipt, and one clear line when it fails.

    with job() as rule:
        write_json(rule.outputs.report, compute(rule.inputs.weights, rule.cfg["model"]))
        rule.found("validation loss 6.39 nats")      # the one thing to know of it, for the run's display

Everything logged or warned goes to the rule's log and, from INFO up, to the console, or under a picture of the run its
warnings and errors into the picture; a traceback goes to the log alone.
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

INTERRUPTED = 130  # as shells call it


class IntoPicture(logging.Handler):
    """Warnings and errors, through the job's status file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelname, record.getMessage()))
        progress.report(said=self.said)


@dataclass(frozen=True)
class Rule:
    """What a script knows of the rule that it works for; `cfg` has the sections of config.yaml that the rule gets."""

    name: str
    inputs: Any  # by name, as Snakemake's
    outputs: Any
    cfg: Mapping[str, Any]
    code: str  # fingerprint of the script and the modules it imports
    threads: int
    wildcards: Any
    log: Path

    def found(self, text: str) -> None:
        """The one thing to know of the result, for the run's display."""
        progress.report(found=text)


def given() -> Rule:
    """From Snakemake, which puts `snakemake` into the script, or by hand."""
    main = sys.modules["__main__"]
    job: Any = getattr(main, "snakemake", None)
    if job is None:
        from picollm.pipeline.by_hand import job_of  # Snakemake itself

        try:
            job = job_of(Path(str(main.__file__)).stem)
        except PicollmError as error:
            sys.exit(f"picollm: {error}")
    name = job.rule if isinstance(job.rule, str) else job.rule.name
    params = job.params
    return Rule(name, job.input, job.output, params.cfg, params.code, job.threads, job.wildcards, Path(job.log[0]))


@contextmanager
def job(rule: Rule | None = None) -> Iterator[Rule]:
    """Exit code 1 after one line `rule: reason (log: path)`; what the rule had written is removed by Snakemake."""
    rule = rule or given()
    file = start_logging(rule)
    lock = locks.job(Path.cwd())  # held as long as this process lives: a killed run's job is seen by the next run
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
            text += f": make room where {where} lies, and run again"
        if isinstance(error, PicollmError) and error.exit_code != 1:  # ended by request
            requeue()
            stop(text, error.exit_code)
        fail(text, rule.log)
    except KeyboardInterrupt:
        stop("stopped from the keyboard: run again to go on", INTERRUPTED)
    except Exception as error:
        to_log(file, traceback.format_exc())
        fail(f"{type(error).__name__}: {one_line(error)[:300]}", rule.log)
    finally:
        if lock:
            lock.close()


def start_logging(rule: Rule) -> logging.FileHandler:
    """Everything to the rule's log, which is returned; from INFO up to the console, or warnings into the picture."""
    rule.log.parent.mkdir(parents=True, exist_ok=True)
    if base := os.environ.get(progress.STATUS):
        os.environ[progress.STATUS] = f"{base}/{rule.name}"
    console = IntoPicture() if progress.PICTURE in os.environ else logging.StreamHandler(sys.stderr)
    file = logging.FileHandler(rule.log, mode="w", encoding="utf-8")
    console.setFormatter(logging.Formatter(f"{rule.name}: %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False  # warnings of libraries: to the log, not to the person
    logging.getLogger("py.warnings").addHandler(file)
    return file


def to_log(file: logging.FileHandler, text: str) -> None:
    """To the rule's log alone."""
    if file.stream:
        file.stream.write(text)


def fail(reason: str, log: Path) -> None:
    logging.getLogger().error("FAILED: %s (log: %s)", reason, log)
    sys.exit(1)


def stop(said: str, code: int) -> None:
    ignore_signals()  # the rest of the same request: the process ends as it is
    logging.getLogger().warning("%s", said)
    sys.exit(code)


def requeue() -> None:
    """Back into Slurm's queue, where it was Slurm's request: another job's turn, or a time limit.

    A job that ends by itself in its time of grace counts as failed otherwise. Slurm refuses for one that a person
    cancelled.
    """
    if "SLURM_JOB_ID" in os.environ and (scontrol := shutil.which("scontrol")):
        ignore_signals()  # Slurm's, for what is left of this job
        subprocess.run([scontrol, "requeue", os.environ["SLURM_JOB_ID"]], capture_output=True)


def code_now() -> str:
    """Fingerprint of the running script (several rules may share one)."""
    script = Path("workflow_scripts") / Path(str(sys.modules["__main__"].__file__)).name
    return fingerprint(code_files(script, Path()), Path())


def check_before(rule: Rule) -> None:
    """Raises PicollmError where the code changed since Snakemake read it: the result would get a wrong name."""
    if code_now() != rule.code:
        raise PicollmError("its code was edited after the run began: start the run again")


def check_after(rule: Rule, inputs: dict[str, str]) -> None:
    """Raises PicollmError where what the job read changed while it ran: DVC hashes all of it only afterwards."""
    config = read_yaml("config.yaml")
    code_files.cache_clear()
    imported_modules.cache_clear()
    same = {section: config[section] for section in rule.cfg} == rule.cfg and code_now() == rule.code
    if not same or receipts.digests(rule.inputs) != inputs:
        raise PicollmError(
            "config.yaml, its code or an input was edited while it ran, and DVC would file the result under the new "
            "values: start `dvc repro` again (a run of `snakemake` may be edited under)"
        )
