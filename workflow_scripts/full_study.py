"""Runs the full study of causal effects of heads; an interrupted study resumes from its finished parts."""

from pathlib import Path

from picollm.attention.maps import load_categories
from picollm.data.tokenizers import tokenizer_of
from picollm.files import read_json, write_json, write_text
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.mechanisms.study import full_study
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job
from picollm.report.study_page import study_page

with job() as rule:
    cfg, inputs, output = rule.cfg, rule.inputs, rule.outputs.report
    device = set_up(**cfg["compute"])
    by = tokenizer_of(inputs.tokenizer)
    examined = open_model_and_text(
        load_trained(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device, by
    )
    heads, clusters = read_json(inputs.heads), read_json(inputs.clusters)
    study = full_study(
        examined,
        load_categories(inputs.maps),
        heads,
        clusters,
        Path(output).parent,
        code=rule.code,
    )
    write_json(output, study)
    write_text(rule.outputs.page, study_page(inputs.template, study))
