"""final_report: figures and every chapter's summary -> one HTML file."""

import logging
from pathlib import Path

from picollm.attention.maps import load_categories
from picollm.files import read_json, write_text
from picollm.pipeline.job import job
from picollm.report.page import render
from picollm.seed_summary import for_report

with job() as rule:
    inputs = rule.inputs
    read = set(inputs.keys()) - {"figures", "page", "maps", "metrics", "seeds"}
    chapters = {name: read_json(inputs[name]) for name in sorted(read)}
    seeds = rule.cfg["report"]["seeds"]
    chapters["seeds"] = for_report(seeds, rule.cfg, inputs.data) if seeds else None
    html = render(Path(inputs.figures), chapters, load_categories(inputs.maps), rule.cfg)
    write_text(rule.outputs.report, html)
    what = f"{rule.outputs.report}, {len(html) / 1e6:.1f} MB"
    logging.info("%s", what)
    rule.found(what)
