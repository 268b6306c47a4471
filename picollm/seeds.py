"""Trains several models that differ only in their seed, to separate the effects of the recipe from chance.

Each is trained and its heads are labelled according to the config. Shares of classes are compared over seeds; labels of
individual heads are compared too, and agree about as often as by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.attention.extraction import attention_maps, tokenise
from picollm.attention.heads import classify_heads
from picollm.attention.labels import LABELS
from picollm.attention.maps import from_arrays
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
    """Builds a trainer for the config's `pretrain` section on these rows."""
    return Trainer(shape, TrainingConfig(**fit(config["pretrain"], device)[0]), rows, device)


def labels_of(model: Transformer, config: Mapping[str, Any], device: torch.device) -> NDArray[np.int64]:
    """Labels the model's heads, as indices into LABELS, by `classify_heads` on the config's sentences."""
    categories, tokenizer = [], gpt2()
    for name, category in load_sentences(config["attention"]["sentences"], config["attention"]["style"]).items():
        tokens = [tokenise(sentence, tokenizer) for sentence in category.sentences]
        ids, strings, gold = ([getattr(t, part) for t in tokens] for part in ("ids", "strings", "gold"))
        categories.append(
            from_arrays(list(attention_maps(model.eval(), ids, device)), ids, strings, gold, category=name)
        )
    report = classify_heads(categories, model, config["heads"], device)
    return np.array([LABELS.index(head["label"]) for head in report["heads"]])


def variant(config: Mapping[str, Any], manifest: str | Path, checkpoints: Checkpoints | None = None) -> dict:
    """Trains the config once on packed tokens, in this process. Returns its best validation loss, and the classes of
    its heads after the last step as indices into LABELS. Resumes from `checkpoints`, and raises like `train`."""
    device = set_up(**config["compute"])
    train_rows, validation = (np.asarray(open_split(manifest, split)) for split in ("train", "validation"))
    context = train_rows.shape[1] - 1
    shape = ModelConfig.from_config(config, gpt2().size, context=context)
    own = {**config, "pretrain": {**config["pretrain"], "snapshots": False, "processes": 1}}
    trainer = trainer_of(own, train_rows, shape, device)
    train(trainer, validation, checkpoints)
    return {
        "format": 1,
        "validation_loss": trainer.best["loss"],
        "labels": labels_of(trainer.model, own, device).tolist(),
    }


def run_seeds(config: Mapping[str, Any], manifest: str | Path, seeds: Sequence[int]) -> dict:
    """Trains the config on packed tokens once per seed: losses, classes, and their agreement."""
    variants = [
        variant({**config, "pretrain": {**config["pretrain"], "seed": seed}}, manifest)
        for seed in progress(seeds, desc="training", unit=" seeds")
    ]
    return compare(list(seeds), variants, recipe(config, manifest))


def compare(seeds: Sequence[int], variants: Sequence[Mapping[str, Any]], recipe_hash: str) -> dict:
    """Summarises the results of `variant` for each seed; `of` is the hash from `recipe`."""
    losses = [one["validation_loss"] for one in variants]
    return summary(seeds, losses, np.array([one["labels"] for one in variants]), recipe_hash)
