"""Classifies heads: chance-corrected statistics, bootstrap intervals, labels, and the same for untrained models."""

from picollm.attention.extraction import THREADS
from picollm.attention.heads import classify_heads, heads_csv, metrics
from picollm.attention.maps import load_categories
from picollm.files import write_json, write_text
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    cfg = rule.cfg
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    model = load_trained(rule.inputs.weights, rule.inputs.config)
    report = classify_heads(load_categories(rule.inputs.maps), model, cfg["heads"], device)
    write_json(rule.outputs.report, report)
    write_text(rule.outputs.table, heads_csv(report))
    write_json(rule.outputs.metrics, metrics(report))
    counts = [f"{row['count']} {label}" for label, row in report["labels"].items() if row["count"]]
    rule.report_result(f"{', '.join(counts)} heads")
