"""Runs the profiled program: several steps of the real training loop, with its ranges, from a new initialisation.

    python -m picollm.profiling.workload --spec workload.json [--trace training.trace.json]

The spec is JSON: `config` (a model's config.json) and `tokens` (a token manifest) as paths, `pretrain` and `compute`
as sections of the configuration, `steps`, and `warmup`. With --trace, torch.profiler records the measured steps.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from picollm.data.loading import Rows, open_split
from picollm.errors import PicollmError
from picollm.files import read_json
from picollm.model.device import set_up_to_train
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig
from picollm.model.weights import load_config
from picollm.ranges import ranges


def run(
    model_config: ModelConfig,
    training: TrainingConfig,
    rows: Rows | np.ndarray,
    device: torch.device,
    *,
    steps: int,
    warmup: int,
    trace: Path | None = None,
) -> str:
    """Runs `warmup` steps in the range `warmup`, then `steps` in `measured`; rows are [n, context + 1] uint16.

    Returns the loss path that ran (torch.compile or eager).
    """
    trainer = Trainer(model_config, training, rows, device)
    trainer.model.train()
    with ranges("warmup"):
        for _ in range(warmup):
            advance(trainer)
        trainer.read()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) if trace else nullcontext() as profiler, ranges("measured"):
        for _ in range(steps):
            advance(trainer)
        trainer.read()
    if profiler:
        profiler.export_chrome_trace(str(trace))
    return trainer.objective.how


def advance(trainer: Trainer) -> None:
    """Runs one step and prints a sign of progress, without which the capture is eventually aborted."""
    print("step", file=sys.stderr, flush=True)
    trainer.advance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--trace", type=Path)
    arguments = parser.parse_args()
    spec = read_json(arguments.spec)
    loss_path = run(
        load_config(spec["config"]),
        TrainingConfig(**spec["pretrain"]),
        open_split(spec["tokens"], "train"),
        set_up_to_train(**spec["compute"]),
        steps=spec["steps"],
        warmup=spec["warmup"],
        trace=arguments.trace,
    )
    print(f"loss path: {loss_path}")


if __name__ == "__main__":
    try:
        main()
    except PicollmError as error:
        sys.exit(f"workload: {error}")
