"""Measures the ladder of data loading: the effect of pin_memory and workers on training, in tokens per second.

    python benchmarks/loading.py                          # the default's model; about three minutes on two cores
    python benchmarks/loading.py --size original --rounds 7

Each rung feeds the same training loop (`picollm.model.training.Trainer`), without a profiler:

    L0   one row at a time: Dataset.__getitem__ of a row, DataLoader without workers, the default collation
    L1   L0 with pin_memory (copies to the GPU don't wait); without a GPU there is nothing to pin for
    L2   L1 with two persistent workers, each two batches ahead
    L3   the rows of a batch in one gather over the memory-mapped shards: pretrain.loading: gather
    L4   all tokens on the device, gathered there: pretrain.loading: resident

"Before" is L0 and "after" L3. Rounds are interleaved in shuffled order; L0 is measured twice, and the ratio of the two
is the noise. A ratio is of blocks' medians, with a 95 % bootstrap interval over rounds. Waits: the share of a step
before its batch is available. Tokens are random, because their values don't affect speed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from training import SIZES, load, random_rows

from picollm.engine.timing import speedup
from picollm.model.device import set_up
from picollm.model.training import Trainer
from picollm.profiling.ladder import row_by_row

ROWS = 20_000
AHEAD = 2  # batches that each of two workers reads ahead, in picollm.profiling.ladder
DRAINED = 2 * AHEAD + 1  # uncounted steps before a block
STEPS = 8  # steps per block
RUNGS = ("L0", "L0 (again)", "L1", "L2", "L3", "L4")


def trainer(rung: str, size: str, rows: np.ndarray, device: torch.device) -> Trainer:
    shape, recipe, _ = load(size, loading="resident" if rung == "L4" else "gather")
    made = Trainer(shape, recipe, rows, device)
    made.model.train()
    if rung[:2] in ("L0", "L1", "L2"):
        workers = 2 if rung == "L2" else 0
        pin = rung in ("L1", "L2") and device.type == "cuda"
        made.stream = row_by_row(rows, recipe.batch_rows, pin=pin, workers=workers)
    return made


def block(made: Trainer) -> tuple[list[float], list[float]]:
    """Runs a block: its mean milliseconds per step, and the share of each step spent waiting."""
    for _ in range(DRAINED):  # batches that workers read while others ran would be free
        made.advance()
    made.read()
    done, start = len(made.curve), time.perf_counter()
    for _ in range(STEPS):
        made.advance()
    made.read()  # like the training loop: no waiting for the device at every step
    return [(time.perf_counter() - start) * 1e3 / STEPS], [row["data_wait"] for row in made.curve[done:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    shape, recipe, compute = load(arguments.size)
    device = set_up(**compute)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        np.save(path, random_rows(shape, ROWS))
        rows = np.load(path, mmap_mode="r")
        rungs = [rung for rung in RUNGS if rung != "L1" or device.type == "cuda"]
        made = {rung: trainer(rung, arguments.size, rows, device) for rung in rungs}
        for each in made.values():
            block(each)
        times, waits = ({rung: [] for rung in rungs} for _ in range(2))
        order = np.random.default_rng(0)
        for _ in range(arguments.rounds):
            for rung in order.permutation(rungs):
                steps, waited = block(made[rung])
                times[rung].append(steps)
                waits[rung] += waited
    tokens = recipe.batch_rows * shape.context
    print(f"{arguments.size}: {recipe.batch_rows} x {shape.context} tokens per step, {device.type}, "
          f"{arguments.rounds} rounds of {STEPS} steps")  # fmt: skip
    if "L1" not in rungs:
        print("L1           not measured: no GPU, so there is nothing to pin for")
    for rung in rungs:
        ratio = speedup(times["L0"], times[rung], seed=0)
        step = np.median(np.concatenate(times[rung]))
        print(
            f"{rung:12} {tokens / step * 1e3:9,.0f} tokens/s, step {step:8.1f} ms, waits {np.median(waits[rung]):7.3%},"
            f" {ratio['ratio']:.3f}x L0 [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        )


if __name__ == "__main__":
    main()
