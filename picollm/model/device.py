"""Set-up of device, threads and precision, and torch.compile with a fallback whose reason is reported."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from picollm.errors import PicollmError
from picollm.hardware import describe_cpu, has_nvidia_gpu, no_compiler, no_gpu_seen

log = logging.getLogger(__name__)


def set_up(device: str, threads: int) -> torch.device:
    """Fixes the threads (equal threads give equal bytes) and chooses the device; `auto` takes a GPU if there is one.

    Raises PicollmError if `cuda` is requested and not available.
    """
    keep_memory()
    keep_caches_apart()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS adds in no fixed order, and warns
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms also imports the compiler, 5 s
    # Filling costs a pass over every fresh tensor; torch defines the attribute at run time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
    if device == "cuda" and not torch.cuda.is_available():
        raise PicollmError(f"compute.device = cuda, but {no_gpu_seen()}: set it to auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and has_nvidia_gpu():
            log.warning("this machine has an NVIDIA GPU, which is not used: %s", no_gpu_seen())
    return torch.device(device)


def set_up_to_train(device: str, threads: int) -> torch.device:
    """Does what `set_up` does, but on a GPU an operation without a fixed order raises an error.

    The other mode, a warning, leaves attention's backward unchanged: it adds in a different order each time.
    """
    chosen = set_up(device, threads)
    if chosen.type == "cuda":
        torch.set_deterministic_debug_mode("error")
    return chosen


def set_up_to_time(device: str, threads: int) -> torch.device:
    """Does what `set_up` does, but in torch's default mode: deterministic operations may be slower."""
    chosen = set_up(device, threads)
    torch.set_deterministic_debug_mode("default")
    return chosen


def keep_memory() -> None:
    """Makes the C library keep freed memory, if it is glibc.

    glibc returns blocks of more than 32 MB to the system at once, and every step frees and allocates such blocks: on a
    virtual machine of two cores the new pages cost between nothing and half of a step (docs/benchmarks.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def keep_caches_apart() -> None:
    """Gives the compiled code of each instruction set its own folder, inside the folder that Inductor would use.

    Inductor (torch 2.13) does not distinguish them: kernels compiled for AVX2 and reused by a process with AVX-512, or
    the other way round, return NaN or overwrite memory.
    """
    variable = "TORCHINDUCTOR_CACHE_DIR"  # child processes inherit it
    own = "_".join([torch.backends.cpu.get_cpu_capability().lower(), *describe_cpu()["isa"]])
    folder = os.environ.get(variable) or f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    if Path(folder).name != own:
        os.environ[variable] = f"{folder}/{own}"


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Returns bf16 autocast. bf16 has the range of float32, so no gradient scaler is needed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


class Compiled:
    """A function under torch.compile, or the function itself if there is no compiler or compilation fails.

    `how` reports which of the two; the first call decides.
    """

    def __init__(self, function: Callable, device: torch.device) -> None:
        self.function, self.compiled, self.how = function, None, "torch.compile"
        reason = no_compiler(device.type) or (trial(device) if device.type == "cuda" else None)
        if reason:
            self.give_way(reason)
        else:
            self.compiled = torch.compile(function, options=compiler_options(device))

    def __call__(self, *arguments):
        if self.compiled is not None:
            try:
                return self.compiled(*arguments)
            except torch._dynamo.exc.BackendCompilerFailed as error:  # no Python.h, a /tmp without exec, ...
                self.give_way(cause(error))
        return self.function(*arguments)

    def give_way(self, reason: str) -> None:
        self.compiled, self.how = None, f"eager ({reason})"
        log.warning("torch.compile is off, training runs eagerly and slower: %s", reason)


def compiler_options(device: torch.device) -> dict[str, str | int | bool | Callable] | None:
    """Returns those of the wanted Inductor options that the installed version knows.

    On a GPU the host is the bottleneck: small independent kernels, such as the casts of all weights, become one launch.
    And a kernel's configuration must not be chosen by timing if the same seed has to give the same bits.
    """
    if device.type == "cpu":
        return None
    from torch._inductor import config  # importing it takes seconds

    wanted = {"combo_kernels": True, "deterministic": torch.are_deterministic_algorithms_enabled()}
    return {name: value for name, value in wanted.items() if hasattr(config, name)}


def trial(device: torch.device) -> str | None:
    """Returns why torch.compile fails on this GPU, tested on a kernel that takes a second; None if it works.

    The backward graph is compiled at the first backward, when it is too late to fall back.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # no working compiler, a GPU too old for Triton, no Triton, a /tmp without exec, ...
        return cause(error)
    return None


def cause(error: Exception) -> str:
    """Extracts the one line of a compiler's output that names the problem."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if re.search(r"\berror: |failed to map|not permitted", line)), lines[0])[:200]


def lacks_memory(error: BaseException) -> bool:
    """Tests if the error means out of memory; on a CPU torch has no type for it, only its allocator's name."""
    message = str(error)
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (type(error) is RuntimeError and "DefaultCPUAllocator" in message)
        or (isinstance(error, RuntimeError) and message.startswith("CUDA error: out of memory"))  # not the allocator's
    )
