"""Several trainings that differ in their seed alone: what of the result is the recipe's, and what is chance.

Each is trained as the config says and its heads are labelled by the config's rule. Shares of classes are compared over
seeds; which head is which is compared too, and agrees about as often as chance would have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.controls import peaked_models, untrained_models, values_of
from picollm.attention.extraction import tokenise
from picollm.attention.labels import Thresholds, assign, effective_thresholds, percentiles_99
from picollm.attention.sample import sample_of
from picollm.attention.sentences import load_sentences
from picollm.data.loading import open_split
from picollm.data.tokenizers import gpt2
from picollm.model.checkpoints import Checkpoints
from picollm.model.device import set_up
from picollm.model.training import Trainer, TrainingConfig, train
from picollm.model.transformer import ModelConfig, Transformer
from picollm.precision import fit
from picollm.progress import progress
from picollm.seed_summary import recipe, summary


def trainer_of(config: Mapping[str, Any], rows: NDArray, shape: ModelConfig, device: torch.device) -> Trainer:
    """A training of the config's `pretrain` section on these rows."""
    return Trainer(shape, TrainingConfig(**fit(config["pretrain"], device)[0]), rows, device)


def labels_of(model: Transformer, config: Mapping[str, Any], device: torch.device) -> NDArray[np.int64]:
    """Indices into LABELS of the model's heads, by the pipeline's rule and the config's sentences; one untrained model
    of each kind is the null."""
    tokenizer = gpt2()
    found = (
        (c, tokenise(sentence, tokenizer))
        for c, category in enumerate(
            load_sentences(config["attention"]["sentences"], config["attention"]["style"]).values()
        )
        for sentence in category.sentences
    )
    sample = sample_of((c, tokens.ids, tokens.strings, tokens.gold) for c, tokens in found)
    ids, number, section = sample.ids, sample.category, config["heads"]
    shared = {"keys": sample.keys, "window": section["window"], "device": device}
    values = {name: value[0] for name, value in values_of([model.eval()], ids, number, **shared).items()}
    null = values_of(untrained_models(model, models=1, seed=1), ids, number, **shared)
    as_peaked = peaked_models(model, values["broad"], ids, models=1, seed=1, device=device)
    peaked = values_of(as_peaked, ids, number, **shared)
    configured = Thresholds(*(section[name] for name in ("kappa", "content", "broad", "sink")))
    return assign(values, effective_thresholds(configured, percentiles_99(null), peaked, permuted_kappa=0.0))


def variant(config: Mapping[str, Any], manifest: str | Path, checkpoints: Checkpoints | None = None) -> dict:
    """One training of the config on packed tokens, in this process: its best validation loss, and its heads' classes
    as indices into LABELS. It goes on from `checkpoints`, and raises as `train` does."""
    device = set_up(**config["compute"])
    train_rows, validation = (np.asarray(open_split(manifest, split)) for split in ("train", "validation"))
    context = train_rows.shape[1] - 1
    shape = ModelConfig(
        vocab_size=gpt2().size, context=context, **{k: v for k, v in config["model"].items() if k != "checkpoint"}
    )
    own = {**config, "pretrain": {**config["pretrain"], "snapshots": False, "processes": 1}}
    trainer = trainer_of(own, train_rows, shape, device)
    train(trainer, validation, checkpoints)
    return {
        "format": 1,
        "validation_loss": trainer.best["loss"],
        "labels": labels_of(trainer.model, own, device).tolist(),
    }


def run_seeds(config: Mapping[str, Any], manifest: str | Path, seeds: Sequence[int]) -> dict:
    """Trainings of the config on packed tokens, one a seed: losses, classes, and how far they agree."""
    found = [
        variant({**config, "pretrain": {**config["pretrain"], "seed": seed}}, manifest)
        for seed in progress(seeds, unit=" seeds")
    ]
    return compare(list(seeds), found, recipe(config, manifest))


def compare(seeds: Sequence[int], variants: Sequence[Mapping[str, Any]], of: str) -> dict:
    """The summary of what `variant` found for each seed; `of`: what `recipe` gives."""
    losses = [found["validation_loss"] for found in variants]
    return summary(seeds, losses, np.array([found["labels"] for found in variants]), of)
