"""Compares the trainings of several seeds, to separate the effects of the recipe from chance."""

from picollm.files import read_json, write_json
from picollm.pipeline.job import job
from picollm.seed_summary import lines, recipe
from picollm.seeds import compare

with job() as rule:
    variants = [read_json(path) for path in rule.inputs.variants]
    report = compare(list(range(1, len(variants) + 1)), variants, recipe(rule.cfg, rule.inputs.tokens))
    write_json(rule.outputs.report, report)
    rule.report_result(lines(report)[0])
