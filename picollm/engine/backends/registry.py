"""Lists all backends by name, RUNTIME-PRECISION, and loads them; one that can't run here is returned with the reason.

docs/extending.md says what a new backend needs.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from picollm.engine.backends.backend import Backend, LoadContext, Run
from picollm.engine.backends.onnxruntime import OnnxRuntime
from picollm.engine.backends.openvino import OpenVino
from picollm.engine.backends.pytorch import AotInductor, AotInductorRow, Compiled, CompiledGraph, CudaGraph, Eager
from picollm.engine.backends.tensorrt import TensorRt, TensorRtRow
from picollm.engine.grid import RUNTIMES, Grid
from picollm.errors import PicollmError, one_line

log = logging.getLogger(__name__)

CLASSES: tuple[type[Backend], ...] = (
    Eager, Compiled, CudaGraph, CompiledGraph, AotInductor, AotInductorRow, OnnxRuntime, OpenVino, TensorRt,
    TensorRtRow,
)  # fmt: skip
BACKENDS = {x.name: x for runtime in CLASSES for x in map(runtime, RUNTIMES[runtime.runtime])}


@dataclass(frozen=True)
class Loaded:
    """A loaded backend: `runs` by graph, empty if it can't run; `status` is `ok` or the reason."""

    backend: Backend
    status: str
    runs: dict[str, Run] = field(default_factory=dict)
    load_seconds: float | None = None

    def run(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Computes logits [B, P, V] float32 of ids [B, T] at the positions [P]."""
        return self.runs["logits"](ids, positions)


def find_backend(name: str) -> Backend:
    """Returns the backend of a name. Raises PicollmError if it does not exist."""
    if name not in BACKENDS:
        raise PicollmError(f"engine.backends: {name!r} does not exist; allowed: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_backend(name: str, ctx: LoadContext, graphs: tuple[str, ...] = ("logits",)) -> Loaded:
    """Loads a backend. If it can't run, the status begins with `not run`; if loading fails, with `failed`."""
    backend = find_backend(name)
    reason = why_not(backend, ctx, graphs)
    if reason:
        return Loaded(backend, f"not run: {reason}")
    start = time.perf_counter()
    try:
        runs = {graph: backend.load(ctx, graph) for graph in graphs}
    except Exception as error:  # runtimes raise any type
        log.debug("%s", name, exc_info=True)
        return Loaded(backend, f"failed: {one_line(error)[:300]}")
    return Loaded(backend, "ok", runs, round(time.perf_counter() - start, 3))


def why_skipped(backend: Backend, wanted: Grid, device: torch.device) -> str | None:
    """Returns why a backend that could run is left out; None if it is not."""
    reason = None if wanted.emulated else backend.emulated(device)
    return reason and f"{reason}; engine.emulated: true builds and times it nevertheless"


def why_not(backend: Backend, ctx: LoadContext, graphs: tuple[str, ...]) -> str | None:
    """Returns why a backend can't run these graphs here (the machine, or its artefact); None if it can."""
    reason = backend.cannot_run(ctx.device)
    if reason or not backend.builds:
        return reason
    built = ctx.manifest["backends"].get(backend.name)
    if built is None:
        return "it was not built: name it in engine.backends, and run trt_compile"
    if built["reason"]:
        return built["reason"]
    if missing := set(graphs) - set(built["files"]):
        return f"its graph {missing.pop()} was not built: name the output in engine.outputs, and run trt_compile"
    return backend.refuses(built, ctx.device)
