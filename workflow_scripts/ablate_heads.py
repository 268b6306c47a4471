"""What the loss loses without each head: mean ablation on the validation split."""

from typing import TYPE_CHECKING

from picollm.data.files import write_json
from picollm.mechanisms.ablation import metrics, report
from picollm.mechanisms.subject import subject
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, inputs = snakemake.params.cfg, snakemake.input
    device = set_up(**cfg["compute"])
    scores = report(subject(load_model(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device))
    write_json(snakemake.output.report, scores)
    numbers = metrics(scores)
    write_json(snakemake.output.metrics, numbers)
    found(f"without {numbers['heads_that_matter']} of the heads, each by itself, the loss rises")
