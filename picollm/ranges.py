"""Named ranges around code, for whichever profiler is watching: NVTX for Nsight Systems, record_function for torch.

    with ranges("data_wait"):
        batch = next(stream)

Without a profiler a range costs a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch.profiler import record_function


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


@contextmanager
def ranges(name: str) -> Iterator[None]:
    """One range, named `name`, on the calling thread; ranges nest."""
    with record_function(name), nvtx_marker()(name):
        yield
