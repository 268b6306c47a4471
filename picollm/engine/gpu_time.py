"""Measures the GPU's own time for a call, kernels and copies separately, which the host's clock can't distinguish.

torch.profiler sees the kernels of every runtime in the process, including TensorRT's. It slows the host, not the GPU,
and stays attached to the process, so all other timing comes first. Never executed by us: no GPU was available.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from picollm.engine.timing import Call
from picollm.profiling.timeline import KINETO_GPU, length, spans, union

COPIES = {"to_device": "HtoD", "to_host": "DtoH"}  # as CUPTI names them: `Memcpy HtoD (Pageable -> Device)`


def gpu_time(run: Call, inputs: list[np.ndarray]) -> dict[str, float] | None:
    """Measures milliseconds per call, the mean over `inputs`; None if the profiler saw no GPU activity."""
    run(inputs[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for ids in inputs:
            run(ids)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "trace.json")
        profiler.export_chrome_trace(str(path))
        return split(json.loads(path.read_text(encoding="utf-8"))["traceEvents"], len(inputs))


def split(events: list[dict], calls: int) -> dict[str, float] | None:
    """Splits a Kineto trace's events into copies each way and `kernels`, the rest (overlapping streams count once)."""
    active = [event for event in events if event.get("ph") == "X" and event.get("cat") in KINETO_GPU]
    if not active:
        return None
    times = {}
    for part, direction in COPIES.items():
        times[part] = sum(event["dur"] for event in active if f"Memcpy {direction}" in event["name"])
    others = [event for event in active if not any(f"Memcpy {x}" in event["name"] for x in COPIES.values())]
    times["kernels"] = length(union(spans([(event["ts"], event["ts"] + event["dur"]) for event in others])))
    return {part: microseconds / 1e3 / calls for part, microseconds in times.items()}
