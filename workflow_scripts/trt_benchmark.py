"""Measures accuracy and latency of every configured backend on this machine; writes the raw samples too."""

from pathlib import Path

from picollm.engine.benchmark import COLUMNS, metrics
from picollm.engine.optimize import measure
from picollm.engine.table import best_text, log_table
from picollm.files import write_csv, write_json
from picollm.pipeline.job import job

with job() as rule:
    inputs, output = rule.inputs, rule.outputs
    checkpoint, engine = Path(inputs.weights).parent, Path(inputs.engine).parent
    report, samples = measure(checkpoint, Path(inputs.tokens), engine, rule.cfg)
    log_table(report)
    write_csv(output.samples, COLUMNS, samples)
    write_json(output.report, report)
    write_json(output.metrics, metrics(report))
    rule.report_result(best_text(report))
