"""Stores the configuration and code fingerprints that a run started with, for its jobs on other machines.

    .snakemake/picollm/given.json

A cluster job reads the Snakefile again, hours after the run began, and Snakemake records its result under what the run
read at its start. So the job uses the run's configuration and fingerprints, not the current ones: config.yaml may
already be edited for the next run, and edited code stops the job (picollm.pipeline.job), as on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from picollm.errors import PicollmError
from picollm.files import read_json, write_json
from picollm.pipeline.locks import FOLDER, HOLDER

GIVEN = FOLDER / "given.json"


def give(root: Path, config: Mapping[str, Mapping], code: Mapping[str, str]) -> None:
    """Writes the file, in the run that holds the lock; `code` is {rule: fingerprint}."""
    write_json(root / GIVEN, {"run": os.environ[HOLDER], "config": config, "code": code})


def given(root: Path) -> dict:
    """Reads `config` and `code` of this job's run. Raises PicollmError if that run no longer holds the lock.

    Such a job waited in a queue while its run was killed and another began, which starts its own jobs for its files.
    """
    stored = read_json(root / GIVEN)
    own = os.environ.get(HOLDER)
    if stored["run"] != own:
        raise PicollmError(
            f"this job's run ({own or 'unknown'}) has ended and another has begun ({stored['run']}): it does nothing"
        )
    return stored
