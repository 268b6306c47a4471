"""Attention weights of the trained model on every sentence of the ten categories: one .npz per category."""

from picollm.attention.extraction import THREADS, extract_attention
from picollm.attention.sentences import any_sentences
from picollm.model.device import set_up
from picollm.model.weights import load_model
from picollm.pipeline.job import job

with job() as rule:
    device = set_up(rule.cfg["compute"]["device"], threads=THREADS)
    model = load_model(rule.inputs.weights, rule.inputs.config)
    sentences = any_sentences(rule.inputs.sentences, rule.cfg["attention"]["style"])
    extract_attention(model, sentences, dict(rule.outputs.items()), device)
    rule.found(f"{len(rule.outputs)} categories of sentences")
