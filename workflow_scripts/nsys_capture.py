"""nsys_capture: profile some real training steps; the recording, and where the time of a step goes."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from picollm.data.files import write_json
from picollm.data.manifest import clear, describe
from picollm.hardware import describe_hardware
from picollm.model.checkpoint import load_config
from picollm.model.compute import set_up
from picollm.pipeline.job import job
from picollm.profiling.capture import capture
from picollm.profiling.timeline import analyse, metrics

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

WARMUP = 3  # steps: they compile and fill caches

with job(snakemake):
    cfg, inputs, output = snakemake.params.cfg, snakemake.input, snakemake.output
    device = set_up(**cfg["compute"])
    folder = Path(output.manifest).parent
    clear(Path(output.manifest), "training.*")
    spec = {
        "config": str(inputs.config), "tokens": str(inputs.tokens), "pretrain": cfg["pretrain"],
        "compute": cfg["compute"] | {"device": device.type}, "steps": cfg["profile"]["steps"], "warmup": WARMUP,
    }  # fmt: skip

    captured = capture(cfg["profile"]["tool"], spec, folder)

    report = {
        "tool": {"name": captured.tool, "version": captured.version, "reason": captured.reason},
        "hardware": describe_hardware(device=device.type, threads=torch.get_num_threads()),
        "workload": {
            "batch_rows": cfg["pretrain"]["batch_rows"], "context": load_config(inputs.config).context,
            "autocast": cfg["pretrain"]["autocast"], "loss_path": captured.loss_path, "warmup_steps": WARMUP,
        },
        **analyse(captured.timeline),
    }  # fmt: skip
    found = metrics(report)
    logging.info("%s: %s", captured.tool, ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    write_json(output.report, report)
    write_json(output.metrics, found)
    write_json(output.manifest, {
        "tool": report["tool"],
        "hardware": report["hardware"],
        "files": [describe(captured.file)],
    })  # fmt: skip
