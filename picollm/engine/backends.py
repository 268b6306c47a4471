"""The timed backends behind one call: ids [B, T] int64 on the host -> logits of the last position [B, V] float32 there.

A backend that this machine can't run is no error: it comes back with a status such as `not run: no NVIDIA GPU`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from picollm.engine.tensorrt import TORCH, load_torch_tensorrt
from picollm.errors import PicollmError, one_line
from picollm.hardware import cxx_compiler, describe_gpu
from picollm.model.transformer import Transformer

Run = Callable[[np.ndarray], np.ndarray]

PRECISION = {  # tensorrt: the manifest's
    "eager-fp32": "fp32",
    "eager-bf16": "bf16",
    "compile-bf16": "bf16",
    "openvino-f32": "fp32",
    "openvino-bf16": "bf16",
    "tensorrt": None,
}
REFERENCE = "eager-fp32"


@dataclass(frozen=True)
class Backend:
    """`run` is None and `status` says why where the backend can't run; otherwise `status` is `ok`."""

    name: str
    precision: str
    status: str
    run: Run | None = None
    load_seconds: float | None = None


@dataclass(frozen=True)
class Subject:
    """What every backend is loaded from: the checkpoint, and the verified engine folder with its manifest."""

    model: Transformer
    manifest: dict
    folder: Path
    device: torch.device
    threads: int


def load_backend(name: str, subject: Subject) -> Backend:
    """Raises PicollmError for a name that does not exist."""
    if name not in PRECISION:
        raise PicollmError(f"benchmark.backends: {name!r} does not exist; allowed: {', '.join(PRECISION)}")
    precision = PRECISION[name] or subject.manifest["precision"]
    start = time.perf_counter()
    loaded = LOADERS[name.partition("-")[0]](subject, precision)
    if isinstance(loaded, str):
        return Backend(name, precision, f"not run: {loaded}")
    return Backend(name, precision, "ok", loaded, round(time.perf_counter() - start, 3))


def load_eager(subject: Subject, precision: str) -> Run:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = copy.deepcopy(subject.model).to(subject.device, dtype).eval()
    return torch_run(model, subject.device)


def torch_run(model: Callable, device: torch.device) -> Run:
    @torch.inference_mode()
    def run(ids: np.ndarray) -> np.ndarray:
        # The copy to the host waits for the device, so a host clock around `run` measures all of it.
        return model(torch.from_numpy(ids).to(device), last=True).float().cpu().numpy()

    return run


def load_compiled(subject: Subject, precision: str) -> Run | str:
    """Compiles at the first call of each batch size, that is, during warm-up."""
    if subject.device.type == "cpu" and cxx_compiler() is None:
        return "no C++ compiler"
    model = copy.deepcopy(subject.model).to(subject.device, torch.bfloat16).eval()
    return torch_run(torch.compile(model, dynamic=False), subject.device)


def load_openvino(subject: Subject, precision: str) -> Run | str:
    """OpenVINO on the CPU, from the float32 ONNX file. Its default precision depends on the CPU, so it is pinned."""
    try:
        import openvino
    except ImportError as error:
        return f"OpenVINO is not installed ({error}): pip install openvino"
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this CPU has no bf16 instructions"
    path = subject.folder / subject.manifest["onnx"]
    options = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": subject.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        request = core.compile_model(path, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise PicollmError(f"OpenVINO can't read {path}: {one_line(error)[:300]}") from None

    def run(ids: np.ndarray) -> np.ndarray:
        return request.infer([ids])[0]

    return run


def load_tensorrt(subject: Subject, precision: str) -> Run | str:
    """The engine of trt_compile, where it was built for this very GPU."""
    gpu, manifest = describe_gpu(), subject.manifest
    if gpu is None or subject.device.type != "cuda":
        return "no NVIDIA GPU"
    if manifest["target"] != TORCH:
        return f"no engine for this GPU (target: {manifest['target']}): pip install {TORCH}, run trt_compile here"
    if gpu["compute_capability"] not in manifest["compute_capabilities"]:
        built_for = ", ".join(manifest["compute_capabilities"])
        return (
            f"the engine is for compute capability {built_for}, this GPU has {gpu['compute_capability']}: "
            "run trt_compile here"
        )
    return load_torch_tensorrt(subject.folder / manifest["engine"])


LOADERS: dict[str, Callable[[Subject, str], Run | str]] = {
    "eager": load_eager,
    "compile": load_compiled,
    "openvino": load_openvino,
    "tensorrt": load_tensorrt,
}
