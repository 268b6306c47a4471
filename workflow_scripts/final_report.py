"""final_report: figures and every chapter's summary -> one HTML file."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.data.files import read_json, write_text
from picollm.pipeline.job import job
from picollm.report.html import render

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    inputs = snakemake.input
    read = set(inputs.keys()) - {"figures", "template", "metrics"}
    chapters = {name: read_json(inputs[name]) for name in sorted(read)}
    metrics = {Path(path).stem: read_json(path) for path in inputs.metrics}
    html = render(Path(inputs.template), Path(inputs.figures), chapters, metrics, snakemake.params.cfg)
    write_text(snakemake.output.report, html)
    what = f"{snakemake.output.report}, {len(html) / 1e6:.1f} MB"
    logging.info("%s", what)
    found(what)
