"""Attention weights of a model on sentences, written as one .npz per category (its layout: maps.py).

Position 0 is always the separator <|endoftext|>, since in training a text follows one.

Shape suffixes: L layer, H head, Q query, K key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.maps import FORMAT
from picollm.data.files import atomic_path
from picollm.errors import PicollmError
from picollm.model.transformer import Transformer


@dataclass(frozen=True)
class Tokens:
    """One sentence as the model reads it. `spans` are the characters [start, end) of each token, (0, 0) if none."""

    text: str
    ids: list[int]
    strings: list[str]
    spans: list[tuple[int, int]]


def tokenise(
    text: str, *, encode: Callable[[str], list[int]], token_bytes: Callable[[int], bytes], separator: int
) -> Tokens:
    """`token_bytes(id)` gives a token's UTF-8 bytes. A token with part of a character shows that character whole."""
    ids = encode(text)
    character = np.repeat(np.arange(len(text)), [len(c.encode()) for c in text])  # of each byte
    ends = np.cumsum([len(token_bytes(i)) for i in ids])
    starts = np.concatenate(([0], ends[:-1]))
    spans = [(int(character[a]), int(character[b - 1]) + 1) for a, b in zip(starts, ends, strict=True)]
    strings = ["<|endoftext|>"] + [text[a:b] for a, b in spans]
    return Tokens(text, [separator, *ids], strings, [(0, 0), *spans])


def attention_maps(
    model: Transformer, ids: Sequence[Sequence[int]], device: torch.device
) -> Iterator[NDArray[np.float32]]:
    """Float32 [L, H, Q, K] of one sequence after another, unpadded, so that no map depends on its neighbours."""
    model = model.to(device=device, dtype=torch.float32)
    for sequence in ids:
        maps_BLHQK, _ = model.attention_maps(torch.tensor([list(sequence)], device=device))
        yield maps_BLHQK[0].cpu().numpy()


def extract_category(
    model: Transformer,
    *,
    category: str,
    title: str,
    sentences: Sequence[Tokens],
    device: torch.device,
    path: str | Path,
) -> None:
    """Writes the category's file, equal bytes for equal inputs. Raises PicollmError for a sentence over the context."""
    limit = model.config.context
    for number, tokens in enumerate(sentences, 1):
        if len(tokens.ids) > limit:
            raise PicollmError(
                f"category {category}, sentence {number} has {len(tokens.ids)} tokens with the separator; the model's "
                f"context is {limit}: shorten the sentence"
            )
    header = {
        "format": FORMAT,
        "category": category,
        "title": title,
        "sentences": [{"text": t.text, "ids": t.ids, "tokens": t.strings, "spans": t.spans} for t in sentences],
    }
    arrays = {"sentences": np.array(json.dumps(header, ensure_ascii=False))}
    for number, weights in enumerate(attention_maps(model, [t.ids for t in sentences], device)):
        arrays[f"attention_{number:03d}"] = weights
        arrays[f"ids_{number:03d}"] = np.array(sentences[number].ids, dtype=np.int64)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
