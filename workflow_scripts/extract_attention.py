"""Attention weights of the trained model on every sentence of the ten categories: one .npz per category."""

from picollm.attention.extraction import THREADS, extract_attention
from picollm.attention.sentences import any_sentences
from picollm.data.tokenizers import tokenizer_of
from picollm.model.device import set_up
from picollm.model.foreign_folder import load_trained
from picollm.pipeline.job import job

with job() as rule:
    device = set_up(rule.cfg["compute"]["device"], threads=THREADS)
    model = load_trained(rule.inputs.weights, rule.inputs.config)
    sentences = any_sentences(rule.inputs.sentences, rule.cfg["attention"]["style"])
    by = tokenizer_of(rule.inputs.tokenizer)
    extract_attention(model, sentences, dict(rule.outputs.items()), device, by)
    rule.found(f"{len(rule.outputs)} categories of sentences")
