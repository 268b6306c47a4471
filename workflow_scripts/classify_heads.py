"""What each head does: chance-corrected statistics, bootstrap intervals, labels, and the same for untrained models."""

from typing import TYPE_CHECKING

from picollm.attention.census import metrics, table
from picollm.attention.classification import classify
from picollm.attention.extraction import THREADS
from picollm.attention.maps import load_categories
from picollm.data.files import write_json, write_text
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg = snakemake.params.cfg
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    model = load_model(snakemake.input.weights, snakemake.input.config)
    report = classify(load_categories(snakemake.input.maps), model, cfg["heads"], device)
    write_json(snakemake.output.report, report)
    write_text(snakemake.output.table, table(report))
    write_json(snakemake.output.metrics, metrics(report))
    found(", ".join(f"{row['count']} {label}" for label, row in report["labels"].items() if row["count"]) + " heads")
