"""Scores of heads on repeated random tokens: previous-token, duplicate and induction scores, and copying.

A sequence is [<|endoftext|>, r_1 ... r_L, r_1 ... r_L] without a repeated token inside a copy. Its tokens are frequent
in the training text, because even draws over the vocabulary would mostly test untrained embeddings. Query t of the
second copy has its own duplicate at t - L; the token that followed the duplicate, at t - L + 1, comes next. The last
token of the second copy is left out, because its duplicate is followed by the second copy itself.

A score is the mean weight at one offset, minus what uniform attention puts there, over its largest possible value.

Shape suffixes: S sequence, B batch of them, T position, R position within a copy, L layer, H head (layers flattened
without an L), Q query, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm.data.tokenizer import END_OF_TEXT
from picollm.errors import PicollmError
from picollm.mechanisms.intervention import batches, head_outputs
from picollm.mechanisms.readout import linear_part
from picollm.model.foreign import Examined

SCORES = {
    "previous": "weight of the token before, from the second token on",
    "duplicate": "weight of the first occurrence of the query's own token, second copy",
    "induction": "weight of the token that followed that occurrence, second copy",
}
LEAST = 0.3  # minimum score that counts as an effect
# A head copies if it favours a token over more than this share of the others; below 1 - this it writes against it.
COPYING = 0.6
LENGTHS = (25, 50, 100, 150)  # tokens of one copy; those that fit the context and its vocabulary are used
SEQUENCES = 64
SEEDS = 3
FEW = 16  # sequences when many models are scored
FEW_LENGTHS = (25, 50)
COMMON = 100  # occurrences in the training text from which a token is used; a small text gives its most frequent


def lengths(context: int, counts_V: NDArray, start: int = END_OF_TEXT) -> list[int]:
    """Returns the lengths of a copy that fit, or the longest that does. Raises PicollmError if that is below 2."""
    usable = len(common(counts_V, start))
    most = min((context - 1) // 2, usable)
    if most < 2:
        raise PicollmError(
            f"a context of {context} tokens with {usable} common tokens is too small for repeats: "
            "raise tokens.context, or use more text"
        )
    return [length for length in LENGTHS if length <= most] or [most]


def common(counts_V: NDArray, start: int = END_OF_TEXT) -> NDArray[np.int64]:
    """Returns ids that occur COMMON times or more in the training text, or the most frequent 2 x the longest copy."""
    order = np.argsort(-counts_V, kind="stable")
    order = order[(counts_V[order] > 0) & (order != start)]
    return np.sort(order[: max((counts_V[order] >= COMMON).sum(), 2 * LENGTHS[-1])])


def sequences(
    counts_V: NDArray, length: int, *, seed: int, matched: bool = False, start: int = END_OF_TEXT
) -> NDArray[np.int64]:
    """Draws [SEQUENCES, 2 length + 1]. With `matched`, tokens are drawn in proportion to their counts in the text."""
    usable = common(counts_V, start)
    generator = np.random.default_rng([seed, length])
    share = counts_V[usable] / counts_V[usable].sum() if matched else None
    copies = [generator.choice(usable, length, replace=False, p=share) for _ in range(SEQUENCES)]
    return np.concatenate([np.full((SEQUENCES, 1), start), copies, copies], axis=1)


def of_vocabulary(vocab_size: int, context: int, start: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Draws FEW sequences of each of FEW_LENGTHS that fits, or of the longest copy that does, from a vocabulary whose
    training text is not available."""
    counts_V = np.full(vocab_size, COMMON)
    counts_V[start] = 0
    fitting = lengths(context, counts_V, start)
    chosen = [length for length in fitting if length in FEW_LENGTHS] or fitting[-1:]
    return [sequences(counts_V, length, seed=seed, start=start)[:FEW] for length in chosen]


def second_copy(length: int) -> NDArray[np.int64]:
    """Returns the queries whose next token can be copied from the first copy: t = L + 1 ... 2 L - 1."""
    return np.arange(length + 1, 2 * length)


def scores(model: Examined, ids_ST: NDArray, device: torch.device) -> dict[str, NDArray[np.float64]]:
    """Computes the chance-corrected scores of each sequence, [S, H]."""
    length = ids_ST.shape[1] // 2
    parts = [offsets(model.attention_maps(ids)[0].flatten(1, 2), length) for ids in batches(ids_ST, device)]
    return {name: np.concatenate([part[name] for part in parts]) for name in SCORES}


def offsets(maps_BHQK: Tensor, length: int) -> dict[str, NDArray[np.float64]]:
    """Computes the scores from the maps of repeated sequences, [B, H]."""
    second, later = second_copy(length), np.arange(2, maps_BHQK.shape[-1])
    where = {
        "previous": (later, later - 1),
        "duplicate": (second, second - length),
        "induction": (second, second - length + 1),
    }
    return {
        name: corrected(maps_BHQK[..., query, key].double().mean(-1).cpu().numpy(), query)
        for name, (query, key) in where.items()
    }


def corrected(weight: NDArray, query: NDArray) -> NDArray[np.float64]:
    """Corrects for chance: 0 for uniform attention, 1 for all weight, negative for less than uniform."""
    chance = (1 / (query + 1)).mean()
    return (weight - chance) / (1 - chance)


@torch.no_grad()
def copying(model: Examined, ids_ST: NDArray, device: torch.device) -> NDArray[np.float64]:
    """Share of comparisons in which a head's direct output favours the next token over another token of the sequence
    (not the query's own), over the second copy's queries, [S, H]: .5 if it always writes the same, or what it reads.

    Compared with the full vocabulary, every head that favours common words would copy; all tokens here are common. The
    final norm divides by a positive number, which changes no order, and is otherwise linear.
    """
    length = ids_ST.shape[1] // 2
    query, next_Q = second_copy(length), torch.arange(1, length, device=device)  # its place within a copy
    shares_by_layer = []
    for ids in batches(ids_ST, device):
        token_BRD = model.head.weight[ids[:, 1 : length + 1]]
        shares = []
        for block, z_BHTK in zip(model.layers, head_outputs(model, ids), strict=True):
            B, H = z_BHTK.shape[:2]
            written_BHQD = torch.einsum("bhqk,dhk->bhqd", z_BHTK[:, :, query], block.out_weight())
            logit_BHQR = linear_part(model.norm, written_BHQD) @ token_BRD.mT[:, None]
            own_BHQ1 = logit_BHQR.gather(-1, next_Q[:, None].expand(B, H, -1, 1))
            above = (own_BHQ1 > logit_BHQR).double() + 0.5 * (own_BHQ1 == logit_BHQR)
            itself_BHQ1 = above.gather(-1, (next_Q - 1)[:, None].expand(B, H, -1, 1))
            # Excludes the token itself and the query's own token: a head that writes the latter does not copy.
            shares.append(((above.sum(-1) - 0.5 - itself_BHQ1[..., 0]) / (length - 2)).mean(-1))
        shares_by_layer.append(torch.cat(shares, 1).cpu().numpy())
    return np.concatenate(shares_by_layer)


def pooled(parts: Sequence[dict[str, NDArray]]) -> dict[str, NDArray]:
    """Concatenates the scores of several sets of sequences."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
