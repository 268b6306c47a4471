"""Draws the report's figures from every chapter's data; writes the manifest that lists them with their captions."""

from pathlib import Path

from picollm.attention.maps import load_categories
from picollm.pipeline.job import job
from picollm.report.figures import draw_figures
from picollm.report.style import set_up

with job() as rule:
    inputs, cfg = rule.inputs, rule.cfg["report"]
    set_up(cfg["figure_size"], cfg["palette"])
    drawn = draw_figures(Path(rule.outputs.manifest), inputs, load_categories(inputs.maps), cfg["examples"])
    rule.report_result(f"{len(drawn)} figures")
