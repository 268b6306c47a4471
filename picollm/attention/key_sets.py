"""Named sets of key positions that a head may look for; the set a token-specific head prefers becomes its tag.

A set is a boolean matrix [query, key] over the positions of one sentence; it never contains the separator at 0.

Shape suffixes: N set, Q query, K key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from picollm.attention.maps import CategoryMaps

RARE_ID = 10_000  # GPT-2's ids follow the order of its merges, so a higher id is, roughly, a rarer token
WORDS = """
a about above after all also although an and any are as at be because been before being below between both but by
can could did do does during each either every few for from had has have he her hers him his how i if in into is it
its itself many may might more most much must neither no none nor not of off on once one only or other our out over
own shall she should since so some such than that the their theirs them then there these they this those though
through to too under until up upon was we were what when where whether which while who whom whose why will with
within without would yet you your
"""
FUNCTION_WORDS = frozenset(WORDS.split())
SETS = {
    "punctuation": "tokens without a letter or digit",
    "function-word": f"{len(FUNCTION_WORDS)} English function words",
    "duplicate": "earlier occurrences of the query's own token",
    "after-duplicate": "tokens that follow an earlier occurrence of the query's own token",
    "rare": f"tokens with a GPT-2 id of {RARE_ID:,} or more",
    "coreference": "the gold antecedent, for the rows of its pronoun",
}


def key_sets(
    ids: Sequence[int], tokens: Sequence[str], gold: Mapping[str, Sequence[int]] | None = None
) -> NDArray[np.bool_]:
    """Builds the sets, [N, Q, K], in the order of SETS; `gold` maps a role to its positions [first, end)."""
    ids_K, words = np.asarray(ids), [token.strip().lower() for token in tokens]
    T = len(ids_K)
    earlier_QK = np.tri(T, k=-1, dtype=bool)
    same_QK = ids_K[:, None] == ids_K[None, :]
    antecedent_QK = np.zeros((T, T), dtype=bool)
    if gold and {"pronoun", "antecedent"} <= set(gold):
        antecedent_QK[slice(*gold["pronoun"]), slice(*gold["antecedent"])] = True
    sets_NQK = np.stack(
        [
            np.broadcast_to([not any(c.isalnum() for c in word) for word in words], (T, T)),
            np.broadcast_to([word in FUNCTION_WORDS for word in words], (T, T)),
            same_QK & earlier_QK,
            np.roll(same_QK & earlier_QK, 1, axis=1) & earlier_QK,
            np.broadcast_to(ids_K >= RARE_ID, (T, T)),
            antecedent_QK,
        ]
    )
    sets_NQK = sets_NQK & np.tri(T, dtype=bool)
    sets_NQK[:, :, 0] = False
    if T > 1:
        sets_NQK[list(SETS).index("after-duplicate"), :, 1] = False  # the token after the separator follows no word
    return sets_NQK


def every_key_set(categories: Sequence[CategoryMaps]) -> Iterator[NDArray[np.bool_]]:
    """Yields `key_sets` for every sentence, category by category."""
    return (
        key_sets(ids, tokens, gold)
        for category in categories
        for ids, tokens, gold in zip(category.ids, category.tokens, category.gold, strict=True)
    )
