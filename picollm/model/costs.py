"""Costs of training: counts arithmetic, measures the machine's own rate, reads peak memory from the system.

torch is imported inside functions: callers that only count must not wait for it.
"""

from __future__ import annotations

import resource
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from picollm.model.transformer import ModelConfig

FEWEST_TOKENS = 8  # in the product that `gemm_rate` times


def flops_per_token(shape: ModelConfig, head_rows: int | None = None) -> int:
    """Counts the floating-point operations of forward and backward for one token in a row of `context`.

    Only matrix products count; a multiply-add is two operations, and backward is twice forward. Causal attention sees
    half of the row on average. `head_rows`: rows of the vocabulary head that the loss compares (by default all of them,
    without the padding).
    """
    weights = shape.n_layers * shape.d_model * (4 * shape.d_model + 3 * shape.d_ff)
    weights += shape.d_model * (shape.vocab_size if head_rows is None else head_rows)
    attention = shape.n_layers * shape.context * shape.d_model  # scores and mix, each context / 2 * d_model
    return 3 * 2 * (weights + attention)


def gemm_rate(tokens: int, shape: ModelConfig, device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measures the FLOP/s of a product of the vocabulary head's shape, [tokens, d_model] x [d_model, vocabulary].

    Returns the median over as many products as fit into `seconds`, after one that counts only if no other fits. If few
    would fit, fewer tokens are multiplied.
    """
    import torch

    weight = torch.randn(shape.padded_vocab_size, shape.d_model, device=device).to(dtype)

    def operands(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(rows, shape.d_model, device=device).to(dtype)
        return x, torch.zeros(rows, shape.padded_vocab_size, device=device, dtype=dtype)  # its pages are already mapped

    def product(x: torch.Tensor, out: torch.Tensor) -> float:
        start = time.perf_counter()
        torch.matmul(x, weight.T, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    rows = min(tokens, FEWEST_TOKENS)
    given = operands(rows)
    first = product(*given)
    while first < seconds / 16 and rows < tokens:
        rows = min(tokens, 4 * rows)
        given = operands(rows)
        first = product(*given)
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin + first < seconds:
        times.append(product(*given))
    return 2 * rows * shape.d_model * shape.padded_vocab_size / median(times or [first])


def peak_memory_mib(device: torch.device) -> float:
    """Returns the peak memory of this process: torch's on a GPU, otherwise the process's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
