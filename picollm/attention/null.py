"""The null model: what untrained networks of the same shape score on the same sentences, by the same code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from picollm.attention.extraction import attention_maps
from picollm.attention.statistics import NAMES, macro_mean, sentence_sums
from picollm.model.transformer import ModelConfig, Transformer


def untrained_models(config: ModelConfig, *, models: int, seed: int) -> Iterator[Transformer]:
    """Freshly initialised models; the global random state stays as it was."""
    for state in np.random.SeedSequence(seed).generate_state(models):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state))
            model = Transformer(config)
        yield model


def null_values(
    config: ModelConfig,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    window: int,
    models: int,
    seed: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic of every head of the untrained models, [models, H]."""
    rows = []
    untrained = untrained_models(config, models=models, seed=seed)
    for model in tqdm(untrained, total=models, unit="null model", disable=None):
        sums = sentence_sums(list(attention_maps(model, ids, device)), category, window=window)
        rows.append(macro_mean(sums))
    return {name: np.concatenate([row[name] for row in rows]) for name in NAMES}
