"""Attention weights of the trained model on every sentence of the ten categories: one .npz per category."""

from typing import TYPE_CHECKING

from tqdm import tqdm

from picollm.attention.extraction import extract_category, tokenise
from picollm.attention.sentences import load_sentences
from picollm.data.tokenizer import END_OF_TEXT, encoding
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    # One thread whatever the config says: on sentences this short a second one gains nothing, and on a busy machine of
    # two cores it made each map 80 times slower (7 ms against 570).
    device = set_up(snakemake.params.cfg["compute"]["device"], threads=1)
    model = load_model(snakemake.input.weights, snakemake.input.config)
    tokenizer = encoding()
    for name, category in tqdm(load_sentences(snakemake.input.sentences).items(), unit="category", disable=None):
        sentences = [
            tokenise(
                text,
                encode=tokenizer.encode_ordinary,
                token_bytes=tokenizer.decode_single_token_bytes,
                separator=END_OF_TEXT,
            )
            for text in category.sentences
        ]
        extract_category(
            model,
            category=name,
            title=category.title,
            sentences=sentences,
            device=device,
            path=getattr(snakemake.output, name),
        )
