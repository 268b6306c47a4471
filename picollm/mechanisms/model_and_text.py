"""A model together with the packed text it was trained on: the input of every analysis of its mechanisms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picollm.attention.maps import names_of
from picollm.data.loading import open_manifest, open_split
from picollm.data.tokenizers import Tokenizer, gpt2
from picollm.errors import PicollmError, rerun
from picollm.mechanisms.intervention import batches, mean_outputs
from picollm.model.foreign import Examined, ForeignModel

LEAST_WINDOWS = 2


@dataclass(frozen=True)
class ModelAndText:
    """Holds a model, its tokenizer and rows of ids, each at most the model's context plus one target."""

    model: Examined
    train: NDArray[np.uint16]
    validation: NDArray[np.uint16]
    cfg: Mapping
    device: torch.device
    tokenizer: Tokenizer = field(default_factory=gpt2)

    @cached_property
    def names(self) -> list[str]:
        return names_of(self.model.config)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Occurrences of each token in the training text, [V]."""
        return np.bincount(self.train[:, 1:].ravel(), minlength=self.model.config.vocab_size)

    @cached_property
    def windows(self) -> NDArray[np.uint16]:
        """Evenly spaced validation windows on which heads are ablated."""
        return spread(self.validation, self.cfg["windows"])

    @cached_property
    def mean_windows(self) -> NDArray[np.uint16]:
        """Evenly spaced training windows over which a head's mean output is computed."""
        return spread(self.train, self.cfg["mean_windows"])[:, :-1]

    @cached_property
    def means(self) -> Tensor:
        """Each head's mean output over training text, [L, H, K]."""
        return mean_outputs(self.model, batches(self.mean_windows, self.device))


def open_model_and_text(
    model: Examined, manifest: str | Path, cfg: Mapping, device: torch.device, tokenizer: Tokenizer | None = None
) -> ModelAndText:
    """Opens the packed text for a model; `cfg` is the config's `mechanisms` section, `tokenizer` GPT-2's by default.

    Raises PicollmError if model, tokens and tokenizer don't match.
    """
    packed, tokenizer = open_manifest(manifest), tokenizer or gpt2()
    if tokenizer.fingerprint != packed["tokenizer_sha256"]:
        raise PicollmError(f"{manifest} was written by another tokenizer: {rerun('tokenize_pack')}")
    padded = isinstance(model, ForeignModel) and model.config.vocab_size > packed["vocab_size"]  # many models pad it
    if model.config.vocab_size != packed["vocab_size"] and not padded:
        raise PicollmError(
            f"the model has a vocabulary of {model.config.vocab_size:,} tokens, {manifest} has "
            f"{packed['vocab_size']:,}: {rerun('tokenize_pack')} for this model"
        )
    width = min(model.config.context, packed["context"]) + 1
    train, validation = (np.asarray(open_split(manifest, split))[:, :width] for split in ("train", "validation"))
    if len(validation) < LEAST_WINDOWS:
        raise PicollmError(
            f"the validation split of {manifest} has {len(validation)} rows; an interval over windows needs at least "
            f"{LEAST_WINDOWS}: lower tokens.context, or keep more articles"
        )
    return ModelAndText(model.to(device).eval(), train, validation, cfg, device, tokenizer)


def spread(rows: NDArray, wanted: int) -> NDArray:
    """Selects at most `wanted` rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(wanted, len(rows))).round().astype(int))]
