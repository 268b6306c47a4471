"""The attention files, one .npz per category: read back and checked. Needs NumPy alone, so that anyone can use them.

A file holds, for sentence NNN, `attention_NNN` float32 [layer, head, query, key] and `ids_NNN` int64, and `sentences`,
a JSON string: {format, category, title, sentences: [{text, ids, tokens, spans}]}.

Shape suffixes: L layer, H head, Q query, K key.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from picollm.errors import PicollmError

FORMAT = 1
ROW_SUM_TOLERANCE = 1e-4
# All that a changed byte makes zipfile and NumPy raise, found by flipping them one by one.
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class CategoryMaps:
    """What one file holds; `maps` has one float32 [L, H, Q, K] array a sentence."""

    category: str
    title: str
    texts: list[str]
    ids: list[list[int]]
    tokens: list[list[str]]
    maps: list[NDArray[np.float32]]


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


def flatten(categories: Sequence[CategoryMaps]) -> tuple[list[NDArray], list[list[int]], list[int]]:
    """Maps, ids and category number of every sentence, category after category."""
    maps = [weights for category in categories for weights in category.maps]
    ids = [sequence for category in categories for sequence in category.ids]
    number = [c for c, category in enumerate(categories) for _ in category.maps]
    return maps, ids, number
