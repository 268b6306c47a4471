"""Computes reports/training.json: losses with their baselines, the costs of training, and the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch

from picollm.data.articles import SPLITS
from picollm.data.kneser_ney import kneser_ney_losses
from picollm.data.loading import open_manifest, open_split
from picollm.data.ngram import ngram_losses
from picollm.hardware import describe_hardware
from picollm.model.costs import gemm_rate
from picollm.model.loss import evaluate
from picollm.model.perplexity import per_word_and_byte
from picollm.model.pretraining import Phase, Result, Run
from picollm.model.training import TrainingConfig
from picollm.model.transformer import ModelConfig

ONLY_IN_REPORT = (
    "first_loss", "gemm_flop_per_second", "unigram_loss", "bigram_loss", "four_gram_loss", "four_gram_cache_loss",
    "last_validation_loss",
)  # fmt: skip


class Precision(TypedDict):
    autocast: str
    compile: str
    reason: str


class Measured(TypedDict, total=False):
    """Values that exist only for a model trained here."""

    first_loss: float
    train_loss: float
    best_step: int
    last_validation_loss: float
    tokens_per_second: float
    flop_per_second: float
    data_wait_share: float
    peak_memory_mib: float
    resumed_at: list[int]
    loss_path: str
    gemm_flop_per_second: float
    phases: list[Phase]
    gemm_share: float
    precision: Precision


class TrainingReport(Measured):
    """Contents of training.json; losses in nats per token."""

    model: dict
    imported: str | None
    parameters: int
    parameters_non_embedding: int
    steps: int
    tokens: int
    validation_loss: float
    validation_perplexity: float
    validation_word_perplexity: float | None  # None if it is too large for a number
    validation_bits_per_byte: float
    test_loss: float
    unigram_loss: float
    bigram_loss: float
    four_gram_loss: float
    four_gram_cache_loss: float
    test_bigram_loss: float
    test_four_gram_loss: float
    test_four_gram_cache_loss: float
    hardware: dict


def training_report(run: Run, result: Result, tokens: str | Path, reason: str, device: torch.device) -> TrainingReport:
    """Computes the report; `tokens`: the manifest that the run read; `reason`: why its precision was chosen. Losses are
    in nats per token; an imported model (`result.curve` is empty) has no costs."""
    manifest, shape, recipe = open_manifest(tokens), result.best.config, run.pretrain
    train, validation, test = (np.asarray(open_split(tokens, split)) for split in SPLITS)
    ngrams, test_ngrams = (ngram_losses(train, rows, manifest["vocab_size"]) for rows in (validation, test))
    counted, test_counted = kneser_ney_losses(train, validation, test, manifest["vocab_size"])
    read = manifest["splits"]["validation"]
    counts = {"tokens": read["tokens"], "words": read["words"], "bytes": read["bytes"]}
    normalised = per_word_and_byte(result.summary["validation_loss"], counts)
    report: dict[str, Any] = {
        "model": shape.to_dict(),
        **result.summary,
        **{f"validation_{name}": value for name, value in normalised.items()},
        "test_loss": evaluate(result.best.to(device), test, device),
        "unigram_loss": ngrams["unigram"],
        "bigram_loss": ngrams["bigram"],
        "four_gram_loss": counted["kneser_ney"],
        "four_gram_cache_loss": counted["cache"],
        "test_bigram_loss": test_ngrams["bigram"],
        "test_four_gram_loss": test_counted["kneser_ney"],
        "test_four_gram_cache_loss": test_counted["cache"],
    }
    if result.curve:
        gemm = gemm_rate(
            recipe["batch_rows"] * shape.context, cast(ModelConfig, shape), device, TrainingConfig(**recipe).head_dtype
        )
        report["gemm_flop_per_second"] = gemm
        report["gemm_share"] = result.summary["flop_per_second"] / gemm
        report["precision"] = {"autocast": recipe["autocast"], "compile": recipe["compile"], "reason": reason}
    report["hardware"] = describe_hardware(device=device.type, threads=run.compute["threads"])
    return cast(TrainingReport, report)


def metrics(report: TrainingReport) -> dict[str, float]:
    """Returns flat scalars with stable names for `dvc metrics diff`, without the machine's own rate and baselines."""
    numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name not in ONLY_IN_REPORT}
