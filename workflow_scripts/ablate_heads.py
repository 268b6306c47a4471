"""What the loss loses without each head: mean ablation on the validation split."""

from picollm.files import write_json
from picollm.mechanisms.ablation import ablate_heads, metrics
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.model.device import set_up
from picollm.model.weights import load_model
from picollm.pipeline.job import job

with job() as rule:
    cfg, inputs = rule.cfg, rule.inputs
    device = set_up(**cfg["compute"])
    model = load_model(inputs.weights, inputs.config)
    report = ablate_heads(open_model_and_text(model, inputs.tokens, cfg["mechanisms"], device))
    write_json(rule.outputs.report, report)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    rule.found(f"without {numbers['heads_that_matter']} of the heads, each by itself, the loss rises")
