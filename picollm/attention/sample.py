"""Some sentences, as the statistics of maps take them: ids, category, and the sets of keys of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from picollm.attention.key_sets import key_sets


@dataclass(frozen=True)
class Sample:
    """Of each sentence its ids, its category from 0, and its sets of keys (picollm.attention.key_sets)."""

    ids: Sequence[Sequence[int]]
    category: Sequence[int]
    keys: Sequence[NDArray]


def sample_of(rows: Iterable[tuple[int, Sequence[int], Sequence[str], Mapping[str, Sequence[int]]]]) -> Sample:
    """Of rows of a category, ids, words and gold marks."""
    category, ids, tokens, gold = zip(*rows, strict=True)
    return Sample(list(ids), list(category), [key_sets(*row) for row in zip(ids, tokens, gold, strict=True)])
