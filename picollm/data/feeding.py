"""Training batches in three modes that give the same batches in the same order.

gather     rows are picked from the mapped files on demand; no other process, the least code
workers    torch's DataLoader: processes pick rows ahead of time, into pinned memory if there is a GPU
resident   all rows are on the device as uint16 and are picked there: the fastest if they fit
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from picollm.data.loading import Order, Rows
from picollm.errors import PicollmError, one_line
from picollm.model.interruption import ignore_signals


class Feed:
    """Yields endless LongTensors [batch_rows, context + 1] for `device`: pinned for a GPU, on the device if resident.

    `rows` are [n, context + 1]. The state counts batches consumed, not batches read ahead.
    """

    def __init__(self, rows: Rows | np.ndarray, order: Order, device: torch.device, way: str, workers: int = 2) -> None:
        self.rows, self.order, self.device, self.way, self.workers = rows, order, device, way, workers
        self.state = order.state_dict()

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.load_state_dict(state)
        self.state = self.order.state_dict()

    def __iter__(self) -> Iterator[Tensor]:
        batches = {"gather": self.from_files, "workers": self.from_workers, "resident": self.from_device}[self.way]
        for batch, state in batches():
            self.state = state
            yield batch

    def rows_with_position(self) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
        """Yields row numbers and the position after them."""
        return ((numbers, self.order.state_dict()) for numbers in self.order)

    def from_files(self) -> Iterator[tuple[Tensor, dict]]:
        for batch, state in map(Gathering(self.rows).__getitem__, self.rows_with_position()):
            yield batch.pin_memory() if self.device.type == "cuda" else batch, state

    def from_workers(self) -> Iterator[tuple[Tensor, dict]]:
        try:
            yield from DataLoader(
                Gathering(self.rows),
                sampler=self.rows_with_position(),
                batch_size=None,
                num_workers=self.workers,
                worker_init_fn=ignore_signals,  # signals to the process group are for the training process
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # for the DataLoader's seed, which would else change dropout
            )
        except (OSError, RuntimeError) as error:
            if getattr(error, "errno", None) != errno.ENOSPC and not re.search(r"DataLoader|shared mem", str(error)):
                raise
            raise PicollmError(
                f"the processes of pretrain.loading: workers ended ({one_line(error)[:120]}): enlarge /dev/shm, where "
                "they pass batches, or set pretrain.loading: gather"
            ) from None

    def from_device(self) -> Iterator[tuple[Tensor, dict]]:
        # int16 holds the same bits; torch can't index uint16 rows.
        resident = torch.tensor(np.asarray(self.rows).view(np.int16), device=self.device)
        for numbers, state in self.rows_with_position():
            taken = resident[to_device(torch.from_numpy(numbers), self.device)]
            yield taken.long() & 0xFFFF, state


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies the values to the device. From pageable memory the host would wait for all pending work of the GPU."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class Gathering(Dataset):
    """Returns the rows of one batch, keyed by their numbers; also used by a DataLoader's workers."""

    def __init__(self, rows: Rows | np.ndarray) -> None:
        self.rows = rows

    def __getitem__(self, index: tuple[np.ndarray, dict]) -> tuple[Tensor, dict]:
        numbers, state = index
        return torch.from_numpy(self.rows[numbers].astype(np.int64)), state
