"""pretrain: packed tokens -> the trained model, its snapshots, the loss curve and its summary."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picollm.data.articles import SPLITS
from picollm.data.files import write_csv, write_json
from picollm.data.loading import open_manifest, open_split
from picollm.data.ngram import ngram_losses
from picollm.hardware import describe_hardware
from picollm.model.checkpoint import save_model, save_snapshots, save_weights
from picollm.model.compute import set_up
from picollm.model.costs import gemm_rate
from picollm.model.objective import evaluate
from picollm.model.pretraining import Run, imported, pretrain
from picollm.model.training import CURVE, TrainingConfig
from picollm.pipeline.job import job
from picollm.precision import fit

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, output, tokens = snakemake.params.cfg, snakemake.output, snakemake.input.tokens
    model, checkpoint = dict(cfg["model"]), cfg["model"]["checkpoint"]
    del model["checkpoint"]
    device = set_up(**cfg["compute"])
    recipe, reason = fit(cfg["pretrain"], device)
    run = Run(model, recipe, cfg["compute"], tokens, snakemake.params.code)
    if checkpoint:
        result = imported(run, Path(checkpoint))
    else:
        logging.info("bf16 for: %s (%s)", recipe["autocast"], reason)
        result = pretrain(run)

    manifest, shape = open_manifest(tokens), run.shape()
    counts, loss = manifest["splits"]["validation"], result.summary["validation_loss"]
    train_rows, validation_rows, test_rows = (np.asarray(open_split(tokens, split)) for split in SPLITS)
    baselines, test_baselines = (
        ngram_losses(train_rows, rows, manifest["vocab_size"]) for rows in (validation_rows, test_rows)
    )
    summary = result.summary | {
        "validation_word_perplexity": math.exp(loss * counts["tokens"] / counts["words"]),
        "validation_bits_per_byte": loss * counts["tokens"] / counts["bytes"] / math.log(2),
        "test_loss": evaluate(result.best.to(device), test_rows, device),
        "unigram_loss": baselines["unigram"],
        "bigram_loss": baselines["bigram"],
        "test_bigram_loss": test_baselines["bigram"],
    }
    head_dtype = TrainingConfig(**recipe).head_dtype
    gemm = gemm_rate(recipe["batch_rows"] * shape.context, shape, device, head_dtype)
    precision = {"autocast": recipe["autocast"], "compile": recipe["compile"], "reason": reason}
    if not checkpoint:
        summary["gemm_share"] = summary["flop_per_second"] / gemm
        summary["precision"] = precision
    logging.info("validation loss %.3f nats (unigram %.3f, bigram %.3f)", loss, *baselines.values())

    hardware = describe_hardware(device=device.type, threads=cfg["compute"]["threads"])
    whole = {"model": shape.to_dict(), **summary, "gemm_flop_per_second": gemm, "hardware": hardware}
    write_csv(output.curve, CURVE, result.curve)
    write_json(output.report, whole)
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    write_json(output.metrics, {name: value for name, value in numbers.items() if name != "first_loss"})
    save_model(result.best, output.weights, output.config)
    save_weights(result.last, output.last)
    save_snapshots(run.checkpoints().snapshots(), Path(output.snapshots))
    run.checkpoints().remove()
    found(f"validation loss {loss:.3f} nats (bigram {baselines['bigram']:.3f})")
