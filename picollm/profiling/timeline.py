"""Analyses the time of a training step, from Nsight Systems' sqlite export or torch.profiler's JSON.

The window is the range `measured`: several steps, and the wait until the device has finished them (a GPU continues
after the host has left a step). Every share is relative to it. GPU numbers exist only if the capture has GPU activity:
  busy                   |kernels, copies, memsets, CUDA graphs in the window| / |window|
  idle                   1 - busy
  idle_during_data_wait  |idle and data_wait| / |window|. It does not bound the gain from better loading: a host that
                         runs ahead has work queued while it waits, and the GPU idles later, before the next kernels
  better_loading         upper bound of the throughput that perfect loading could add: 1 / (1 - s) - 1, with s the
                         smaller of `idle` (the GPU's work stays the same) and data_wait's share (nothing else shrinks)
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from picollm.errors import PicollmError

if TYPE_CHECKING:
    from picollm.profiling.profile import NoProfile, ProfileReport

PUSH_POP, START_END = 59, 60  # NVTX_EVENTS.eventType of Nsight Systems, the same since 2022
# Graph traces count as activity: by default a CUDA graph is recorded there as a whole, not as kernels.
NSYS_GPU_TABLES = [f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")]
KINETO_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
SHOWN_STEPS = 3  # steps whose ranges the report can draw


@dataclass(frozen=True)
class Timeline:
    """Spans of a capture: arrays [n, 2] of start and end in nanoseconds; `gpu` is empty without GPU activity."""

    ranges: dict[str, np.ndarray]
    gpu: np.ndarray


def spans(pairs: list[tuple[float, float]]) -> np.ndarray:
    return np.array(sorted(pairs), dtype=np.float64).reshape(-1, 2)


def read_nsys(path: str | Path) -> Timeline:
    """Reads the output of `nsys export --type sqlite`. Raises PicollmError if it has no NVTX ranges."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        named = defaultdict(list)
        if "NVTX_EVENTS" in tables:
            query = (
                "SELECT coalesce(text, value), start, end FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId "
                "WHERE eventType IN (?, ?) AND end IS NOT NULL"
            )
            for name, start, end in database.execute(query, (PUSH_POP, START_END)):
                named[name].append((start, end))
        gpu = [row for table in NSYS_GPU_TABLES if table in tables
               for row in database.execute(f"SELECT start, end FROM {table}")]  # fmt: skip
    if not named:
        raise PicollmError(
            f"{path}: nsys recorded no NVTX ranges (nsys 2022.4 sees those of the Python package only up to "
            "nvtx 0.2.11): pip install nvtx==0.2.11, or set profile.tool to torch.profiler"
        )
    return Timeline({name: spans(pairs) for name, pairs in named.items()}, spans(gpu))


def read_kineto(path: str | Path) -> Timeline:
    """Reads a trace of `torch.profiler.profile.export_chrome_trace`; its times are in microseconds."""
    named, gpu = defaultdict(list), []
    for event in json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("ph") != "X":
            continue
        span = (event["ts"] * 1e3, (event["ts"] + event["dur"]) * 1e3)
        if event.get("cat") == "user_annotation" and "#" not in event["name"]:  # torch adds `Optimizer.step#AdamW`
            named[event["name"]].append(span)
        elif event.get("cat") in KINETO_GPU:
            gpu.append(span)
    if not named:
        raise PicollmError(f"{path}: torch.profiler recorded no ranges: run it again, or set profile.tool to nsys")
    return Timeline({name: spans(pairs) for name, pairs in named.items()}, spans(gpu))


def union(x: np.ndarray) -> np.ndarray:
    """Merges spans [n, 2] into disjoint ones, in order."""
    merged: list[list[float]] = []
    for start, end in x[np.argsort(x[:, 0], kind="stable")]:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.float64).reshape(-1, 2)


