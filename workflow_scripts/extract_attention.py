"""Attention weights of the trained model on every sentence of the ten categories: one .npz per category."""

from typing import TYPE_CHECKING

from picollm.attention.extraction import THREADS, extract
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    device = set_up(snakemake.params.cfg["compute"]["device"], threads=THREADS)
    model = load_model(snakemake.input.weights, snakemake.input.config)
    style = snakemake.params.cfg["attention"]["style"]
    extract(model, snakemake.input.sentences, style, dict(snakemake.output.items()), device)
    found(f"{len(snakemake.output)} categories of sentences")
