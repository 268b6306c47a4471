"""Attention weights of a model on sentences, and their files: one .npz per category.

A file holds, for sentence NNN, `attention_NNN` float32 [layer, head, query, key] and `ids_NNN` int64, and `sentences`,
a JSON string: {format, category, title, sentences: [{text, ids, tokens, spans}]}.
Position 0 is always the separator <|endoftext|>, since in training a text follows one.

Shape suffixes: L layer, H head, Q query, K key.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.data.files import atomic_path
from picollm.errors import PicollmError
from picollm.model.transformer import Transformer

FORMAT = 1
ROW_SUM_TOLERANCE = 1e-4
# All that a changed byte makes zipfile and NumPy raise, found by flipping them one by one.
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Tokens:
    """One sentence as the model reads it. `spans` are the characters [start, end) of each token, (0, 0) if none."""

    text: str
    ids: list[int]
    strings: list[str]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class CategoryMaps:
    """What one file holds; `maps` has one float32 [L, H, Q, K] array a sentence."""

    category: str
    title: str
    texts: list[str]
    ids: list[list[int]]
    tokens: list[list[str]]
    maps: list[NDArray[np.float32]]


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


def load_attention(path: str | Path) -> CategoryMaps:
    """Raises PicollmError naming the file where it is missing, damaged, or holds no causal attention."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["sentences"]))
            if header["format"] != FORMAT:
                raise PicollmError(f"{path} has format {header['format']}, not {FORMAT}: run extract_attention again")
            sentences = header["sentences"]
            maps = [file[f"attention_{number:03d}"] for number in range(len(sentences))]
            ids = [file[f"ids_{number:03d}"].tolist() for number in range(len(sentences))]
        for number, (weights, sequence) in enumerate(zip(maps, ids, strict=True)):
            fault = fault_of(weights, len(sequence))
            if fault:
                raise PicollmError(f"{path}: attention_{number:03d} {fault}: delete the file and run extract_attention")
        texts, tokens = [s["text"] for s in sentences], [s["tokens"] for s in sentences]
        return CategoryMaps(header["category"], header["title"], texts, ids, tokens, maps)
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: run the rule extract_attention") from None
    except DAMAGE as error:
        raise PicollmError(
            f"{path} is damaged or unreadable ({error}): delete it and run extract_attention again"
        ) from None


def fault_of(weights: NDArray, length: int) -> str | None:
    """What keeps an array from being the causal attention [L, H, length, length] of a model, or None."""
    if weights.ndim != 4 or weights.shape[2:] != (length, length):
        return f"has shape {weights.shape}, not [layer, head, {length}, {length}]"
    if not np.isfinite(weights).all():
        return "holds NaN or infinity"
    if (weights < 0).any():
        return "holds negative weights"
    if np.triu(weights, 1).any():
        return "attends to later positions"
    if np.abs(weights.sum(-1, dtype=np.float64) - 1).max() > ROW_SUM_TOLERANCE:
        return f"has rows that do not sum to 1 within {ROW_SUM_TOLERANCE:g}"
    return None


def load_categories(paths: Sequence[str | Path]) -> list[CategoryMaps]:
    """The files in the order given. Raises PicollmError where they come from models of different shapes."""
    categories = [load_attention(path) for path in paths]
    shape = categories[0].maps[0].shape[:2]
    for path, category in zip(paths, categories, strict=True):
        if any(weights.shape[:2] != shape for weights in category.maps):
            raise PicollmError(f"{path} is of another model than {paths[0]}: run extract_attention again for all")
    return categories
