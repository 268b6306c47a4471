"""Kinds of next tokens, to attribute a rise in loss to a kind: mean effects hide which tokens are affected.

Shape suffixes: W window, T position, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import FUNCTION_WORDS
from picollm.data.tokenizer import VOCAB_SIZE, encoding

RARE = 10  # occurrences in the training text below which a token is rare
KINDS = {
    "function word": f"one of {len(FUNCTION_WORDS)} English function words",
    "punctuation": "a token without a letter or digit",
    "inside a word": "a token that continues a word",
    "number": "another token with a digit",
    "content word": "any other token: a word, or its beginning",
    "repeated": "a token that already occurred in its row",
    "rare": f"a token with fewer than {RARE} occurrences in the training text",
}


def target_kinds(ids_WT: NDArray, counts_V: NDArray) -> dict[str, NDArray[np.bool_]]:
    """Returns a mask of the targets, [W, T - 1], for each kind; the first five are disjoint and cover all targets.

    The first five are known only for GPT-2's vocabulary and are left out for any other.
    """
    targets = ids_WT[:, 1:]
    kinds = by_word(targets) if len(counts_V) == VOCAB_SIZE else {}
    kinds["repeated"] = np.stack([[token in row[: t + 1] for t, token in enumerate(row[1:])] for row in ids_WT])
    kinds["rare"] = counts_V[targets] < RARE
    return kinds


def by_word(targets_WT: NDArray) -> dict[str, NDArray[np.bool_]]:
    vocabulary, place_WT = np.unique(targets_WT, return_inverse=True)
    kind_V = np.array([word_kind(encoding().decode_single_token_bytes(int(i))) for i in vocabulary])
    kind_WT = kind_V[place_WT.reshape(targets_WT.shape)]
    return {name: kind_WT == name for name in list(KINDS)[:5]}


def word_kind(token: bytes) -> str:
    text = token.decode("utf-8", errors="replace")
    word = text.strip().lower()
    if not any(char.isalnum() for char in word):
        return "punctuation"
    if word in FUNCTION_WORDS:
        return "function word"
    if not text[0].isspace():
        return "inside a word"
    return "number" if any(char.isdigit() for char in word) else "content word"
