"""Measures the ladder of data loading: the time of a batch by each way of reading it, compared with a training step.

Each rung only delivers batches, as fast as it can, in interleaved rounds. The time of a batch divided by that of a step
is the most that the rung can cost training. benchmarks/loading.py measures complete training by rung.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from picollm.data.feeding import Feed
from picollm.data.loading import Order, Rows
from picollm.errors import PicollmError, one_line
from picollm.model.interruption import ignore_signals

ROUNDS, BATCHES = 5, 24
DRAINED = 4  # uncounted batches before each block: workers read them ahead while other rungs were timed


class EachRow(Dataset):
    """Dataset of single rows, as in a first draft of a loader."""

    def __init__(self, rows: Rows | np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.rows[index : index + 1][0].astype(np.int64))


def row_by_row(rows: Rows | np.ndarray, batch: int, *, pin: bool, workers: int) -> Iterator[Tensor]:
    """Yields endless batches [batch, context + 1] of torch's DataLoader with its default collation."""
    ahead: dict[str, Any] = {}
    if workers:
        ahead = {"persistent_workers": True, "prefetch_factor": 2, "worker_init_fn": ignore_signals}
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(EachRow(rows), batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=pin,
                        generator=generator, **ahead)  # fmt: skip
    while True:
        yield from loader


def ladder(rows: Rows | np.ndarray, batch: int, device: torch.device) -> list[dict]:
    """Returns {rung, n, median_ms, p90_ms} for each rung that runs here: milliseconds until a batch is available, on
    the GPU if there is one."""
    gpu = device.type == "cuda"
    made = {"row by row": row_by_row(rows, batch, pin=False, workers=0)}
    if gpu:
        made["row by row, pinned"] = row_by_row(rows, batch, pin=True, workers=0)
    made["row by row, 2 workers"] = row_by_row(rows, batch, pin=gpu, workers=2)
    for way in ("gather", "workers", "resident"):
        made[way] = iter(Feed(rows, Order(len(rows), batch, 0), device, way))
    times = {rung: [] for rung in made}
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for rung in order.permutation(list(made)):
            try:
                times[rung] += block(made[rung], device)
            except (OSError, RuntimeError, PicollmError) as error:  # workers, if /dev/shm is small or processes few
                logging.warning("loading, %s: not measured (%s)", rung, one_line(error))
                del made[rung], times[rung]
    return [
        {
            "rung": rung,
            "n": len(milliseconds),
            "median_ms": float(np.median(milliseconds)),
            "p90_ms": float(np.quantile(milliseconds, 0.9)),
        }
        for rung, milliseconds in times.items()
    ]


def block(batches: Iterator[Tensor], device: torch.device) -> list[float]:
    for _ in range(DRAINED):
        next(batches)
    milliseconds = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        taken = next(batches).to(device, non_blocking=True)
        if taken.is_cuda:
            torch.cuda.synchronize(device)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return milliseconds
