"""Profiles some real training steps; writes the recording and the breakdown of a step's time."""

import logging
from pathlib import Path

from picollm.files import write_json
from picollm.pipeline.job import job
from picollm.profiling.profile import lines, profile_training
from picollm.profiling.timeline import metrics

with job() as rule:
    inputs, output = rule.inputs, rule.outputs
    folder = Path(output.manifest).parent
    report = profile_training(Path(inputs.config), Path(inputs.tokens), folder, rule.cfg)
    for line in lines(report):
        logging.info("%s", line)
    write_json(output.report, report)
    numbers = metrics(report)
    write_json(output.metrics, numbers)
    rule.report_result(
        f"{numbers['step_ms']:.0f} ms per training step" if numbers else "no training of another family's model"
    )
