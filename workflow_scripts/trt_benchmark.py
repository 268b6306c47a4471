"""trt_benchmark: accuracy and latency of every configured backend, on this machine, with the raw samples."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from picollm.data.files import write_csv, write_json
from picollm.data.loading import open_split
from picollm.engine.backends import Subject
from picollm.engine.benchmark import Protocol, benchmark, metrics
from picollm.engine.manifest import read_manifest
from picollm.model.checkpoint import load_model
from picollm.model.compute import set_up
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg, inputs, output = snakemake.params.cfg["benchmark"], snakemake.input, snakemake.output
    device = set_up(**snakemake.params.cfg["compute"])
    torch.set_deterministic_debug_mode("default")  # timed as people would run it
    manifest = read_manifest(inputs.engine, weights=inputs.weights)
    subject = Subject(
        load_model(inputs.weights, inputs.config), manifest, Path(inputs.engine).parent, device, torch.get_num_threads()
    )
    protocol = Protocol(**{key: cfg[key] for key in ("rounds", "block_seconds", "warmup_seconds", "seed")})
    report, samples = benchmark(
        subject, cfg["backends"], np.asarray(open_split(inputs.tokens, "validation")),
        batches=cfg["batches"], gate_rows=cfg["gate_rows"], protocol=protocol,
    )  # fmt: skip

    for row in report["results"]:
        if "latency_ms" not in row:
            logging.info("%s, batch %d: %s", row["backend"], row["batch"], row["status"])
            continue
        over = [f"{s['ratio']:.2f}x [{s['low']:.2f}, {s['high']:.2f}] of {name}" for name, s in row["speedups"].items()]
        logging.info("%s, batch %d: p50 %.2f ms, %s", row["backend"], row["batch"], row["latency_ms"]["p50"],
                     ", ".join(over) or "baseline")  # fmt: skip

    write_csv(output.samples, ("backend", "batch", "round", "ms"), samples)
    write_json(output.report, report)
    write_json(output.metrics, metrics(report))
