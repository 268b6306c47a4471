"""Computes the rise in loss without each head, by mean ablation on the validation split.

ablate_slice: the same code in several jobs, each for one share of the windows.
"""

import io

import numpy as np

from picollm.data.tokenizers import tokenizer_of
from picollm.files import write_bytes, write_json
from picollm.mechanisms.ablation import ablate_heads, metrics, part_of_effects
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    cfg, inputs = rule.cfg, rule.inputs
    device = set_up(**cfg["compute"])
    model = load_trained(inputs.weights, inputs.config)
    by = tokenizer_of(inputs.tokenizer)
    examined = open_model_and_text(model, inputs.tokens, cfg["mechanisms"], device, by)
    if rule.name == "ablate_slice":
        file = io.BytesIO()
        part = part_of_effects(examined, int(rule.wildcards.slice), cfg["mechanisms"]["slices"])
        np.savez(file, whole=part["whole"], rise=part["rise"])
        write_bytes(rule.outputs.part, file.getvalue())
    else:
        report = ablate_heads(examined, [np.load(path) for path in inputs.slices])
        write_json(rule.outputs.report, report)
        numbers = metrics(report)
        write_json(rule.outputs.metrics, numbers)
        rule.report_result(f"the loss rises without {numbers['heads_that_matter']} of the heads, each ablated alone")
