"""Captures and analyses the training loop as one report, for the rule nsys_capture and `picollm profile`."""

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
WARMUP = 3  # steps, which compile and fill caches


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
    """Contents of profile.json."""

    tool: Tool
    hardware: dict
    workload: Workload
    loading: list[dict]


class NoProfile(TypedDict):
    """Contents of profile.json for a model of another family."""

    needs: str


def profile_training(
    model_config: Path, tokens: Path, folder: Path, cfg: Mapping[str, dict]
) -> ProfileReport | NoProfile:
    """Profiles steps of training with the sections `pretrain` and `compute` and the tool of `profile`; returns the
    report, or only `needs` if the model is of another family.

    Writes the capture into the folder and, last, its manifest.
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
    """Formats the breakdown of a step's time for a terminal."""
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
