"""nsys_capture: profile some real training steps; the recording, and where the time of a step goes."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.data.files import write_json
from picollm.pipeline.job import job
from picollm.profiling.report import lines, profile
from picollm.profiling.timeline import metrics

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    inputs, output = snakemake.input, snakemake.output
    folder = Path(output.manifest).parent
    report = profile(Path(inputs.config), Path(inputs.tokens), folder, snakemake.params.cfg)
    for line in lines(report):
        logging.info("%s", line)
    write_json(output.report, report)
    numbers = metrics(report)
    write_json(output.metrics, numbers)
    found(f"{numbers['step_ms']:.0f} ms a training step")
