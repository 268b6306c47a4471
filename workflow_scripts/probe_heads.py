"""Runs the linguistic probes on the trained model, n-grams and untrained models."""

from picollm.attention.extraction import THREADS
from picollm.data.tokenizers import tokenizer_of
from picollm.files import write_json
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.mechanisms.probes import metrics, probe_heads
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    cfg, inputs = rule.cfg, rule.inputs
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    by = tokenizer_of(inputs.tokenizer)
    examined = open_model_and_text(
        load_trained(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device, by
    )
    report = probe_heads(examined, cfg["attention"]["style"])
    write_json(rule.outputs.report, report)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    learnt = [
        kind for kind, entry in {"coreference": report["coreference"], **report["pairs"]}.items() if entry["shows"]
    ]
    rule.report_result(f"{', '.join(learnt) or 'nothing'} learnt, of {numbers['testable']} that can be tested")
