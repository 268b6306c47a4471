"""trt_benchmark: accuracy and latency of every configured backend, on this machine, with the raw samples."""

from pathlib import Path
from typing import TYPE_CHECKING

from picollm.data.files import write_csv, write_json
from picollm.engine.benchmark import COLUMNS, metrics
from picollm.engine.optimize import measure
from picollm.engine.table import best_words, log_table
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    inputs, output = snakemake.input, snakemake.output
    checkpoint, engine = Path(inputs.weights).parent, Path(inputs.engine).parent
    report, samples = measure(checkpoint, Path(inputs.tokens), engine, snakemake.params.cfg)
    log_table(report)
    write_csv(output.samples, COLUMNS, samples)
    write_json(output.report, report)
    write_json(output.metrics, metrics(report))
    found(best_words(report))
