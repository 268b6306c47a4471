"""A sample of sentences in the form that the statistics need: ids, category and sets of keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from picollm.attention.key_sets import key_sets


@dataclass(frozen=True)
class Sample:
    """The ids, the category (from 0) and the sets of keys (picollm.attention.key_sets) of each sentence."""

    ids: Sequence[Sequence[int]]
    category: Sequence[int]
    keys: Sequence[NDArray]


def sample_of(rows: Iterable[tuple[int, Sequence[int], Sequence[str], Mapping[str, Sequence[int]]]]) -> Sample:
    """Builds a sample from rows of (category, ids, words, gold marks)."""
    category, ids, tokens, gold = zip(*rows, strict=True)
    return Sample(list(ids), list(category), [key_sets(*row) for row in zip(ids, tokens, gold, strict=True)])
