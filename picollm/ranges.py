"""Named ranges around code, for whichever profiler is watching: NVTX for Nsight Systems, record_function for torch.

    with ranges("data_wait"):
        batch = next(stream)

Without a profiler a range does nothing: at six a step, tens of microseconds each would be what a GPU's host lacks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch.profiler import record_function

INJECTED = ("NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH")  # into the environment, by nsys since 2022


@cache
def nvtx_marker() -> Callable[[str], AbstractContextManager]:
    """torch's NVTX where torch has CUDA (it raises elsewhere), else the package `nvtx`, else nothing."""
    if torch.cuda.is_available():
        return torch.cuda.nvtx.range
    try:
        import nvtx
    except ImportError:
        return lambda name: nullcontext()
    return nvtx.annotate


@cache
def under_nsys() -> bool:
    """Whether Nsight Systems started this process: what it injects is in the environment."""
    return any(name in os.environ for name in INJECTED)


def ranges(name: str) -> AbstractContextManager:
    """One range, named `name`, on the calling thread; ranges nest."""
    return both(name) if under_nsys() or torch.autograd._profiler_enabled() else nullcontext()


@contextmanager
def both(name: str) -> Iterator[None]:
    with record_function(name), nvtx_marker()(name):
        yield
