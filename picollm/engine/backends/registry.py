"""All backends by name, RUNTIME-PRECISION, and loading one: what this machine can't run comes back with the reason.

To add a runtime: a module beside this one with a subclass of `Backend`, its place in CLASSES, and its precisions in
picollm/engine/grid.py.
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
    """`runs` by graph, empty where the backend can't run; `status` is `ok` or says why not."""

    backend: Backend
    status: str
    runs: dict[str, Run] = field(default_factory=dict)
    load_seconds: float | None = None

    def run(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """ids [B, T] -> logits [B, P, V] float32."""
        return self.runs["logits"](ids, positions)


def find_backend(name: str) -> Backend:
    """Raises PicollmError for a name that does not exist."""
    if name not in BACKENDS:
        raise PicollmError(f"engine.backends: {name!r} does not exist; allowed: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_backend(name: str, ctx: LoadContext, graphs: tuple[str, ...] = ("logits",)) -> Loaded:
    """What can't run has a status that begins with `not run`, what fails to load one that begins with `failed`."""
    backend = find_backend(name)
    reason = why_not(backend, ctx, graphs)
    if reason:
        return Loaded(backend, f"not run: {reason}")
    start = time.perf_counter()
    try:
        runs = {graph: backend.load(ctx, graph) for graph in graphs}
    except Exception as error:  # runtimes raise what they like
        log.debug("%s", name, exc_info=True)
        return Loaded(backend, f"failed: {one_line(error)[:300]}")
    return Loaded(backend, "ok", runs, round(time.perf_counter() - start, 3))


def why_skipped(backend: Backend, wanted: Grid, device: torch.device) -> str | None:
    """Why a backend that could run is left out; None: it is not."""
    reason = None if wanted.emulated else backend.emulated(device)
    return reason and f"{reason}; engine.emulated: true builds and times it all the same"


def why_not(backend: Backend, ctx: LoadContext, graphs: tuple[str, ...]) -> str | None:
    """Why a backend can't run these graphs here: this machine, or its artefact."""
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
