"""The full study of what heads cause; a killed one goes on from its finished parts."""

from pathlib import Path
from typing import TYPE_CHECKING

from picollm.attention.maps import load_categories
from picollm.data.files import read_json, write_json, write_text
from picollm.mechanisms.study import full_study
from picollm.mechanisms.subject import subject
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job
from picollm.report.study import study_page

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg, inputs, output = snakemake.params.cfg, snakemake.input, snakemake.output.report
    device = set_up(**cfg["compute"])
    examined = subject(load_model(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device)
    heads, clusters = read_json(inputs.heads), read_json(inputs.clusters)
    study = full_study(
        examined,
        load_categories(inputs.maps),
        heads,
        clusters,
        Path(output).parent,
        code=snakemake.params.code,
    )
    write_json(output, study)
    write_text(snakemake.output.page, study_page(inputs.template, study))
