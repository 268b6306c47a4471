"""Collects the grid of presets/sweep.csv in one table: parameters, loss, and the number of heads of each class."""

import csv

from picollm.attention.labels import LABELS
from picollm.files import read_json, write_csv
from picollm.pipeline.job import job

with job() as rule:
    with open(rule.inputs.table, newline="") as file:
        rows = list(csv.DictReader(file))
    for row, path in zip(rows, rule.inputs.variants, strict=True):
        variant = read_json(path)
        row["validation_loss"] = variant["validation_loss"]
        row |= {label: variant["labels"].count(k) for k, label in enumerate(LABELS)}
    write_csv(rule.outputs.table, list(rows[0]), rows)
    best = min(rows, key=lambda row: row["validation_loss"])
    rule.report_result(f"{len(rows)} trainings, the best {best['validation_loss']:.3f} nats")
