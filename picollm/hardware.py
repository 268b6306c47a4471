"""Describes this machine: what determines its speed, recorded by every benchmark, engine and profile."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from picollm.errors import one_line

ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
PACKAGES = (
    "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt-rtx", "tensorrt",
    "torch-tensorrt", "torch-tensorrt-rtx", "nvidia-modelopt", "nvtx",
)  # fmt: skip


def describe_hardware(*, device: str, threads: int) -> dict:
    """JSON-ready description: device in use, CPU, memory, GPU (null without one), threads, package versions."""
    return {
        "device": device,
        "cpu": describe_cpu(),
        "gpu": describe_gpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
    }


def describe_cpu() -> dict:
    """CPU model, cores this process may use, and instruction sets that determine the speed of a matrix product."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        info = ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return {"model": model, "cores": usable_cores(), "isa": [name for name in ISA if name in flags]}


def has_amx() -> bool:
    """Whether the processor reports matrix instructions for bf16 and int8."""
    return {"amx_bf16", "amx_int8"} <= set(describe_cpu()["isa"])


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cxx_compiler() -> str | None:
    """The C++ compiler that torch.compile would call on a CPU, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "c++", "clang++"))), None)


def no_compiler(device_type: str) -> str | None:
    """Reason why torch.compile can't work here, or None.

    On a GPU, Triton compiles a small C program against Python.h to launch each kernel.
    """
    if device_type != "cuda":
        return None if cxx_compiler() else "no C++ compiler"
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))):
        return "no C compiler"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"no {header}: install Python's development files"


@cache
def describe_gpu() -> dict | None:
    """The NVIDIA GPU that torch uses, or None."""
    import torch  # imported here because it is heavy and nothing else needs it

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,  # includes a MIG slice's size: slices differ from each other and from the GPU
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
    }


def driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(output.split()), None)  # one line per GPU, all equal


def no_gpu_seen() -> str:
    """Returns why torch sees no NVIDIA GPU: it has no CUDA, the driver is too old, or there is none."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # "The NVIDIA driver on your system is too old (found version 11040). ..."
        return one_line(error)[:200]
    return "torch sees no NVIDIA GPU"


def has_nvidia_gpu() -> bool:
    """Returns True if the driver lists a GPU, even if torch can't use it; nsys alone also creates device files."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def installed(package: str) -> str | None:
    """Version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    return {name: version for name in PACKAGES if (version := installed(name))}


class CpuMeter:
    """Measures CPU use by other processes since the meter was created, which disturbs a benchmark."""

    def __init__(self) -> None:
        self.start = self.read()

    @staticmethod
    def read() -> tuple[float, float, float, float] | None:
        """Seconds: clock; CPU time of all processes, of this one, stolen by the hypervisor. None without /proc."""
        try:
            jiffies = [int(x) for x in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (x / os.sysconf("SC_CLK_TCK") for x in jiffies)
        return time.perf_counter(), user + nice + system + irq + softirq, sum(os.times()[:4]), steal

    def others(self) -> dict[str, float] | None:
        """Mean number of cores used by other processes and withheld by the hypervisor."""
        now = self.read()
        if now is None or self.start is None:
            return None
        clock, everyone, own, steal = (b - a for a, b in zip(self.start, now, strict=True))
        return {"busy_cores": max(0.0, everyone - own) / clock, "stolen_cores": steal / clock}


def in_words(hardware: dict) -> str:
    """Formats a description as one line, without versions."""
    cpu, gpu = hardware.get("cpu"), hardware.get("gpu")
    if not cpu:
        return f"{hardware.get('device')}; the machine is not recorded"
    graphics = f"{gpu['name']}, driver {gpu['driver']}" if gpu else "no NVIDIA GPU"
    threads, memory = hardware["threads"], hardware["memory_gib"]
    return f"{cpu['model']}, {cpu['cores']} cores ({threads} threads used), {memory} GiB; {graphics}"
