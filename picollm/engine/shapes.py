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


class DeviceLatency(Latency):
    """On the GPU alone; speedup: the ratio of medians over eager fp32 there."""

    speedup: float


class DeviceTime(TypedDict):
    """The L2 cache as the previous call left it, and flushed."""

    warm: DeviceLatency
    flushed: NotRequired[DeviceLatency]


class GpuState(TypedDict):
    """What nvidia-smi reported; None where the GPU does not report it."""

    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    throttled: list[str]
    persistence: bool


class CellClocks(TypedDict):
    """The GPU before and after one output and batch size; unsteady: why its times can't be trusted, or None."""

    output: str
    batch: int
    before: GpuState | None
    after: GpuState | None
    unsteady: str | None


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
