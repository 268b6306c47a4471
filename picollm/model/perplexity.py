"""Measures how well a model predicts a text: perplexity per token and per word, and bits per byte."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
import torch

from picollm.data.articles import Article
from picollm.data.packing import encode, windows
from picollm.data.tokenizer import END_OF_TEXT
from picollm.data.tokenizers import gpt2
from picollm.errors import PicollmError
from picollm.model.loss import evaluate
from picollm.model.transformer import Transformer

ROWS = 64  # read at once


def perplexity(model: Transformer, articles: Iterable[Article], device: torch.device) -> dict[str, Any]:
    """Evaluates every token of the articles and the <|endoftext|> after each, in rows of the context as in training.

    Keys: articles, tokens, words, bytes (UTF-8), loss (nats per token), perplexity, word_perplexity, bits_per_byte.
    Raises PicollmError if there is no text.
    """
    counts, tokenizer = dict.fromkeys(("articles", "tokens", "words", "bytes"), 0), gpt2()

    def ids() -> Iterator[np.ndarray]:
        yield np.array([END_OF_TEXT], np.uint16)  # precedes the first token
        for article in articles:
            counts["articles"] += 1
            counts["words"] += len(article.text.split())
            counts["bytes"] += len(article.text.encode())
            yield encode([article.text], tokenizer)

    nats = 0.0
    for rows in blocks(ids(), model.config.context):
        predicted = rows[:, 1:].size
        nats += evaluate(model, rows, device) * predicted
        counts["tokens"] += predicted
    if not counts["words"]:
        raise PicollmError("the corpus is empty: there is nothing to evaluate")
    loss = nats / counts["tokens"]
    return counts | {"loss": loss, "perplexity": math.exp(loss), **per_word_and_byte(loss, counts)}


class Normalised(TypedDict):
    """Measures that do not depend on the tokenizer."""

    word_perplexity: float | None  # None if it is too large for a number: text without spaces is one long word
    bits_per_byte: float


def per_word_and_byte(loss: float, counts: Mapping[str, int]) -> Normalised:
    """Computes these from nats per token and the text's counts of tokens, words and bytes."""
    nats = loss * counts["tokens"]
    per_word = nats / counts["words"]
    return {
        "word_perplexity": math.exp(per_word) if per_word < math.log(sys.float_info.max) else None,
        "bits_per_byte": nats / counts["bytes"] / math.log(2),
    }


def blocks(stream: Iterable[np.ndarray], context: int) -> Iterator[np.ndarray]:
    """Yields rows [at most ROWS, context + 1] that share one token with the next, and a shorter row of the rest."""
    flat, wanted = np.empty(0, np.uint16), ROWS * context + 1
    for ids in stream:
        flat = np.concatenate([flat, ids])
        while len(flat) >= wanted:
            yield windows(flat[:wanted], context)
            flat = flat[wanted - 1 :]
    if len(flat) > context:
        whole = windows(flat, context)
        yield whole
        flat = flat[len(whole) * context :]
    if len(flat) > 1:
        yield flat[None]
