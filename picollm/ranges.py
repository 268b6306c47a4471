"""Named ranges around code for the active profiler: NVTX for Nsight Systems, record_function for torch.

    with ranges("data_wait"):
        batch = next(stream)

Without a profiler a range does nothing: at six per step, tens of microseconds each would slow down a GPU's host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch.profiler import record_function

INJECTED = ("NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH")  # set in the environment by nsys since 2022


@cache
def nvtx_marker() -> Callable[[str], AbstractContextManager]:
    """Returns torch's NVTX if torch has CUDA (it raises otherwise), else the package `nvtx`, else a no-op."""
    if torch.cuda.is_available():
        return torch.cuda.nvtx.range
    try:
        import nvtx
    except ImportError:
        return lambda name: nullcontext()
    return nvtx.annotate


@cache
def under_nsys() -> bool:
    """Returns True if Nsight Systems started this process, recognised by the variables that it injects."""
    return any(name in os.environ for name in INJECTED)


def ranges(name: str) -> AbstractContextManager:
    """Opens a range called `name` on the calling thread; ranges nest."""
    return both(name) if under_nsys() or torch.autograd._profiler_enabled() else nullcontext()


@contextmanager
def both(name: str) -> Iterator[None]:
    with record_function(name), nvtx_marker()(name):
        yield
