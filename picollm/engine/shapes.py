"""The shape of benchmark.json, for those who read it; benchmark.schema.json has its ranges too."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Ratio(TypedDict):
    """Of median latencies, baseline / backend, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class Speedup(Ratio):
    verdict: Literal["faster", "slower", "no difference"]


class Latency(TypedDict):
    """Over all calls, in milliseconds."""

    n: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float | None
    iqr_rel: float


class GpuTime(TypedDict):
    """Milliseconds a call, as the GPU's profiler saw them."""

    kernels: float
    to_device: float
    to_host: float


class Result(TypedDict):
    """A backend at one output and batch size; what was not timed has no more than its status."""

    backend: str
    output: str
    batch: int
    status: str
    latency_ms: NotRequired[Latency]
    sequences_per_s: NotRequired[float]
    tokens_per_s: NotRequired[float]
    noisy: NotRequired[bool]
    speedups: NotRequired[dict[str, Speedup]]
    gpu_ms: NotRequired[GpuTime | None]


class BackendResult(TypedDict):
    status: str
    precision: str
    accuracy: dict | None
    artefact: dict | None
    cold: dict | None


class BenchmarkReport(TypedDict):
    schema: str
    created_utc: str
    model: dict
    hardware: dict
    protocol: dict
    limits: dict
    other_processes: dict[str, float] | None
    load_average: list[float]
    backends: dict[str, BackendResult]
    results: list[Result]
