"""Benchmarks a checkpoint: `measure` is the work of the rule trt_benchmark, `optimize` builds the engines first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from picollm.data.loading import open_split
from picollm.engine.backends.backend import LoadContext
from picollm.engine.benchmark import COLUMNS, benchmark, check_sizes, setting
from picollm.engine.build import WEIGHTS, compile_engines, read_manifest
from picollm.engine.grid import grid
from picollm.files import write_csv, write_json
from picollm.model.device import set_up_to_time
from picollm.model.foreign_folder import open_folder


def optimize(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> dict:
    """Builds and measures every backend of the sections `engine` and `benchmark` for one model; returns the report.

    Writes folder/engine/, folder/benchmark.json and folder/benchmark.csv. tokens: the manifest of packed tokens, of the
    model's context.
    """
    wanted = grid(config["engine"], config["benchmark"]["batches"])
    check_sizes(np.asarray(open_split(tokens, "validation")), wanted, wanted.max_batch, open_folder(checkpoint))
    for file in ("benchmark.json", "benchmark.csv"):  # else another checkpoint's would remain if this build fails
        (folder / file).unlink(missing_ok=True)
    compile_engines(checkpoint, tokens, folder / "engine", config)
    report, samples = measure(checkpoint, tokens, folder / "engine", config)
    write_csv(folder / "benchmark.csv", COLUMNS, samples)
    write_json(folder / "benchmark.json", report)
    return report


def measure(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> tuple[dict, list[dict]]:
    """Gates and benchmarks an existing engine folder; returns the report and its samples."""
    device = set_up_to_time(**config["compute"])
    model = open_folder(checkpoint)
    manifest = read_manifest(folder / "manifest.json", weights=checkpoint / WEIGHTS)
    ctx = LoadContext(model, manifest, folder, device, torch.get_num_threads())
    rows = np.asarray(open_split(tokens, "validation"))
    return benchmark(ctx, rows, setting(config["engine"], config["benchmark"]), checkpoint)
