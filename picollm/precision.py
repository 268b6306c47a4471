"""Selects the precision for the processor: bfloat16 if it has the instructions, float32 if it would emulate them.

Without them (AVX512-BF16, AMX or Arm's bf16), a bfloat16 product runs at a fifth to an eightieth of float32's rate.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from functools import cache

import torch

from picollm.hardware import describe_cpu

log = logging.getLogger(__name__)

BF16_ISA = ("avx512_bf16", "amx_bf16", "bf16")  # of picollm.hardware.ISA; the last one is Arm's
# Measured: 0.3 to 0.6 with the instructions, 5 to 80 without. A processor that reports them is trusted up to this cost.
EMULATED = 1.5
PRODUCT, SECONDS, ATTEMPTS = (256, 112, 1024), 0.02, 5  # shapes of the timed matrices; time per attempt


@cache
def bf16_cost() -> float:
    """Ratio of the time of a bfloat16 matrix product on this processor to that of the same product in float32.

    The smallest of a few attempts, apart in time: while another process holds a core, a product of two threads waits
    for it, and a processor with the instructions must not be taken for one without them in such a moment.
    """
    cost = math.inf
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * SECONDS)
        cost = min(cost, ratio_of_products(SECONDS))
        if cost < EMULATED:
            break
    return cost


def ratio_of_products(seconds: float) -> float:
    """Ratio of the shortest times of the two products, taken in turn for so long, at least twice each."""
    rows, inner, columns = PRODUCT
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    given = {dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)) for dtype in times}
    end = time.perf_counter() + seconds
    while len(times[torch.bfloat16]) < 2 or time.perf_counter() < end:
        for dtype, (a, b) in given.items():
            start = time.perf_counter()
            torch.mm(a, b.T)
            times[dtype].append(time.perf_counter() - start)
    return min(times[torch.bfloat16]) / min(times[torch.float32])  # the first call sets up, and load can only add time


BF16_CAPABILITY = (8, 0)  # Ampere: the first NVIDIA GPUs with bf16 tensor cores


@cache
def has_bf16(device_type: str = "cpu", gpus: int = 1) -> bool:
    """Returns True if the device, or each of several `gpus` of this machine, multiplies bfloat16 natively.

    torch's own check also returns true for older GPUs, because it can emulate bf16. A processor must report the
    instructions, torch's kernels must be allowed to use them (ATEN_CPU_CAPABILITY), and the measured time must agree
    (ONEDNN_MAX_CPU_ISA, a virtual machine). An unknown processor has none.
    """
    if device_type == "cuda":
        here = range(min(gpus, torch.cuda.device_count()))
        return all(torch.cuda.get_device_capability(i) >= BF16_CAPABILITY for i in here)
    reported = set(describe_cpu()["isa"]) & set(BF16_ISA) and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(reported) and bf16_cost() < EMULATED


def emulated_bf16(device_type: str = "cpu", gpus: int = 1) -> str | None:
    """Returns why bfloat16 would not be faster on this device, or None if the device has native bf16."""
    if has_bf16(device_type, gpus):
        return None
    if device_type == "cuda":
        return "this GPU emulates bf16" if gpus == 1 else "one of the GPUs emulates bf16"
    return f"this processor emulates bf16 ({bf16_cost():.0f} times slower than float32)"


def fit(pretrain: Mapping, device: torch.device) -> tuple[dict, str]:
    """Returns the config's `pretrain` section with `auto` resolved, and the reason for its precision.

    On a CPU, bfloat16 is used only for the vocabulary head: the casts of a narrow body cost more than they gain.
    torch.compile is used for a bfloat16 head, whose casts it fuses; a float32 head gains nothing (docs/training.md).
    """
    emulated = emulated_bf16(device.type, pretrain["processes"])
    autocast, reason = pretrain["autocast"], "as set in pretrain.autocast"
    if autocast == "auto":
        fast = "all" if device.type == "cuda" else "head"
        autocast, reason = ("none", emulated) if emulated else (fast, f"this {kind(device)} has bf16 instructions")
    elif autocast != "none" and emulated and device.type == "cuda":
        # There torch.compile silently skips the bf16 parts, and eager bf16 is as slow as float32.
        log.warning("pretrain.autocast = %s: %s; training in float32", autocast, emulated)
        autocast, reason = "none", f"{emulated}, although pretrain.autocast is {autocast}"
    elif autocast != "none" and emulated:
        reason += f", although {emulated}"
        log.warning("pretrain.autocast = %s: %s; auto or none is faster", autocast, emulated)
    compile = pretrain["compile"]
    if compile == "auto":
        compile = "none" if autocast == "none" else "head"
    return dict(pretrain) | {"autocast": autocast, "compile": compile}, reason


def kind(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "processor"


def muon_dtype(device: torch.device) -> torch.dtype:
    """Dtype of Muon's iteration: float32 on a CPU, where batched products of small matrices are as fast as in bf16."""
    return torch.bfloat16 if device.type == "cuda" and has_bf16("cuda") else torch.float32
