"""What a backend is: one runtime at one precision, with what it needs, what it builds, and how it answers.

An artefact belongs to the checkpoint that it was built from, and often to a version, an instruction set or a GPU. A
backend names these facts in `made_for`; they are written down when it builds and compared when it loads.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from picollm.engine.export import export_onnx, in_precision
from picollm.hardware import describe_gpu
from picollm.model.transformer import Transformer
from picollm.precision import emulated_bf16

log = logging.getLogger(__name__)

Run = Callable[..., np.ndarray]  # a graph of picollm.engine.export: int64 arrays on the host -> float32 on the host


@dataclass(frozen=True)
class DeviceRun:
    """A Run that copies both ways around `call`, which takes tensors on the device and leaves its answer there."""

    call: Callable[..., Tensor]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        # The copy to the host waits for the device, so a host clock around it measures all of it.
        return self.call(*(torch.from_numpy(x).to(self.device) for x in inputs)).cpu().numpy()


@dataclass
class BuildContext:
    """What artefacts are built from, and where to.

    calibration: training rows [n, T] int64 for int8. capabilities: of TensorRT-RTX, ahead of time, as "8.9".
    """

    model: Transformer
    folder: Path
    device: torch.device
    max_batch: int
    calibration: np.ndarray
    capabilities: list[str]
    seconds: dict[str, float] = field(default_factory=dict)  # of each file

    def path(self, graph: str, precision: str, suffix: str) -> Path:
        return self.folder / f"{graph}.{precision}{suffix}"

    def onnx(self, graph: str, precision: str) -> Path:
        """The graph as ONNX; backends share it, so it is made once."""
        path = self.path(graph, precision, ".onnx")
        if not path.exists():
            start = time.perf_counter()
            export_onnx(in_precision(self.model, precision), path, graph, max_batch=self.max_batch)
            self.seconds[path.name] = round(time.perf_counter() - start, 2)
            log.info("%s: %.1f s", path.name, self.seconds[path.name])
        return path


@dataclass(frozen=True)
class LoadContext:
    """What backends are loaded from: the checkpoint, and the proven engine folder with its manifest."""

    model: Transformer
    manifest: dict
    folder: Path
    device: torch.device
    threads: int

    def file(self, backend: str, graph: str) -> Path:
        return self.folder / self.manifest["backends"][backend]["files"][graph]


class Backend(ABC):
    """Subclasses are runtimes; an instance is one of them at one precision."""

    runtime: ClassVar[str]
    builds: ClassVar[bool] = True  # False: it runs the checkpoint itself

    def __init__(self, precision: str) -> None:
        self.precision = precision

    @property
    def name(self) -> str:
        return f"{self.runtime}-{self.precision}"

    def cannot_run(self, device: torch.device) -> str | None:
        """Why this machine can't run it, in words for a person; None: it can."""
        return None

    def emulated(self, device: torch.device) -> str | None:
        """Why it would run, but slowly out of all proportion; such a one is neither built nor timed by default."""
        return emulated_bf16(device.type) if self.precision == "bf16" else None

    def cannot_build(self, device: torch.device) -> str | None:
        """Why this machine can't build its artefact; by default what can't run isn't built."""
        return self.cannot_run(device)

    def made_for(self, device: torch.device) -> dict[str, object]:
        """Facts of this machine that its artefact depends on; one built under others is refused."""
        return {}

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        """Write the artefact of one graph; its path, and what is worth knowing of the build."""
        raise NotImplementedError

    def refuses(self, built: dict, device: torch.device) -> str | None:
        """Why the artefact that the manifest describes is not for this machine; None: it is."""
        return differs(built["made_for"], self.made_for(device))

    @abstractmethod
    def load(self, ctx: LoadContext, graph: str) -> Run:
        """Raises PicollmError where the artefact can't be read."""


def differs(built: dict, here: dict) -> str | None:
    """The first fact that is another one here, in words."""
    for key, value in built.items():
        if here.get(key) != value:
            return f"it was built for {key} {show(value)}, here is {show(here.get(key))}: run trt_compile here"
    return None


def show(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def no_gpu(device: torch.device) -> str | None:
    return None if device.type == "cuda" and describe_gpu() else "no NVIDIA GPU"
