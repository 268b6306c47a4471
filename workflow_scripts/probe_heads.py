"""The linguistic probes of the trained model, beside n-grams and untrained models."""

from typing import TYPE_CHECKING

from picollm.attention.extraction import THREADS
from picollm.data.files import write_json
from picollm.mechanisms.probing import metrics, probes
from picollm.mechanisms.subject import subject
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, inputs = snakemake.params.cfg, snakemake.input
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    report = probes(subject(load_model(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device))
    write_json(snakemake.output.report, report)
    numbers = metrics(report)
    write_json(snakemake.output.metrics, numbers)
    found(f"coreference {numbers['coreference']:.0%} (untrained {numbers['coreference_untrained']:.0%})")
