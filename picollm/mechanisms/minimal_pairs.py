"""Minimal pairs: tests if a word is likelier where it agrees or is licensed (BLiMP, Warstadt et al. 2020).

Shape suffixes: N sequence, T position, H head (layers flattened), P pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm.data.ngram import NGrams
from picollm.data.tokenizers import Tokenizer
from picollm.errors import PicollmError
from picollm.mechanisms.templates import Pair

LEAST_CLUSTERS = 8
AT_ONCE = 64


class Continuations:
    """Each pair's target after both texts, padded on the right, which has no effect in a causal model."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        """Raises PicollmError if there are too few clusters for an interval."""
        self.cluster_P = np.array([pair.cluster for pair in pairs])
        clusters = len(np.unique(self.cluster_P))
        if clusters < LEAST_CLUSTERS:
            raise PicollmError(f"minimal pairs of {clusters} clusters: at least {LEAST_CLUSTERS} are needed")
        prefixes, targets = [], []
        for side in ("good", "bad"):
            for pair in pairs:
                prefixes.append([tokenizer.start, *tokenizer.ids(getattr(pair, side))])
                targets.append(tokenizer.ids(pair.target).tolist())
        longest = max(len(p) + len(t) for p, t in zip(prefixes, targets, strict=True))
        self.ids_NT = np.full((len(prefixes), longest), tokenizer.start)
        self.scored_NT = np.zeros((len(prefixes), longest - 1), dtype=bool)  # mask of the losses, which are one shorter
        for n, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
            end = len(prefix) + len(target)
            self.ids_NT[n, :end] = prefix + target
            self.scored_NT[n, len(prefix) - 1 : end - 1] = True

    def margins(self, losses: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> NDArray[np.float64]:
        """Computes how much likelier the target is after the good text, in nats, [..., P]; `losses` maps ids [B, T] and
        a mask of the scored tokens [B, T - 1] to [..., B, T - 1], 0 outside the mask."""
        parts = []
        for start in range(0, len(self.ids_NT), AT_ONCE):
            ids, scored = (
                torch.from_numpy(a[start : start + AT_ONCE]).to(device) for a in (self.ids_NT, self.scored_NT)
            )
            parts.append(losses(ids, scored).double().sum(-1).cpu().numpy())
        return self.differences(np.concatenate(parts, axis=-1))

    def differences(self, losses: NDArray) -> NDArray[np.float64]:
        good, bad = np.split(losses, 2, axis=-1)
        return bad - good

    def by_ngrams(self, models: NGrams) -> dict[str, NDArray[np.float64]]:
        """Computes the margins of a unigram and a bigram, [P]."""
        previous, target = self.ids_NT[:, :-1], self.ids_NT[:, 1:]
        losses_by_model = {
            "unigram": models.unigram(target.ravel()),
            "bigram": models.bigram(previous.ravel(), target.ravel()),
        }
        return {
            name: self.differences((losses.reshape(target.shape) * self.scored_NT).sum(-1))
            for name, losses in losses_by_model.items()
        }
