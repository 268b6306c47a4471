"""Reads Snakemake's command line; starts a run's display and estimate from its Workflow.

By its types, any attribute of a Workflow may be None.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from snakemake.cli import parse_args
from snakemake.logging import logger
from snakemake.settings.enums import Quietness

from picollm.console.display import Display
from picollm.console.estimate import estimate, note, work

# Snakemake's flags, by their internal names, of calls that run no rule. They need no check of the data, and
# `picollm sync` itself makes some of them.
READERS = (
    "lint", "list_target_rules", "list_rules", "print_compilation", "containerize", "report", "reporter",
    "generate_unit_tests", "dag", "rulegraph", "filegraph", "d3dag", "unlock", "cleanup_metadata",
    "conda_cleanup_envs", "conda_create_envs_only", "list_conda_envs", "cleanup_shadow", "container_cleanup_images",
    "list_changes", "list_input_changes", "list_params_changes", "list_untracked", "summary", "detailed_summary",
    "archive", "delete_all_output", "delete_temp_output", "touch",
)  # fmt: skip


def runs_rules() -> bool:
    """Returns True if this call of Snakemake runs rules, or lists those it would run.

    Its own parser knows every spelling and reads profiles. Also returns True if this command line did not call
    Snakemake.
    """
    try:
        with redirect_stderr(io.StringIO()):  # the profile was already reported
            _, flags = parse_args(sys.argv[1:])
    except (Exception, SystemExit):
        return True
    shows = any(getattr(flags, name, None) for name in READERS)
    return flags.report_after_run or not shows


def display(workflow: Any, root: Path) -> Display | None:
    """Returns the display that replaces Snakemake's messages; None if those are requested, in a dry run or a job."""
    output = workflow.output_settings
    asked = output.verbose or output.debug_dag or output.printshellcmds or output.log_handler_settings
    if asked or Quietness.ALL in (output.quiet or ()) or output.dryrun:
        return None
    if not workflow.is_main_process or "PICOLLM_UNGUARDED" in os.environ:
        return None
    return Display(root, logger, remote=on_cluster(workflow))


def begin(shown: Display, workflow: Any, config: Mapping[str, Mapping], root: Path) -> None:
    """Shows the jobs of this run and how long they will take; a DVC stage is too short for a calibration.

    There is no estimate for a cluster, whose machines are unknown.
    """
    waiting = set(workflow.dag.needrun_jobs())
    jobs = [job for level in workflow.dag.toposorted() for job in level if job in waiting and job.output]
    if on_cluster(workflow):
        shown.begin([(job.rule.name, 0.0) for job in jobs], {}, "")
        return
    amounts = work(config, training_rows(root))
    calibrate = not {"DVC_STAGE", "PICOLLM_UNCALIBRATED"} & os.environ.keys()
    seconds, source = estimate([job.rule.name for job in jobs], root, amounts, calibrate=calibrate)
    shown.on_done = lambda rule: note(root, rule, amounts.get(rule, 1.0))
    shown.begin([(job.rule.name, min(1.0, job.threads / workflow.cores)) for job in jobs], seconds, source)


def on_cluster(workflow: Any) -> bool:
    """Returns True if jobs run on other machines: such an executor has a number of jobs, the local one of cores."""
    return workflow.resource_settings.nodes is not None


def training_rows(root: Path) -> int | None:
    """Returns the training rows of the packed tokens, or None if they don't exist yet."""
    try:
        return json.loads((root / "data/tokens/manifest.json").read_text())["splits"]["train"]["rows"]
    except (OSError, ValueError, LookupError, TypeError):  # or of another form
        return None
