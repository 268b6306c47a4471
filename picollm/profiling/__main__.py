"""Runs the profiled program of a preset by hand. The tokens are random: speed does not depend on them.

    nsys profile -t cuda,nvtx,osrt -o training python -m picollm.profiling [--preset NAME] [--steps N]

It is separate from picollm.profiling.workload, which rules import, because it reads the configuration's descriptions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from picollm.data.tokenizer import VOCAB_SIZE
from picollm.errors import PicollmError
from picollm.model.device import set_up_to_train
from picollm.model.training import TrainingConfig
from picollm.model.transformer import ModelConfig
from picollm.precision import fit
from picollm.presets import preset
from picollm.profiling.workload import run

WARMUP = 5  # unmeasured steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m picollm.profiling", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="wikitext-103", help="%(default)s")
    parser.add_argument("--steps", type=int, default=100, help="%(default)s")
    parser.add_argument("--trace", type=Path, help="file for torch.profiler's trace")
    arguments = parser.parse_args()
    config = preset(arguments.preset)
    shape = ModelConfig.from_config(config, VOCAB_SIZE)
    device = set_up_to_train(**config["compute"])
    recipe = fit(config["pretrain"] | {"length": arguments.steps + WARMUP, "unit": "steps"}, device)[0]
    size = (8 * recipe["batch_rows"], shape.context + 1)
    rows = np.random.default_rng(0).integers(VOCAB_SIZE, size=size).astype(np.uint16)
    lengths = {"steps": arguments.steps, "warmup": WARMUP}
    how = run(shape, TrainingConfig(**recipe), rows, device, **lengths, trace=arguments.trace)
    print(f"loss path: {how}")


if __name__ == "__main__":
    try:
        main()
    except PicollmError as error:
        sys.exit(f"picollm.profiling: {error}")
