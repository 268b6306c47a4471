"""Causal effects of heads in any model, without the packed text of a run: induction, copying, ablation on sentences.

Used by `picollm analyze` and the Python API. The pipeline's own reports (picollm.mechanisms.mechanisms and
picollm.mechanisms.ablation) measure the same on its text and compare it with untrained models.

Shape suffixes: S sentence or sequence, H head (layers flattened).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from picollm.attention.maps import names_of
from picollm.errors import PicollmError
from picollm.mechanisms import repeats
from picollm.mechanisms.intervention import baseline, each_head, mean_outputs
from picollm.model.foreign import Examined
from picollm.progress import progress
from picollm.stats import Effect, interval_columns, number_or_none, per_head, resampled

SEED = 1


def induction(model: Examined, start: int, device: torch.device) -> list[dict]:
    """Returns one row per head: scores on repeated random tokens and how often it copies, with 95 % intervals over
    sequences; `induction_head` if both are large (repeats.LEAST at every length, repeats.COPYING)."""
    sets = repeats.of_vocabulary(model.config.vocab_size, model.config.context, start, seed=SEED)
    by_length = [repeats.scores(model, ids_ST, device) for ids_ST in progress(sets, unit=" lengths", desc="induction")]
    columns = {**by_length[-1], "copying": repeats.copying(model, sets[-1], device)}
    ends = {name: resampled(values_SH.T, SEED) for name, values_SH in columns.items()}
    scored_H = np.min([scores["induction"].mean(0) for scores in by_length], axis=0) >= repeats.LEAST
    rows = []
    for h, name in enumerate(names_of(model.config)):
        intervals = {
            column: {
                "value": number_or_none(values_SH[:, h].mean()),
                "low": number_or_none(ends[column][0][h]),
                "high": number_or_none(ends[column][1][h]),
            }
            for column, values_SH in columns.items()
        }
        copies = ends["copying"][0][h] > repeats.COPYING
        rows.append({"name": name, **interval_columns(intervals), "induction_head": bool(scored_H[h] and copies)})
    return rows


def ablated(model: Examined, ids: Sequence[Sequence[int]], device: torch.device) -> list[Effect]:
    """Returns one row per head: the sentences' rise in nats per token with its output replaced by its mean over them, a
    95 % interval over sentences, p, and q over the heads. Raises PicollmError for fewer than two sentences."""
    if len(ids) < 2:
        raise PicollmError("ablation needs at least two sentences, because its interval is over sentences")
    model = model.to(device=device)
    rows = [torch.tensor([list(sequence)], device=device) for sequence in ids]
    means, more = mean_outputs(model, rows), []
    for ids_1T in progress(rows, unit=" sentences", desc="ablation"):
        lost_H1T = each_head(model, ids_1T, "mean", means) - baseline(model, ids_1T)
        more.append(lost_H1T.double().mean((1, 2)).cpu().numpy())
    return per_head(np.stack(more, axis=1), names_of(model.config), seed=SEED)
