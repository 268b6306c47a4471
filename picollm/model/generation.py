"""Generates text from the model, one token at a time."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator

import torch

from picollm.data.tokenizer import END_OF_TEXT, encoding
from picollm.errors import PicollmError
from picollm.model.transformer import Cache, Transformer


@torch.inference_mode()
def generate(
    model: Transformer, ids: list[int], tokens: int, temperature: float, top_k: int, seed: int
) -> Iterator[int]:
    """Yields up to `tokens` ids after `ids`, stopping before <|endoftext|>; temperature 0 always takes the likeliest.

    A `top_k` of 0 samples from the whole vocabulary. Raises PicollmError if a number is out of range, or if prompt and
    continuation don't fit the positions that the model accepts.
    """
    if not (0 <= tokens and 0 <= top_k and 0 <= seed < 1 << 63):
        raise PicollmError(f"tokens = {tokens}, top-k = {top_k}, seed = {seed}: each must be 0 or more, and below 2^63")
    if not 0 <= temperature < math.inf:
        raise PicollmError(f"temperature = {temperature}: must be 0 or more, and finite")
    if len(ids) + tokens > model.config.rope_cache:
        raise PicollmError(
            f"{len(ids)} tokens of prompt and {tokens} to generate: the model accepts {model.config.rope_cache} in "
            "all: shorten the prompt, or lower --tokens"
        )
    random, cache, new = torch.Generator().manual_seed(seed), Cache(len(model.blocks)), torch.tensor([ids])
    for _ in range(tokens):
        logits_V = model.next_logits(new, cache)[0].float()
        if temperature == 0:
            chosen = int(logits_V.argmax())
        else:
            best = logits_V.double().topk(min(top_k or len(logits_V), len(logits_V)))
            shares = ((best.values - best.values[0]) / temperature).softmax(-1)  # the best is 0 at any temperature
            chosen = int(best.indices[torch.multinomial(shares, 1, generator=random)])
        if chosen == END_OF_TEXT:
            return
        yield chosen
        new = torch.tensor([[chosen]])


def continuation(model: Transformer, prompt: str, **how) -> Iterator[str]:
    """Yields the generated text in pieces. An empty prompt begins a new article."""
    ids = encoding().encode_ordinary(prompt) or [END_OF_TEXT]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may take several tokens
    for token in generate(model, ids, **how):
        yield decoder.decode(encoding().decode_single_token_bytes(token))
    yield decoder.decode(b"", final=True)
