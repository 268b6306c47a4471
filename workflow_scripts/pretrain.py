"""pretrain: packed tokens -> the trained model, its snapshots, the loss curve and its summary."""

import csv
import io
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picollm.data.files import write_json, write_text
from picollm.data.loading import open_manifest, open_split
from picollm.data.ngram import ngram_losses
from picollm.model.checkpoint import Snapshots, save_model
from picollm.model.compute import set_up
from picollm.model.training import TrainingConfig, train
from picollm.model.transformer import ModelConfig
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg, output = snakemake.params.cfg, snakemake.output
    device = set_up(**cfg["compute"])
    manifest = open_manifest(snakemake.input.tokens)
    rows, validation_rows = (open_split(snakemake.input.tokens, split) for split in ("train", "validation"))
    validation_rows = np.asarray(validation_rows)
    shape = ModelConfig(vocab_size=manifest["vocab_size"], context=manifest["context"], **cfg["model"])
    snapshots = Snapshots(Path(output.snapshots))

    result = train(shape, TrainingConfig(**cfg["pretrain"]), rows, validation_rows, device, snapshots.save)

    counts = manifest["splits"]["validation"]
    loss = result.summary["validation_loss"]
    baselines = ngram_losses(np.asarray(rows), validation_rows, manifest["vocab_size"])
    summary = result.summary | {
        "validation_word_perplexity": math.exp(loss * counts["tokens"] / counts["words"]),
        "validation_bits_per_byte": loss * counts["tokens"] / counts["bytes"] / math.log(2),
        "unigram_loss": baselines["unigram"],
        "bigram_loss": baselines["bigram"],
    }
    logging.info("validation loss %.3f nats (unigram %.3f, bigram %.3f)", loss, *baselines.values())

    table = io.StringIO()
    writer = csv.DictWriter(table, result.curve[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.curve)
    write_text(output.curve, table.getvalue())
    write_json(output.report, {"model": shape.to_dict(), "device": device.type, **summary})
    write_json(output.metrics, {name: value for name, value in summary.items() if not isinstance(value, str)})
    save_model(result.model, output.weights, output.config)
    snapshots.finish()
