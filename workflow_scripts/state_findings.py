"""Judges the original's claims about its heads: held, did not hold, can't be tested here, or not comparable."""

from picollm.files import read_json, write_json
from picollm.pipeline.job import job
from picollm.report.findings import metrics, state_findings

with job() as rule:
    inputs = rule.inputs
    report = state_findings(
        read_json(inputs.heads),
        read_json(inputs.clusters),
        read_json(inputs.probes),
        read_json(inputs.emergence),
        read_json(inputs.ablation),
        read_json(inputs.training),
        seed=rule.cfg["heads"]["seed"],
    )
    write_json(rule.outputs.report, report)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    rule.report_result(
        f"of the original's claims about heads {numbers['held']} held, {numbers['did_not_hold']} did not, "
        f"{numbers['cannot_be_tested']} can't be tested"
    )
