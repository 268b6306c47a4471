"""Measures what the host's clock can't: a call's latency on the GPU itself, and whether the GPU's clocks were steady.

Inputs are on the device beforehand and answers stay there; CUDA events measure the time (with the gaps between kernels,
if the host launches them one by one). Each call is timed twice: with the L2 cache as the previous call left it, and
flushed. Never executed by us on a GPU.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from picollm.engine.backends.backend import DeviceRun
from picollm.engine.timing import Call, Timer
from picollm.errors import one_line

log = logging.getLogger(__name__)

FLUSH_MIB = 256  # at least; writing twice the L2 cache leaves nothing of the model in it
MOVED = 0.05  # relative change of the GPU's or its memory's clock over a cell
# nvidia-smi's names since driver 535, and those before it
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
FIELDS = {
    "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "power_w": "power.draw", "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}  # fmt: skip
# Bits of the reasons that slow the GPU down; idle, fixed clocks and display do not count (nvml.h).
THROTTLED = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)",
    0x80: "power brake",
}  # fmt: skip


class Event(Protocol):
    """Interface of torch.cuda.Event(enable_timing=True)."""

    def record(self) -> object: ...
    def synchronize(self) -> object: ...
    def elapsed_time(self, end: Event) -> float: ...


def cuda_event() -> Event:
    return cast(Event, torch.cuda.Event(enable_timing=True))


def event_timer(event: Callable[[], Event] = cuda_event, flush: Tensor | None = None) -> Timer:
    """Returns a timer: milliseconds between two events around a call; writes `flush` before."""

    def timer(run: Call, ids: np.ndarray) -> float:
        if flush is not None:
            flush.zero_()
        start, end = event(), event()
        start.record()
        run(ids)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return timer


def flush_buffer(device: torch.device) -> Tensor:
    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return torch.empty(max(2 * l2, FLUSH_MIB * 2**20) // 4, dtype=torch.int32, device=device)


@torch.inference_mode()
def resident_call(run: DeviceRun, inputs: list[np.ndarray], positions: np.ndarray | None) -> Call:
    """Returns a call whose inputs are on the device already; it accepts only the array objects of `inputs`."""
    held = {id(ids): torch.from_numpy(ids).to(run.device) for ids in inputs}
    more = [] if positions is None else [torch.from_numpy(positions).to(run.device)]

    @torch.inference_mode()
    def call(ids: np.ndarray) -> Tensor:
        return run.call(held[id(ids)], *more)

    return call


def gpu_state() -> dict | None:
    """Reads clocks, power, temperature and throttling reasons from nvidia-smi; None if it reports nothing."""
    chosen = str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None
    for reasons in REASONS:
        fields = [*FIELDS.values(), reasons, "persistence_mode"]
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        command += ["-i", f"GPU-{chosen}"] if chosen else []
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
            return parse(output.splitlines()[0])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            log.debug("nvidia-smi: %s", one_line(error))
    return None


def parse(line: str) -> dict:
    """Parses one line of nvidia-smi's CSV; values a GPU does not report ([N/A], [Not Supported]) become None."""
    *numbers, reasons, persistence = (value.strip() for value in line.split(","))
    state: dict = {name: number(value) for name, value in zip(FIELDS, numbers, strict=True)}
    active = int(reasons, 16) if reasons.startswith("0x") else 0
    state["throttled"] = [words for bit, words in THROTTLED.items() if active & bit]
    return state | {"persistence": persistence == "Enabled"}


def number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def unsteady(before: Mapping | None, after: Mapping | None) -> str | None:
    """Returns why a cell's times may not come from a GPU at constant speed, in words; None if nothing suggests it."""
    if before is None or after is None:
        return None
    reasons = []
    for name, what in {"sm_mhz": "its clock", "memory_mhz": "its memory's clock"}.items():
        a, b = before[name], after[name]
        if a and b and abs(b / a - 1) > MOVED:
            reasons.append(f"{what} went from {a:.0f} to {b:.0f} MHz")
    if slowed := [reason for reason in THROTTLED.values() if reason in {*before["throttled"], *after["throttled"]}]:
        reasons.append(f"slowed down by {', '.join(slowed)}")
    return "; ".join(reasons) or None
