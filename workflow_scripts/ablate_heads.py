"""What the loss loses without each head: mean ablation on the validation split."""

from picollm.data.tokenizers import tokenizer_of
from picollm.files import write_json
from picollm.mechanisms.ablation import ablate_heads, metrics
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    cfg, inputs = rule.cfg, rule.inputs
    device = set_up(**cfg["compute"])
    model = load_trained(inputs.weights, inputs.config)
    by = tokenizer_of(inputs.tokenizer)
    report = ablate_heads(open_model_and_text(model, inputs.tokens, cfg["mechanisms"], device, by))
    write_json(rule.outputs.report, report)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    rule.found(f"without {numbers['heads_that_matter']} of the heads, each by itself, the loss rises")
