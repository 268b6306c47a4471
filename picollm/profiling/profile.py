"""Capture and analysis of the training loop as one report: what nsys_capture and `picollm profile` do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch

from picollm.data.loading import open_split
from picollm.files import read_json, write_json
from picollm.hardware import describe_hardware
from picollm.manifest import clear, describe
from picollm.model.device import set_up
from picollm.model.weights import load_config
from picollm.precision import fit
from picollm.profiling.capture import capture
from picollm.profiling.ladder import ladder
from picollm.profiling.timeline import Analysis, analyse

NEEDS = "A profile of training needs picollm's own model: this one is of another family, and nothing here trains it."
WARMUP = 3  # steps: they compile and fill caches


class Tool(TypedDict):
    name: str
    version: str | None
    reason: str


class Workload(TypedDict):
    batch_rows: int
    context: int
    autocast: str
    loss_path: str
    warmup_steps: int


class ProfileReport(Analysis):
    """profile.json."""

    tool: Tool
    hardware: dict
    workload: Workload
    loading: list[dict]


class NoProfile(TypedDict):
    """profile.json of a model of another family."""

    needs: str


def profile_training(
    model_config: Path, tokens: Path, folder: Path, cfg: Mapping[str, dict]
) -> ProfileReport | NoProfile:
    """Profile steps of training as the sections `pretrain` and `compute` say, with `profile`'s tool; the report, or
    `needs` alone where the model is of another family.

    Written into the folder: the capture, and its manifest, last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder / "manifest.json", "training.*")
    if "model_type" in read_json(model_config):
        write_json(folder / "manifest.json", {"files": []})
        return {"needs": NEEDS}
    device = set_up(**cfg["compute"])
    recipe, _ = fit(cfg["pretrain"], device)
    spec = {
        "config": str(model_config), "tokens": str(tokens), "pretrain": recipe,
        "compute": cfg["compute"] | {"device": device.type}, "steps": cfg["profile"]["steps"], "warmup": WARMUP,
    }  # fmt: skip
    captured = capture(cfg["profile"]["tool"], spec, folder)
    report: ProfileReport = {
        "tool": {"name": captured.tool, "version": captured.version, "reason": captured.reason},
        "hardware": describe_hardware(device=device.type, threads=torch.get_num_threads()),
        "workload": {
            "batch_rows": cfg["pretrain"]["batch_rows"], "context": load_config(model_config).context,
            "autocast": recipe["autocast"], "loss_path": captured.loss_path, "warmup_steps": WARMUP,
        },
        **analyse(captured.timeline),
        "loading": ladder(open_split(tokens, "train"), cfg["pretrain"]["batch_rows"], device),
    }  # fmt: skip
    files = {"tool": report["tool"], "hardware": report["hardware"], "files": [describe(captured.file)]}
    write_json(folder / "manifest.json", files)
    return report


def lines(report: ProfileReport | NoProfile) -> list[str]:
    """Where a step's time goes, for a terminal."""
    if "needs" in report:
        return [str(report["needs"])]
    steps, gpu = report["steps"], report["gpu"]
    table = [f"{name:12} {row['share']:8.2%} of the time, median {row['median_ms']:.3f} ms"
             for name, row in report["ranges"].items()]  # fmt: skip
    return [
        f"{report['tool']['name']} {report['tool']['version']} ({report['tool']['reason']}): {steps['n']} steps, "
        f"{steps['mean_ms']:.1f} ms each (the host's median {steps['median_ms']:.1f} ms)",
        *table,
        f"{'other':12} {report['other_share']:8.2%}",
        f"GPU busy {gpu['busy']:.1%}, idle while it waits for data {gpu['idle_during_data_wait']:.2%}: better loading "
        f"could give at most +{gpu['better_loading']:.2%}"
        if gpu
        else f"GPU: {report['gpu_reason']}",
    ]
