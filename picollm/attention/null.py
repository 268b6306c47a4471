"""What the same code says of untrained networks, and of the trained one without the separator in front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.extraction import attention_maps
from picollm.attention.statistics import NAMES, first, macro_mean, sentence_sums
from picollm.model.transformer import ModelConfig, Transformer
from picollm.progress import progress


def untrained_models(config: ModelConfig, *, models: int, seed: int) -> Iterator[Transformer]:
    """Freshly initialised models; the global random state stays as it was."""
    for state in np.random.SeedSequence(seed).generate_state(models):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state))
            model = Transformer(config)
        yield model.eval()


def null_values(
    config: ModelConfig,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    models: int,
    seed: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic of every head of the untrained models, [models, H]."""
    rows = []
    untrained = untrained_models(config, models=models, seed=seed)
    for model in progress(untrained, total=models, unit=" untrained models"):
        rows.append(macro_mean(sentence_sums(attention_maps(model, ids, device), category, window=window, keys=keys)))
    return {name: np.concatenate([row[name] for row in rows]) for name in NAMES}


def without_separator(
    model: Transformer,
    ids: Sequence[Sequence[int]],
    category: Sequence[int],
    *,
    keys: Sequence[NDArray] | None = None,
    window: int,
    device: torch.device,
) -> dict[str, NDArray[np.float64]]:
    """Each statistic, [H], with the sentence's first token in the separator's place: position 0, the sink."""
    inner = None if keys is None else [without_first(sets_NQK) for sets_NQK in keys]
    maps = attention_maps(model, [sequence[1:] for sequence in ids], device)
    return first(macro_mean(sentence_sums(maps, category, window=window, keys=inner)))


def without_first(sets_NQK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = sets_NQK[:, 1:, 1:].copy()
    inner[:, :, 0] = False
    return inner
