"""What a run was given: its configuration and its code, for its jobs on other machines.

    .snakemake/picollm/given.json

A cluster's job reads the Snakefile anew, hours after the run began, and Snakemake files its result under what the run
read then. So it takes the run's configuration and fingerprints, not those that lie here by now: config.yaml may be
prepared for the next run, and edited code stops the job (picollm.pipeline.job), as on one machine.
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
    """By the run that holds the lock; `code` is {rule: fingerprint}."""
    write_json(root / GIVEN, {"run": os.environ[HOLDER], "config": config, "code": code})


def given(root: Path) -> dict:
    """Of this job's run: `config` and `code`. Raises PicollmError where it is no longer the one that holds the lock.

    Such a job waited in a queue while its run was killed and another began, which has jobs of its own for its files.
    """
    found = read_json(root / GIVEN)
    own = os.environ.get(HOLDER)
    if found["run"] != own:
        raise PicollmError(
            f"this job's run ({own or 'not known'}) has ended, and another began ({found['run']}): it does nothing"
        )
    return found
