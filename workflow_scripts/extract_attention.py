"""Extracts the trained model's attention weights on every sentence of the ten categories: one .npz per category.

extract_category: the same code in one job per category.
"""

from pathlib import Path

from picollm.attention.extraction import THREADS, extract_attention
from picollm.attention.sentences import any_sentences
from picollm.data.tokenizers import tokenizer_of
from picollm.files import write_bytes
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    inputs, paths = rule.inputs, dict(rule.outputs.items())
    if rule.name == "extract_category":
        paths = {rule.wildcards.category: rule.outputs.maps}
    if inputs.get("apart"):
        for made, path in zip(inputs.apart, paths.values(), strict=True):
            write_bytes(path, Path(made).read_bytes())
    else:
        device = set_up(rule.cfg["compute"]["device"], threads=THREADS)
        model = load_trained(inputs.weights, inputs.config)
        sentences = any_sentences(inputs.sentences, rule.cfg["attention"]["style"])
        extract_attention(model, sentences, paths, device, tokenizer_of(inputs.tokenizer))
    rule.report_result(f"{len(paths)} categories of sentences")
