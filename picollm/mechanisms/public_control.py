"""Positive control on public models: compares heads known from the literature with what this method finds.

For models with public snapshots, the same scores show when the heads appeared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from picollm.attention.maps import name_of
from picollm.errors import PicollmError
from picollm.mechanisms import repeats
from picollm.model.foreign import Examined

SEED = 1


@dataclass(frozen=True)
class KnownHeads:
    """Known heads, the score that should find them, and the source that reports them."""

    score: str
    heads: tuple[str, ...]
    source: str


WANG = "Wang et al. 2022, arXiv 2211.00593, figure 2 and appendix"
KNOWN = {
    "gpt2": (
        KnownHeads("induction", ("L5H1", "L5H5", "L6H9", "L7H2", "L7H10"), WANG),
        KnownHeads("previous", ("L4H11",), WANG),
        KnownHeads("duplicate", ("L0H1", "L0H5", "L3H0"), WANG),
    ),
    "pythia": (),  # no list of heads, but dated snapshots: Olsson et al. 2022 and Biderman et al. 2023
}


def scores_of(model: Examined, start: int, device: torch.device) -> dict[str, np.ndarray]:
    """Computes each score of each head, [H], the smallest over the lengths, on repeated random ids."""
    sets = repeats.of_vocabulary(model.config.vocab_size, model.config.context, start, seed=SEED)
    by_length = [repeats.scores(model, ids_ST, device) for ids_ST in sets]
    return {name: np.min([scores[name].mean(0) for scores in by_length], axis=0) for name in repeats.SCORES}


def lines(kind: str, model: Examined, start: int, device: torch.device) -> list[str]:
    """Compares expected and measured scores, one line per head. Raises PicollmError for an unknown kind of model."""
    if kind not in KNOWN:
        raise PicollmError(f"no known heads for {kind!r}; choose one of {', '.join(KNOWN)}")
    scores, n_heads = scores_of(model, start, device), model.config.n_heads
    text = []
    for known in KNOWN[kind]:
        values = scores[known.score]
        order = np.argsort(-values)
        rank = {name_of(int(h), n_heads): place for place, h in enumerate(order, start=1)}
        text.append(f"{known.score} heads ({known.source}); a score of {repeats.LEAST} or more counts")
        for name in known.heads:
            if name not in rank:
                raise PicollmError(f"the model has no head {name}: it is not the model examined by {known.source}")
            layer, head = name[1:].split("H")
            value = values[int(layer) * n_heads + int(head)]
            verdict = "found" if value >= repeats.LEAST else "not found"
            text.append(f"  {name:6} {value:+.3f}  rank {rank[name]} of {len(values)}  {verdict}")
    return [*text, *strongest(scores, n_heads)]


def strongest(scores: dict[str, np.ndarray], n_heads: int, most: int = 8) -> list[str]:
    """Lists the heads with the largest scores of each kind."""
    text = []
    for name, values in scores.items():
        top = [f"{name_of(int(h), n_heads)} {values[h]:+.2f}" for h in np.argsort(-values)[:most]]
        text.append(f"largest {name} scores: {', '.join(top)}")
    return text


def emergence_line(revision: str, model: Examined, start: int, device: torch.device) -> str:
    """Returns one line for a snapshot: how many heads reach each score."""
    scores = scores_of(model, start, device)
    counts: Sequence[str] = [f"{(values >= repeats.LEAST).sum()} {name} (largest {values.max():+.2f})"
                             for name, values in scores.items()]  # fmt: skip
    return f"{revision}: {', '.join(counts)}"
