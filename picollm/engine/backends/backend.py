"""Interface of a backend, one runtime at one precision: its requirements, what it builds, and how it answers.

An artefact belongs to the checkpoint that it was built from, and often to a version, an instruction set or a GPU. A
backend names these facts in `made_for`; they are recorded when it builds and compared when it loads.
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
from picollm.model.foreign import Examined
from picollm.precision import emulated_bf16

log = logging.getLogger(__name__)

Run = Callable[..., np.ndarray]  # a graph of picollm.engine.export: int64 arrays on the host -> float32 on the host


@dataclass(frozen=True)
class DeviceRun:
    """Run that copies inputs to the device and the answer back; `call` takes and returns tensors on the device."""

    call: Callable[..., Tensor]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        # The copy to the host waits for the device, so the host's clock measures the complete call.
        return self.call(*(torch.from_numpy(x).to(self.device) for x in inputs)).cpu().numpy()


@dataclass
class BuildContext:
    """Inputs of a build, and the folder for its artefacts.

    calibration: training rows [n, T] int64 for int8. capabilities: compute capabilities for which TensorRT-RTX builds
    ahead of time, as "8.9".
    """

    model: Examined
    folder: Path
    device: torch.device
    max_batch: int
    calibration: np.ndarray
    capabilities: list[str]
    seconds: dict[str, float] = field(default_factory=dict)  # build time by file name

    def path(self, graph: str, precision: str, suffix: str) -> Path:
        return self.folder / f"{graph}.{precision}{suffix}"

    def onnx(self, graph: str, precision: str) -> Path:
        """Returns the graph as an ONNX file, exported once, since backends share it."""
        path = self.path(graph, precision, ".onnx")
        if not path.exists():
            start = time.perf_counter()
            export_onnx(in_precision(self.model, precision), path, graph, max_batch=self.max_batch)
            self.seconds[path.name] = round(time.perf_counter() - start, 2)
            log.info("%s: %.1f s", path.name, self.seconds[path.name])
        return path


@dataclass(frozen=True)
class LoadContext:
    """Inputs of a load: the checkpoint, and the verified engine folder with its manifest."""

    model: Examined
    manifest: dict
    folder: Path
    device: torch.device
    threads: int

    def file(self, backend: str, graph: str) -> Path:
        return self.folder / self.manifest["backends"][backend]["files"][graph]


class Backend(ABC):
    """Base class: subclasses are runtimes; an instance is one of them at one precision."""

    runtime: ClassVar[str]
    builds: ClassVar[bool] = True  # False: it runs the checkpoint itself

    def __init__(self, precision: str) -> None:
        self.precision = precision

    @property
    def name(self) -> str:
        return f"{self.runtime}-{self.precision}"

    def cannot_run(self, device: torch.device) -> str | None:
        """Returns why this machine can't run it, in words for the user; None if it can."""
        return None

    def emulated(self, device: torch.device) -> str | None:
        """Returns why it would run far too slowly, else None; such a backend is neither built nor timed by default."""
        return emulated_bf16(device.type) if self.precision == "bf16" else None

    def cannot_build(self, device: torch.device) -> str | None:
        """Returns why this machine can't build its artefact, else None; by default, the reason why it can't run."""
        return self.cannot_run(device)

    def made_for(self, device: torch.device) -> dict[str, object]:
        """Returns facts of this machine on which its artefact depends; one built with different facts is refused."""
        return {}

    def build(self, ctx: BuildContext, graph: str) -> tuple[Path, dict]:
        """Writes the artefact of one graph; returns its path, and facts about the build."""
        raise NotImplementedError

    def refuses(self, built: dict, device: torch.device) -> str | None:
        """Returns why the artefact described by the manifest does not fit this machine; None if it does."""
        return differs(built["made_for"], self.made_for(device))

    @abstractmethod
    def load(self, ctx: LoadContext, graph: str) -> Run:
        """Loads the artefact. Raises PicollmError if it can't be read."""


def differs(built: dict, here: dict) -> str | None:
    """Describes the first fact that differs here; None if all agree."""
    for key, value in built.items():
        if here.get(key) != value:
            return f"it was built for {key} {show(value)}, here is {show(here.get(key))}: run trt_compile here"
    return None


def show(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def no_gpu(device: torch.device) -> str | None:
    return None if device.type == "cuda" and describe_gpu() else "no NVIDIA GPU"
