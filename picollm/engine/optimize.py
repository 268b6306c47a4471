"""From a checkpoint to a table, outside of the pipeline: build, gate, benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from picollm.data.files import sha256, write_csv, write_json
from picollm.data.loading import open_split
from picollm.engine.backends.interface import Source, Subject
from picollm.engine.benchmark import COLUMNS, benchmark, check_sizes, setting
from picollm.engine.build import build, calibration
from picollm.engine.grid import grid
from picollm.engine.manifest import read_manifest
from picollm.model.compute import set_up_to_time
from picollm.model.exchange import load_folder

WEIGHTS = "model.safetensors"


def optimize(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> dict:
    """Every backend of the sections `engine` and `benchmark` for one model; returns the report.

    Written: folder/engine/, folder/benchmark.json, folder/benchmark.csv. tokens: the manifest of packed tokens, of the
    model's context.
    """
    wanted = grid(config["engine"], config["benchmark"]["batches"])
    check_sizes(np.asarray(open_split(tokens, "validation")), wanted, wanted.max_batch, load_folder(checkpoint))
    compile_engines(checkpoint, tokens, folder / "engine", config)
    report, samples = measure(checkpoint, tokens, folder / "engine", config)
    write_csv(folder / "benchmark.csv", COLUMNS, samples)
    write_json(folder / "benchmark.json", report)
    return report


def compile_engines(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> dict:
    """The artefacts of the section `engine` for the model in `checkpoint`; the manifest."""
    engine, device = config["engine"], set_up_to_time(**config["compute"])
    wanted = grid(engine)
    rows = calibration(open_split(tokens, "train"), engine["calibration_rows"], engine["seed"])
    model = load_folder(checkpoint)
    source = Source(model, folder, device, wanted.max_batch, rows, engine["compute_capabilities"])
    return build(source, wanted, checkpoint_sha256=sha256(checkpoint / WEIGHTS))


def measure(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> tuple[dict, list[dict]]:
    """Gate and benchmark of an engine folder that exists; the report and its samples."""
    device = set_up_to_time(**config["compute"])
    model = load_folder(checkpoint)
    manifest = read_manifest(folder / "manifest.json", weights=checkpoint / WEIGHTS)
    subject = Subject(model, manifest, folder, device, torch.get_num_threads())
    rows = np.asarray(open_split(tokens, "validation"))
    return benchmark(subject, rows, setting(config["engine"], config["benchmark"]), checkpoint)
