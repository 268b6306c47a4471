"""Compares training recipes within the default's minutes: each is trained for the same time, with several seeds.

    python benchmarks/recipes.py --seconds 170 --seeds 3                  # every recipe; hours
    python benchmarks/recipes.py --steps 500 --seeds 3 --only muon        # recipes of one speed, on a busy machine
    python benchmarks/recipes.py --seconds 170 --seeds 1 --only muon      # those whose name has `muon`

A recipe is a set of edits to config.yaml, or to the file given by --config. Requires a run's tokens
(`snakemake --cores all data/tokens/manifest.json`). Without --steps, its speed is measured first, in this run, and
gives the number of steps; each run's time is printed next to its results. Prints the best loss over the complete
validation split, the number of the last model's heads in each class, and how many of them two seeds agree on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np

from picollm.attention.labels import LABELS
from picollm.data.loading import open_manifest, open_split
from picollm.data.ngram import ngram_losses
from picollm.data.packing import windows
from picollm.data.tokenizer import VOCAB_SIZE
from picollm.model.device import set_up
from picollm.model.training import Trainer, train
from picollm.model.transformer import ModelConfig
from picollm.seed_summary import spread, spread_text, summary
from picollm.seeds import labels_of
from picollm.seeds import trainer_of as trained_by
from picollm.yaml12 import read_yaml

MANIFEST = "data/tokens/manifest.json"
WHOLE = {"head_sampled": 0, "head_common": 0}
DECAY = {"weight_decay": 1.0, "muon_weight_decay": 1.0}
RECIPES: dict[str, dict[str, dict]] = {
    "shipped": {},
    "muon .02, adamw .02": {"pretrain": {"muon_lr": 0.02}},
    "muon .02, adamw .01": {"pretrain": {"muon_lr": 0.02, "lr": 0.01}},
    "muon .02, adamw .01, decay 1": {"pretrain": {"muon_lr": 0.02, "lr": 0.01, **DECAY}},
    "adamw .004": {"pretrain": {"optimizer": "adamw", "lr": 0.004}},
    "adamw .004, whole head": {"pretrain": {"optimizer": "adamw", "lr": 0.004, **WHOLE}},
    "8 rows": {"pretrain": {"batch_rows": 8}},
    "8 rows of 256": {"tokens": {"context": 256}, "pretrain": {"batch_rows": 8}},
    "168 wide": {"model": {"d_model": 168, "d_ff": 222}},
    "whole head": {"pretrain": WHOLE},
    "dropout .1": {"model": {"dropout": 0.1}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--steps", type=int, help="steps of every run, instead of --seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
    parser.add_argument("--validations", type=int, default=1, help="validations per run; the best one counts")
    parser.add_argument("--only", action="append", help="recipes whose name contains this; may be repeated")
    parser.add_argument("--recipe", action="append", default=[], help='added recipe: NAME={"pretrain": {"lr": 0.01}}')
    arguments = parser.parse_args()
    recipes = RECIPES | {name: json.loads(edits) for name, edits in (text.split("=", 1) for text in arguments.recipe)}
    recipes = {name: edits for name, edits in recipes.items() if any(part in name for part in arguments.only or [""])}
    runs: dict[str, list[dict]] = {name: [] for name in recipes}
    for seed in range(1, arguments.seeds + 1):
        for name, edits in recipes.items():
            config = configured(arguments.config, edits, seed)
            length = arguments.steps or steps_in(arguments.seconds, config)
            runs[name].append(measure(config, length, arguments.validations))
            print(name, seed, json.dumps(runs[name][-1]), flush=True)
    print(table(runs))


def configured(path: Path, edits: dict[str, dict], seed: int) -> dict[str, dict]:
    config = read_yaml(path)
    for section, values in edits.items():
        config[section] |= values
    config["pretrain"] |= {"seed": seed, "unit": "steps", "length": 1_000_000, "snapshots": False}
    return config


def trainer_of(config: dict[str, dict]) -> Trainer:
    device = set_up(**config["compute"])
    context = config["tokens"]["context"]
    shape = ModelConfig.from_config(config, VOCAB_SIZE, context=context)
    return trained_by(config, cut("train", context), shape, device)


def steps_in(seconds: float, config: dict[str, dict]) -> int:
    trial, times = trainer_of(config), []
    trial.model.train()
    while len(times) < 10:
        start = time.perf_counter()
        trial.advance()
        times.append(time.perf_counter() - start)
    step = statistics.median(times[2:])
    return max(1, round((seconds - times[0] + step) / step))  # the first step compiles


def measure(config: dict[str, dict], length: int, validations: int) -> dict:
    """Trains; returns losses in nats per token and counts of heads."""
    config["pretrain"] |= {"length": length, "validate_every": math.ceil(length / validations)}
    trainer, start = trainer_of(config), time.perf_counter()
    context = config["tokens"]["context"]
    validation = cut("validation", context)
    train(trainer, validation)
    labels = labels_of(trainer.model, config, trainer.device)
    return {
        "steps": length,
        "tokens": trainer.curve[-1]["tokens"],
        "seconds": round(time.perf_counter() - start),
        "train_loss": statistics.mean(row["loss"] for row in trainer.curve[-50:]),
        "loss": trainer.best["loss"],
        "losses": [row["validation_loss"] for row in trainer.curve if row["validation_loss"] is not None],
        **ngram_losses(cut("train", context), validation, VOCAB_SIZE),
        **{label: int((labels == k).sum()) for k, label in enumerate(LABELS)},
        "labels": labels.tolist(),
    }


def cut(split: str, context: int) -> np.ndarray:
    """Returns the packed rows, or cuts the stream into rows of another context."""
    rows, packed = open_split(MANIFEST, split), open_manifest(MANIFEST)["context"]
    if context == packed:  # exactly what the pipeline trains on
        return np.asarray(rows)
    return windows(np.asarray(rows)[:, :packed].reshape(-1), context)


def table(results: dict[str, list[dict]]) -> str:
    """Formats a Markdown table: mean, minimum and maximum over seeds of the loss and of the heads in each class; the
    share of heads that have the same class in two seeds, and by chance."""
    classes = ("global", "diagonal", "local", "token-specific", "content-based")
    lines = [
        f"| recipe | steps | validation loss | {' | '.join(classes)} | same class in two seeds (by chance) |",
        "|" + "---|" * (4 + len(classes)),
    ]
    for name, runs in sorted(results.items(), key=lambda item: statistics.mean(run["loss"] for run in item[1])):
        columns = [spread_text(spread([run[label] for run in runs]), ".0f") for label in classes]
        steps, loss = (
            spread_text(spread([run[k] for run in runs]), form) for k, form in (("steps", ".0f"), ("loss", ".3f"))
        )
        seeds = summary(range(len(runs)), [run["loss"] for run in runs], np.array([run["labels"] for run in runs]), "")
        pairs = [seeds["agreement"], seeds["agreement_by_chance"]]
        columns.append("–" if pairs[0] is None else "{:.0%} ({:.0%})".format(*pairs))
        lines.append(f"| {name} | {steps} | {loss} | {' | '.join(columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
