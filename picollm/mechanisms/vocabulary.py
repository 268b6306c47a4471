"""Checks which words of the probes occur in the training text: a model can't know words it hardly ever read.

Shape suffixes: N token of the training stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from numpy.typing import NDArray

from picollm.data.tokenizers import Tokenizer

LEAST_COUNT = 10  # minimum occurrences of each word of a cluster of items


def occurrences(rows: NDArray, word: str, tokenizer: Tokenizer) -> int:
    """Counts the occurrences of a word in rows of ids, with a space before it."""
    ids = tokenizer.ids(" " + word)
    matches = rows[:, : rows.shape[1] - len(ids) + 1] == ids[0]
    for k, token in enumerate(ids[1:], start=1):
        matches &= rows[:, k : rows.shape[1] - len(ids) + 1 + k] == token
    return int(matches.sum())


def rare_words(rows: NDArray, words: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the words with fewer than LEAST_COUNT occurrences and their counts."""
    counts = {word: occurrences(rows, word, tokenizer) for word in dict.fromkeys(words)}
    return {word: number for word, number in counts.items() if number < LEAST_COUNT}


def known_clusters(words: Mapping[int, Sequence[str]], rare: Mapping[str, int]) -> list[int]:
    """Returns the clusters with no rare word; `words` maps each cluster to the words it tests."""
    return [cluster for cluster, own in words.items() if not set(own) & set(rare)]
