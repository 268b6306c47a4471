"""Data-parallel training in several processes: reads torchrun's environment, shares gradients and decisions.

NCCL connects GPUs, one per process; gloo connects CPUs. Without torchrun there is one process, and nothing is shared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process's `rank` among `size` processes."""

    rank: int = 0
    size: int = 1

    def share(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Wraps the module so that its gradients are the mean over the processes after each backward."""
        if self.size == 1:
            return module
        own = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=own, broadcast_buffers=False)  # rotary tables are constants

    def mean(self, values: Tensor) -> Tensor:
        """Replaces the values, in place, by their mean over the processes; returns them."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tests if the flag is set in any process, so that all of them stop after the same step."""
        return self.agreed(float(flag), device) > 0

    def agreed(self, value: float, device: torch.device) -> float:
        """Returns the mean over the processes, bit-identical in each, so that all make the same decision from it."""
        return value if self.size == 1 else self.mean(torch.tensor(value, dtype=torch.float64, device=device)).item()

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Joins the world that torchrun's environment describes; yields it and this process's own device."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
