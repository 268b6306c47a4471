"""A model's heads, classified: the census of its maps, with what untrained models and the bare sentences say beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from picollm.attention.census import census
from picollm.attention.keys import every_key_set
from picollm.attention.labels import Thresholds
from picollm.attention.maps import CategoryMaps, numbering
from picollm.attention.null import null_values, without_separator
from picollm.model.transformer import Transformer


def classify(categories: Sequence[CategoryMaps], model: Transformer | None, cfg: Mapping, device: torch.device) -> dict:
    """The content of heads.json, from the maps of `model` and the config's `heads` section.

    Without the model there are no untrained ones to compare with, and nothing is said of the separator.
    """
    null = bare = None
    if model:
        ids = [sequence for category in categories for sequence in category.ids]
        shared = {"keys": list(every_key_set(categories)), "window": cfg["window"], "device": device}
        number = numbering(categories)
        null = null_values(model.config, ids, number, models=cfg["null_models"], seed=cfg["seed"], **shared)
        bare = without_separator(model, ids, number, **shared)
    return census(
        categories,
        null=null,
        bare=bare,
        configured=Thresholds(cfg["kappa"], cfg["content"], cfg["broad"], cfg["sink"]),
        window=cfg["window"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )
