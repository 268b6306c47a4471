"""Which precision fits the processor: bfloat16 where it has the instructions, float32 where it would emulate them.

Without them (AVX512-BF16, AMX or Arm's bf16) a bfloat16 product runs at a tenth to an eightieth of float32's rate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import cache

import torch

from picollm.hardware import describe_cpu

log = logging.getLogger(__name__)

BF16_ISA = ("avx512_bf16", "amx_bf16", "bf16")  # of picollm.hardware.ISA; the last one is Arm's
# Measured: 0.3 to 0.6 with the instructions, 5 to 80 without. One that says that it has them is believed up to here.
EMULATED = 1.5
PRODUCT, REPEATS = (256, 112, 1024), 5  # of the matrices that are timed; milliseconds, even where it is emulated


@cache
def bf16_cost() -> float:
    """Seconds of a bfloat16 matrix product on this processor, over those of the same product in float32."""
    rows, inner, columns = PRODUCT
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            torch.mm(a, b.T)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)  # the first one prepares, and a busy machine only adds
    return seconds[torch.bfloat16] / seconds[torch.float32]


BF16_CAPABILITY = (8, 0)  # Ampere: the first NVIDIA GPUs whose tensor cores take bf16


@cache
def has_bf16(device_type: str = "cpu", gpus: int = 1) -> bool:
    """Whether the device multiplies bfloat16 itself; of several `gpus` of this machine, whether each one does.

    torch's own question is answered with yes for older GPUs too, as it can emulate it. A processor must say so, torch's
    kernels must agree (ATEN_CPU_CAPABILITY may forbid them), and so must the clock (ONEDNN_MAX_CPU_ISA, a virtual
    machine). A processor that nothing is known of has none.
    """
    if device_type == "cuda":
        here = range(min(gpus, torch.cuda.device_count()))
        return all(torch.cuda.get_device_capability(i) >= BF16_CAPABILITY for i in here)
    said = set(describe_cpu()["isa"]) & set(BF16_ISA) and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(said) and bf16_cost() < EMULATED


def emulated_bf16(device_type: str = "cpu", gpus: int = 1) -> str | None:
    """Why bfloat16 is no gain on this device, in words for a person; None: it has the instructions."""
    if has_bf16(device_type, gpus):
        return None
    if device_type == "cuda":
        return "this GPU emulates bf16" if gpus == 1 else "one of the GPUs emulates bf16"
    return f"this processor emulates bf16 ({bf16_cost():.0f} times slower than float32)"


def fit(pretrain: Mapping, device: torch.device) -> tuple[dict, str]:
    """The config's section `pretrain` without `auto`, and the reason of its precision in words.

    On a processor bfloat16 is for the vocabulary head alone: the casts of a narrow body cost more than they gain. And
    torch.compile is for a bfloat16 head, whose casts it fuses: a float32 one is no faster for it (docs/training.md).
    """
    emulated = emulated_bf16(device.type, pretrain["processes"])
    autocast, reason = pretrain["autocast"], "as pretrain.autocast says"
    if autocast == "auto":
        fast = "all" if device.type == "cuda" else "head"
        autocast, reason = ("none", emulated) if emulated else (fast, f"this {kind(device)} has bf16 instructions")
    elif autocast != "none" and emulated and device.type == "cuda":
        # There torch.compile leaves out what is bf16 and says nothing of it, and eager bf16 is as slow as float32.
        log.warning("pretrain.autocast = %s: %s; training in float32", autocast, emulated)
        autocast, reason = "none", f"{emulated}, though pretrain.autocast says {autocast}"
    elif autocast != "none" and emulated:
        reason += f", though {emulated}"
        log.warning("pretrain.autocast = %s: %s; auto or none is faster", autocast, emulated)
    compile = pretrain["compile"]
    if compile == "auto":
        compile = "none" if autocast == "none" else "head"
    return dict(pretrain) | {"autocast": autocast, "compile": compile}, reason


def kind(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "processor"


def muon_dtype(device: torch.device) -> torch.dtype:
    """Of Muon's iteration: on a processor float32, whose batched products of small matrices are as fast as bf16's."""
    return torch.bfloat16 if device.type == "cuda" and has_bf16("cuda") else torch.float32
