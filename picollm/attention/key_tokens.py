"""Finds the tokens a head looks at beyond what the offset explains: examples that illustrate its content share.

Shape suffixes: H head (layers flattened), N set, Q query, K key, I analysed row, D offset, V distinct token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from picollm.attention.key_sets import SETS, every_key_set
from picollm.attention.maps import CategoryMaps, every_map, flat
from picollm.attention.relations import beyond_kernel, kernel
from picollm.stats import finite

MOST = 5  # tokens named for a head
LEAST_SENTENCES = 3  # sentences in which a token must occur to be named


class TokenShare(TypedDict):
    token: str
    share: float


class KeyTokens(TypedDict):
    """Tokens that a head of heads.json looks at."""

    looks_at: list[TokenShare]
    seen: list[str]


def key_tokens(categories: Sequence[CategoryMaps], tags: Sequence[str | None]) -> list[KeyTokens]:
    """Returns for each head `looks_at`: [{token, share}], the tokens with the largest share of its mass outside
    position 0 beyond its positional kernel, and `seen`, the tokens of its tag's key set with most of the set's mass."""
    ids = [np.asarray(sequence) for category in categories for sequence in category.ids]
    names = {
        number: token
        for category in categories
        for sequence, tokens in zip(category.ids, category.tokens, strict=True)
        for number, token in zip(sequence, tokens, strict=True)
    }
    vocabulary = np.unique(np.concatenate(ids))
    places = [np.searchsorted(vocabulary, sequence) for sequence in ids]
    common_V = np.bincount(np.concatenate([np.unique(place) for place in places])) >= LEAST_SENTENCES
    excess_VH, mass_NVH, total_H = looked_at(categories, places, len(vocabulary))
    excess_VH[~common_V] = 0

    def tokens(weight_V: NDArray) -> list[str]:
        return [names[int(vocabulary[v])] for v in np.argsort(-weight_V, kind="stable")[:MOST] if weight_V[v] > 0]

    sets = list(SETS)
    rows: list[KeyTokens] = []
    for h, tag in enumerate(tags):
        best_V = np.argsort(-excess_VH[:, h], kind="stable")[:MOST]
        rows.append({
            "looks_at": [
                {"token": names[int(vocabulary[v])], "share": finite(excess_VH[v, h] / total_H[h])}
                for v in best_V
                if excess_VH[v, h] > 0
            ],
            "seen": tokens(mass_NVH[sets.index(tag), :, h]) if tag in sets else [],
        })  # fmt: skip
    return rows


def looked_at(
    categories: Sequence[CategoryMaps], places: Sequence[NDArray], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mass beyond the kernel by key token, [V, H], that inside each set of keys, [N, V, H], and the total
    mass, [H]. `places` holds the tokens of each sentence as indices below `size`.
    """
    kernel_HD = kernel(every_map(categories))
    H = len(kernel_HD)
    excess_VH, mass_NVH, total_H = np.zeros((size, H)), np.zeros((len(SETS), size, H)), np.zeros(H)
    for weights, sets_NQK, place in zip(every_map(categories), every_key_set(categories), places, strict=True):
        A_HQK = flat(weights)
        A_HIK = A_HQK[:, 2:, 1:]
        np.add.at(excess_VH, place[1:], beyond_kernel(A_HQK, kernel_HD).sum(1).T)
        sets_NQK = np.broadcast_to(sets_NQK, (len(sets_NQK), *A_HQK.shape[1:]))
        mass_NHK = np.einsum("hik,nik->nhk", A_HIK, sets_NQK[:, 2:, 1:].astype(np.float64), optimize=True)
        for n in range(len(SETS)):
            np.add.at(mass_NVH[n], place[1:], mass_NHK[n].T)
        total_H += A_HIK.sum((1, 2))
    return excess_VH, mass_NVH, total_H
