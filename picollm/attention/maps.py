"""Reads and checks the attention files, one .npz per category. Needs only NumPy, so that anyone can use them.

A file holds `attention_NNN` float32 [layer, head, query, key] and `ids_NNN` int64 for sentence NNN, and `sentences`, a
JSON string: {format, category, title, sentences: [{text, ids, tokens, spans, gold}]}; `gold` maps the role of a mark
(picollm.attention.sentences) to its positions [first, end).

Shape suffixes: L layer, H head, Q query, K key.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from picollm.errors import PicollmError, rerun

FORMAT = 2
ROW_SUM_TOLERANCE = 1e-4
# Every exception that zipfile and NumPy raise for a changed byte, found by flipping the bytes one by one.
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError)


class Shape(Protocol):
    """The part of a model's config that describes its heads."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...


@dataclass(frozen=True)
class CategoryMaps:
    """Contents of one file; `maps` has one float32 [L, H, Q, K] array per sentence, read on access."""

    category: str
    title: str
    texts: list[str]
    ids: list[list[int]]
    tokens: list[list[str]]
    gold: Sequence[Mapping[str, Sequence[int]]]
    maps: Sequence[NDArray[np.float32]]


def from_arrays(
    maps: Sequence[NDArray],
    ids: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[str]] | None = None,
    gold: Sequence[Mapping[str, Sequence[int]]] | None = None,
    *,
    category: str = "all",
) -> CategoryMaps:
    """Wraps user-supplied maps, [L, H, Q, K] per sentence with the sink at position 0, for the analysis.

    `tokens` are the words behind `ids`; without them, no token counts as punctuation or a function word. `gold` maps
    roles to positions [first, end). Raises PicollmError if the lists differ in length, or for the first array
    that is not causal attention or has another number of layers and heads, which it names.
    """
    words = [[f"token{i}" for i in sequence] for sequence in ids] if tokens is None else tokens
    marks = [{} for _ in ids] if gold is None else gold
    if not len(maps) == len(ids) == len(words) == len(marks) or not len(maps):
        raise PicollmError(
            f"{category}: {len(maps)} maps, {len(ids)} lists of ids, {len(words)} of words and {len(marks)} of marks; "
            "each sentence needs one of each, and at least one sentence is required"
        )
    for number, (weights, sequence, line) in enumerate(zip(maps, ids, words, strict=True)):
        fault = fault_of(np.asarray(weights), len(sequence))
        if not fault and len(sequence) < 3:
            fault = "has fewer than two tokens after the sink"
        if not fault and len(line) != len(sequence):
            fault = f"has {len(line)} words for {len(sequence)} ids"
        if not fault and weights.shape[:2] != maps[0].shape[:2]:
            fault = f"has {weights.shape[:2]} layers and heads, the first has {maps[0].shape[:2]}"
        if fault:
            raise PicollmError(f"map {number} of {category} {fault}")
    return CategoryMaps(
        category, category, [" ".join(line) for line in words], [list(sequence) for sequence in ids],
        [list(line) for line in words], [dict(mark) for mark in marks], maps,
    )  # fmt: skip


class StoredMaps(Sequence):
    """The maps of a file, one at a time in memory; each is checked when it is read."""

    def __init__(self, path: str | Path, lengths: Sequence[int]) -> None:
        self.path, self.lengths = path, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> NDArray[np.float32]:  # pyrefly: ignore[bad-override]  no slices
        number = range(len(self))[number]
        with readable(self.path), np.load(self.path, allow_pickle=False) as file:
            return self.checked(file, number)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        with readable(self.path), np.load(self.path, allow_pickle=False) as file:
            for number in range(len(self)):
                yield self.checked(file, number)

    def checked(self, file: Mapping[str, NDArray], number: int) -> NDArray[np.float32]:
        weights = file[f"attention_{number:03d}"]
        fault = fault_of(weights, self.lengths[number])
        if fault:
            raise PicollmError(
                f"{self.path}: attention_{number:03d} {fault}: delete the file and {rerun('extract_attention')}"
            )
        return weights


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns the exceptions of a missing or damaged file into one PicollmError line."""
    try:
        yield
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: {rerun('extract_attention')}") from None
    except DAMAGE as error:
        raise PicollmError(
            f"{path} is damaged or unreadable ({error}): delete it and {rerun('extract_attention')}"
        ) from None


def load_attention(path: str | Path) -> CategoryMaps:
    """Reads one category. Raises PicollmError if the file is missing, damaged, or holds no causal attention."""
    with readable(path), np.load(path, allow_pickle=False) as file:
        header = json.loads(str(file["sentences"]))
        if header["format"] != FORMAT:
            raise PicollmError(f"{path} has format {header['format']}, not {FORMAT}: {rerun('extract_attention')}")
        sentences = header["sentences"]
        ids = [file[f"ids_{number:03d}"].tolist() for number in range(len(sentences))]
        texts, tokens, gold = ([entry[key] for entry in sentences] for key in ("text", "tokens", "gold"))
        maps = StoredMaps(path, [len(sequence) for sequence in ids])
        return CategoryMaps(header["category"], header["title"], texts, ids, tokens, gold, maps)


def fault_of(weights: NDArray, length: int) -> str | None:
    """Returns the reason why an array is not a model's causal attention [L, H, length, length], or None."""
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
    """Loads the files in the given order. Raises PicollmError if they come from models of different shapes."""
    categories = [load_attention(path) for path in paths]
    shape = categories[0].maps[0].shape[:2]
    for path, category in zip(paths, categories, strict=True):
        if category.maps[0].shape[:2] != shape:
            raise PicollmError(
                f"{path} is of another model than {paths[0]}: {rerun('extract_attention')} for all files"
            )
    return categories


def every_map(categories: Sequence[CategoryMaps]) -> Iterator[NDArray[np.float32]]:
    """Yields the maps of every sentence, category by category, one at a time."""
    return (weights for category in categories for weights in category.maps)


def flat(weights: NDArray) -> NDArray[np.float64]:
    """Flattens the layers of a map into heads, [H, Q, K]."""
    return weights.reshape(-1, *weights.shape[-2:]).astype(np.float64)


def numbering(categories: Sequence[CategoryMaps]) -> list[int]:
    """Returns the category number, from 0, of every sentence."""
    return [c for c, category in enumerate(categories) for _ in category.ids]


def name_of(h: int, n_heads: int) -> str:
    return f"L{h // n_heads}H{h % n_heads}"


def names_of(shape: Shape) -> list[str]:
    """Returns the names of all heads, layer by layer: L0H0, L0H1, ..."""
    return [name_of(h, shape.n_heads) for h in range(shape.n_layers * shape.n_heads)]
