"""Runs a rule's script without Snakemake, for debugging: `python workflow_scripts/classify_heads.py` in the top folder.

The script gets the same inputs, parameters and outputs, and holds the same locks; its receipt lets `picollm sync`
record the run.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from picollm.errors import PicollmError
from picollm.pipeline import locks

kept: list = []  # holds the lock until this process ends: without a reference the file is closed and the lock released


def job_of(rule: str):
    """Returns the job that Snakemake would pass to the rule's script. Raises PicollmError if an input is missing."""
    from snakemake.api import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        ResourceSettings,
        StorageSettings,
        Workflow,
        WorkflowSettings,
    )
    from snakemake.dag import DAG
    from snakemake.jobs import JobFactory
    from snakemake.logging import LoggerManager, logger

    snakefile = Path("Snakefile").absolute()
    if not snakefile.exists():
        raise PicollmError(f"{Path.cwd()} has no Snakefile: run the script in the repository's top folder")
    os.environ["PICOLLM_UNGUARDED"] = "1"  # not a run of Snakemake: no sync before it
    output = OutputSettings()
    workflow = Workflow(
        ConfigSettings(), ResourceSettings(cores=os.cpu_count()), WorkflowSettings(), LoggerManager(logger, output),
        storage_settings=StorageSettings(), dag_settings=DAGSettings(), output_settings=output,
        storage_provider_settings={},
    )  # fmt: skip
    workflow.include(str(snakefile), overwrite_default_target=True)
    job = asyncio.run(JobFactory().new(workflow.get_rule(rule), DAG(workflow, rules=[]), {}))
    missing = [str(path) for path in job.input if not Path(path).exists()]
    if missing:
        raise PicollmError(f"{missing[0]} is missing: run `snakemake --cores all {missing[0]}` first")
    kept.append(locks.hold(Path.cwd()))
    for path in job.output:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    return job
