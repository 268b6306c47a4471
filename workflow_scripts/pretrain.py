"""Trains the model on packed tokens; writes it with its snapshots, the loss curve and its summary."""

import logging
from pathlib import Path
from typing import cast

from picollm.files import write_csv, write_json
from picollm.model.device import set_up
from picollm.model.foreign import ForeignModel
from picollm.model.foreign_folder import save_foreign
from picollm.model.pretraining import Run, imported, pretrain
from picollm.model.training import CURVE
from picollm.model.training_report import metrics, training_report
from picollm.model.transformer import Transformer
from picollm.model.weights import save_model, save_snapshots, save_weights
from picollm.pipeline.job import job
from picollm.precision import fit

with job() as rule:
    cfg, output, tokens = rule.cfg, rule.outputs, rule.inputs.tokens
    shape = dict(cfg["model"])
    checkpoint = shape.pop("checkpoint")
    device = set_up(**cfg["compute"])
    recipe, reason = fit(cfg["pretrain"], device)
    run = Run(shape, recipe, cfg["compute"], tokens, rule.code)
    if checkpoint:
        result = imported(run, Path(checkpoint))
    else:
        logging.info("bf16 for: %s (%s)", recipe["autocast"], reason)
        result = pretrain(run)
    report = training_report(run, result, tokens, reason, device)
    write_csv(output.curve, CURVE, result.curve)
    write_json(output.report, report)
    write_json(output.metrics, metrics(report))
    if isinstance(result.best, ForeignModel):
        save_foreign(result.best, Path(output.weights), Path(output.last), Path(output.config))
    else:
        save_model(result.best, output.weights, output.config)
        save_weights(cast(Transformer, result.last), output.last)
    save_snapshots(run.checkpoints().snapshots(), Path(output.snapshots))
    run.checkpoints().remove()
    line = "validation loss {validation_loss:.3f} nats (4-gram {four_gram_loss:.3f})".format_map(report)
    logging.info("%s", line)
    rule.report_result(line)