def intersection(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Intersects two sets of disjoint, ordered spans."""
    shared, i, j = [], 0, 0
    while i < len(x) and j < len(y):
        start, end = max(x[i, 0], y[j, 0]), min(x[i, 1], y[j, 1])
        if start < end:
            shared.append((start, end))
        if x[i, 1] < y[j, 1]:
            i += 1
        else:
            j += 1
    return np.array(shared, dtype=np.float64).reshape(-1, 2)


def length(x: np.ndarray) -> float:
    return float((x[:, 1] - x[:, 0]).sum())


class Durations(TypedDict):
    n: int
    total_ms: float
    median_ms: float
    p90_ms: float


class Steps(Durations):
    mean_ms: float


class Range(Durations):
    share: float


class Gpu(TypedDict):
    busy: float
    idle: float
    idle_during_data_wait: float
    better_loading: float


class Span(TypedDict):
    name: str
    start_ms: float
    end_ms: float


class Analysis(TypedDict):
    """Analysis of a capture; the module's docstring defines the shares."""

    steps: Steps
    ranges: dict[str, Range]
    other_share: float
    gpu: Gpu | None
    gpu_reason: str | None
    timeline: list[Span]


def statistics(x: np.ndarray) -> Durations:
    milliseconds = (x[:, 1] - x[:, 0]) / 1e6
    p50, p90 = np.percentile(milliseconds, [50, 90])
    return {"n": len(x), "total_ms": float(milliseconds.sum()), "median_ms": float(p50), "p90_ms": float(p90)}


def analyse(timeline: Timeline) -> Analysis:
    """Computes steps, ranges and GPU activity of a capture as plain numbers, defined in the module's docstring.

    Raises PicollmError if there is no step in the window.
    """
    empty = spans([])
    window = union(timeline.ranges.get("measured", empty))
    steps = intersection(timeline.ranges.get("step", empty), window)
    if not len(steps):
        raise PicollmError("the capture holds no training step after the warm-up: raise profile.steps")
    inside = {}
    for name, all_spans in timeline.ranges.items():
        clipped = intersection(union(all_spans), window)
        if name not in ("step", "warmup", "measured") and len(clipped):
            inside[name] = clipped
    shares = {name: length(x) / length(window) for name, x in inside.items()}
    covered = union(np.concatenate([empty, *inside.values()]))
    result: Analysis = {
        "steps": {**statistics(steps), "mean_ms": length(window) / len(steps) / 1e6},
        "ranges": {name: {**statistics(x), "share": shares[name]} for name, x in inside.items()},
        "other_share": 1 - length(covered) / length(window),
        "gpu": None,
        "gpu_reason": "no GPU activity in the capture",
        "timeline": first_steps(steps, inside),
    }
    if len(timeline.gpu):
        busy = intersection(union(timeline.gpu), window)
        waits = inside.get("data_wait", empty)
        busy_share, wait_share = length(busy) / length(window), shares.get("data_wait", 0.0)
        idle_waits = wait_share - length(intersection(busy, waits)) / length(window)
        result["gpu"] = {
            "busy": busy_share,
            "idle": 1 - busy_share,
            "idle_during_data_wait": idle_waits,
            "better_loading": 1 / (1 - min(1 - busy_share, wait_share)) - 1,
        }
        result["gpu_reason"] = None
    return result


def first_steps(steps: np.ndarray, inside: dict[str, np.ndarray]) -> list[Span]:
    """Returns the ranges of the first few steps, in milliseconds from the start of the first: enough to draw them."""
    origin, end = steps[0, 0], steps[:SHOWN_STEPS][-1, 1]
    rows = [("step", a, b) for a, b in steps[:SHOWN_STEPS].tolist()]
    rows += [(name, a, b) for name, x in inside.items() for a, b in x.tolist() if a < end]
    rows.sort(key=lambda row: (row[1], -row[2]))
    return [{"name": name, "start_ms": (a - origin) / 1e6, "end_ms": (b - origin) / 1e6} for name, a, b in rows]


def metrics(report: ProfileReport | NoProfile) -> dict[str, float]:
    """Returns flat scalars for DVC: the step's mean, throughput, each range's share, and GPU numbers if there are any.

    Empty for a model of another family, which is not trained here.
    """
    if "needs" in report:
        return {}
    workload, mean = report["workload"], report["steps"]["mean_ms"]
    numbers = {
        "step_ms": mean,
        "tokens_per_second": workload["batch_rows"] * workload["context"] / mean * 1e3,
        "other_share": report["other_share"],
    }
    numbers |= {f"{name}_share": row["share"] for name, row in sorted(report["ranges"].items())}
    numbers |= {f"gpu_{name}": value for name, value in cast(dict, report["gpu"] or {}).items()}
    return dict(list(numbers.items())[:20])
