"""Writes one HTML file from the figures and every chapter's report."""

import logging
from pathlib import Path

from picollm.files import write_text
from picollm.pipeline.job import job
from picollm.report.page import render
from picollm.report.sources import read_sources, with_seeds

with job() as rule:
    inputs = rule.inputs
    others = {"figures", "page", "maps", "metrics", "seeds"}
    paths = {name: inputs[name] for name in sorted(set(inputs.keys()) - others)}
    sources = with_seeds(read_sources(paths, inputs.maps, inputs.figures), rule.cfg, inputs.data)
    for why in sources.absent.values():
        logging.warning("a chapter is left out: %s", why)
    html = render(Path(inputs.figures), sources, rule.cfg)
    write_text(rule.outputs.report, html)
    what = f"{rule.outputs.report}, {len(html.encode()) / 1e6:.1f} MB"
    logging.info("%s", what)
    rule.report_result(what)
