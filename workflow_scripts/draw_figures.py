"""draw_figures: every chapter's data -> the report's pictures, and the manifest that names them with their captions."""

from pathlib import Path

from picollm.attention.maps import load_categories
from picollm.pipeline.job import job
from picollm.report.figures import draw_figures

with job() as rule:
    inputs, examples = rule.inputs, rule.cfg["report"]["examples"]
    drawn = draw_figures(Path(rule.outputs.manifest), inputs, load_categories(inputs.maps), examples)
    rule.found(f"{len(drawn)} figures")
