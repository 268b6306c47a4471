"""Types of benchmark.json for the code that reads it; benchmark.schema.json also has the ranges."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Ratio(TypedDict):
    """Ratio of median latencies, baseline / backend, with its 95 % interval."""

    ratio: float
    low: float
    high: float


class Speedup(Ratio):
    verdict: Literal["faster", "slower", "no difference"]


class Latency(TypedDict):
    """Statistics over all calls, in milliseconds."""

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
    """Milliseconds per call, from the GPU's profiler."""

    kernels: float
    to_device: float
    to_host: float


class DeviceLatency(Latency):
    """Latency on the GPU only; speedup: the ratio of medians over eager fp32 there."""

    speedup: float


class DeviceTime(TypedDict):
    """Latencies with the L2 cache as the previous call left it, and flushed."""

    warm: DeviceLatency
    flushed: NotRequired[DeviceLatency]


class GpuState(TypedDict):
    """State reported by nvidia-smi; None for values that the GPU does not report."""

    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    throttled: list[str]
    persistence: bool


class CellClocks(TypedDict):
    """The GPU before and after one output and batch size; unsteady: why its times are unreliable, or None."""

    output: str
    batch: int
    before: GpuState | None
    after: GpuState | None
    unsteady: str | None


class Result(TypedDict):
    """Result of a backend at one output and batch size; an untimed one has only its status."""

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
    device_ms: NotRequired[DeviceTime | None]


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
    clocks: NotRequired[list[CellClocks] | None]  # None without a GPU; older reports have none
    results: list[Result]
