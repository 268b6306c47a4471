"""The original's claims about its heads, one by one: supported, not supported, or not testable with this model."""

from typing import TYPE_CHECKING

from picollm.attention.findings import findings, metrics
from picollm.data.files import read_json, write_json
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    inputs = snakemake.input
    report = findings(
        read_json(inputs.heads),
        read_json(inputs.clusters),
        read_json(inputs.probes),
        read_json(inputs.emergence),
        read_json(inputs.training),
        seed=snakemake.params.cfg["heads"]["seed"],
    )
    write_json(snakemake.output.report, report)
    numbers = metrics(report)
    write_json(snakemake.output.metrics, numbers)
    found(f"{numbers['supported']} of the original's claims supported, {numbers['not_supported']} not")
