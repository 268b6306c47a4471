"""Mechanistic scores of the trained model's heads, and of the snapshots of its training."""

from typing import TYPE_CHECKING

from picollm.attention.extraction import THREADS
from picollm.attention.maps import load_categories
from picollm.data.files import read_json, write_json
from picollm.mechanisms.emergence import emergence, thresholds
from picollm.mechanisms.scoring import mechanisms, metrics
from picollm.mechanisms.subject import subject
from picollm.model.checkpoint import load_model, load_snapshots
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, inputs = snakemake.params.cfg, snakemake.input
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    heads = read_json(inputs.heads)
    examined = subject(load_model(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device)
    report = mechanisms(examined)
    over_time = emergence(
        examined,
        load_snapshots(inputs.snapshots, inputs.config),
        load_categories(inputs.maps),
        threshold=thresholds(heads, report["null"]),
        window=heads["sample"]["window"],
    )
    write_json(snakemake.output.report, report)
    write_json(snakemake.output.emergence, over_time)
    numbers = metrics(report)
    write_json(snakemake.output.metrics, numbers)
    found(f"{numbers['induction_heads']} induction heads")
