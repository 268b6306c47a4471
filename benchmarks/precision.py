"""Times a training step of the default with each choice of precision: bf16 or float32, compiled or not, either Muon.

    python benchmarks/precision.py                                                        # minutes on two cores
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/precision.py       # a processor without bf16

The variants take turns in shuffled order in one process; the first block of each, in which it compiles, is not counted.
Seconds per step: median, minimum and maximum; then the ratio to the first row.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from picollm.data.tokenizer import VOCAB_SIZE
from picollm.hardware import describe_cpu
from picollm.model.device import set_up
from picollm.model.muon import Muon
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig
from picollm.precision import bf16_cost, fit
from picollm.presets import preset

ROOT = Path(__file__).parents[1]
# Name -> pretrain.autocast, pretrain.compile, dtype of Muon's iteration.
CHOICES = {
    "as the default chooses here": ("auto", "auto", None),
    "float32": ("none", "none", torch.float32),
    "float32, compiled": ("none", "all", torch.float32),
    "float32, Muon in bf16 as torch's": ("none", "none", torch.bfloat16),
    "bf16 head": ("head", "none", torch.float32),
    "bf16 head, compiled": ("head", "head", torch.float32),
    "bf16 head, Muon in bf16 as torch's": ("head", "none", torch.bfloat16),
}


def trainer(autocast: str, compile: str, dtype: torch.dtype | None, device: torch.device) -> Trainer:
    config = preset("default")
    shape = ModelConfig.from_config(config, VOCAB_SIZE)
    recipe, _ = fit(config["pretrain"] | {"length": 10**6, "autocast": autocast, "compile": compile}, device)
    rows = np.random.default_rng(0).integers(0, VOCAB_SIZE, (256, shape.context + 1)).astype(np.uint16)
    made = Trainer(shape, TrainingConfig(**recipe), rows, device)
    for optimizer in made.optimizers:
        if dtype and isinstance(optimizer, Muon):
            optimizer.dtype = dtype
    made.model.train()
    return made


def block(made: Trainer, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        made.advance()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per block (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    device = set_up("cpu", arguments.threads)
    print(f"{describe_cpu()['model']}, a bf16 product takes {bf16_cost():.1f} times as long as float32's")
    trainers = {name: trainer(*choice, device) for name, choice in CHOICES.items()}
    for made in trainers.values():
        block(made, 2)
    shuffle = random.Random(1)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(arguments.rounds):
        for name in shuffle.sample(list(trainers), len(trainers)):
            times[name] += block(trainers[name], arguments.steps)
    first = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"({min(seconds):.3f} to {max(seconds):.3f})"
        print(f"{name:36} {median:.3f} s {spread:18} {median / first:5.2f}  loss by {trainers[name].objective.how}")


if __name__ == "__main__":
    main()
