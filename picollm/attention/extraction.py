"""Extracts a model's attention weights on sentences and writes one .npz per category (layout: maps.py).

Position 0 is always the token that precedes a text, GPT-2's <|endoftext|>, because every training text follows one.

Shape suffixes: L layer, H head, Q query, K key.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.maps import FORMAT
from picollm.attention.sentences import Category, Sentence
from picollm.data.tokenizers import Tokenizer, gpt2
from picollm.errors import PicollmError
from picollm.files import atomic_path
from picollm.model.foreign import Examined, ForeignModel
from picollm.progress import progress

# Threads of torch, regardless of compute.threads: on sentences this short a second thread gains nothing, and on a busy
# virtual machine with two cores it made each map 80 times slower (570 ms instead of 7).
THREADS = 1


@dataclass(frozen=True)
class Tokens:
    """One sentence as the model reads it. `spans` holds the characters [start, end) of each token, (0, 0) if none;
    `gold` maps a mark's role to its positions [first, end)."""

    text: str
    ids: list[int]
    strings: list[str]
    spans: list[tuple[int, int]]
    gold: dict[str, tuple[int, int]] = field(default_factory=dict)


def extract_attention(
    model: Examined,
    categories: Mapping[str, Category],
    paths: Mapping[str, str | Path],
    device: torch.device,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes the file of each category in `paths`; the default tokenizer is GPT-2's.

    Writes nothing if any sentence of any category does not fit the model. Raises PicollmError; see `check`.
    """
    tokenizer, model_size = tokenizer or gpt2(), model.config.vocab_size
    own = not isinstance(model, ForeignModel)
    if model_size < tokenizer.size or (own and model_size != tokenizer.size):  # others pad their vocabulary
        raise PicollmError(
            f"the model has a vocabulary of {model_size:,} tokens, {'GPT-2' if own else 'its tokenizer'}'s has "
            f"{tokenizer.size:,}: sentences can't be encoded for it; docs/heads.md shows how to analyse your own maps"
        )
    tokens = {name: [tokenise(sentence, tokenizer) for sentence in c.sentences] for name, c in categories.items()}
    for name, sentences in tokens.items():
        check(model, name, sentences)
    for name, sentences in progress(
        [(name, tokens[name]) for name in paths], desc="attention maps", unit=" categories"
    ):
        title = categories[name].title
        extract_category(model, category=name, title=title, sentences=sentences, device=device, path=paths[name])


def tokenise(sentence: Sentence, tokenizer: Tokenizer) -> Tokens:
    """Encodes a sentence: ids after the tokenizer's start, the characters of each, and gold marks as positions."""
    text = sentence.text
    ids, spans = tokenizer.pieces(text)
    strings = [tokenizer.start_name] + [text[a:b] for a, b in spans]
    spans = [(0, 0), *spans]
    gold = {}
    for role, (start, end) in sentence.gold.items():
        touched = [position for position, (a, b) in enumerate(spans) if a < end and start < b]
        gold[role] = (touched[0], touched[-1] + 1)
    return Tokens(text, [tokenizer.start, *ids], strings, spans, gold)


def attention_maps(
    model: Examined, ids: Sequence[Sequence[int]], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """Yields float32 [L, H, Q, K] for one unpadded sequence at a time, so that no map depends on its neighbours."""
    model = model.to(device=device, dtype=torch.float32)
    for sequence in ids:
        maps_BLHQK, _ = model.attention_maps(torch.tensor([list(sequence)], device=device))
        yield maps_BLHQK[0].cpu().numpy()


def extract_category(
    model: Examined,
    *,
    category: str,
    title: str,
    sentences: Sequence[Tokens],
    device: torch.device,
    path: str | Path,
) -> None:
    """Writes the category's file, with equal bytes for equal inputs and one sentence's maps in memory at a time.

    Raises PicollmError; see `check`.
    """
    check(model, category, sentences)
    header = {
        "format": FORMAT,
        "category": category,
        "title": title,
        "sentences": [
            {"text": t.text, "ids": t.ids, "tokens": t.strings, "spans": t.spans, "gold": t.gold} for t in sentences
        ],
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        add(archive, "sentences", np.array(json.dumps(header, ensure_ascii=False)))
        for number, weights in enumerate(attention_maps(model, [t.ids for t in sentences], device)):
            add(archive, f"attention_{number:03d}", weights)
            add(archive, f"ids_{number:03d}", np.array(sentences[number].ids, dtype=np.int64))


def check(model: Examined, category: str, sentences: Sequence[Tokens]) -> None:
    """Raises PicollmError for a sentence longer than the context, of less than two tokens, or with an unknown id."""
    limit, vocabulary = model.config.context, model.config.vocab_size
    for number, tokens in enumerate(sentences, 1):
        place, length = f"category {category}, sentence {number}", len(tokens.ids)
        if length > limit:
            raise PicollmError(
                f"{place} has {length} tokens with the separator; the model's context is {limit}: shorten the sentence"
            )
        if length < 3:
            raise PicollmError(
                f"{place} has fewer than two tokens after the separator, so none has another word to attend to: write "
                "at least two"
            )
        if max(tokens.ids) >= vocabulary:
            raise PicollmError(
                f"{place} has token {max(tokens.ids)}; the model's vocabulary ends at {vocabulary - 1}: it was trained "
                "with another tokenizer"
            )


def add(archive: zipfile.ZipFile, name: str, array: NDArray) -> None:
    """Adds an array to the archive as np.savez does, which needs all arrays at once."""
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # as np.savez: bytes don't depend on time
    with archive.open(entry, "w") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
