"""Computes mechanistic scores of the trained model's heads and of the snapshots of its training."""

from picollm.attention.extraction import THREADS
from picollm.attention.labels import thresholds_of
from picollm.attention.maps import load_categories
from picollm.data.tokenizers import tokenizer_of
from picollm.files import read_json, write_json
from picollm.mechanisms.emergence import thresholds, trace_emergence
from picollm.mechanisms.mechanisms import metrics, score_mechanisms
from picollm.mechanisms.model_and_text import open_model_and_text
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.model.weights import load_snapshots
from picollm.pipeline.job import job
from picollm.wording import count

with job() as rule:
    cfg, inputs = rule.cfg, rule.inputs
    device = set_up(cfg["compute"]["device"], threads=THREADS)
    heads = read_json(inputs.heads)
    by = tokenizer_of(inputs.tokenizer)
    examined = open_model_and_text(
        load_trained(inputs.weights, inputs.config), inputs.tokens, cfg["mechanisms"], device, by
    )
    report = score_mechanisms(examined)
    over_time = trace_emergence(
        examined,
        load_snapshots(inputs.snapshots, inputs.config),
        load_categories(inputs.maps),
        threshold=thresholds(heads, report["null"]),
        labels=thresholds_of(heads),
        window=heads["sample"]["window"],
    )
    write_json(rule.outputs.report, report)
    write_json(rule.outputs.emergence, over_time)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    rule.report_result(count(numbers["induction_heads"], "induction head"))
