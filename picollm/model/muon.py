"""Muon: momentum whose update is orthogonalized, for the hidden matrices (Jordan et al. 2024, kellerjordan.github.io).

The same update as `torch.optim.Muon`, with two differences. The Newton-Schulz iteration runs in a precision that the
device multiplies fast: torch's always runs in bfloat16, which a processor without those instructions only emulates.
And matrices of one shape are iterated on together, which takes a batched product in place of a product a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steep at zero, so that few steps are enough
ITERATIONS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """For matrices alone. `dtype`: of the Newton-Schulz iteration; momentum and weights keep theirs."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Nesterov momentum, orthogonalized; decoupled weight decay; sqrt(rows / columns) more for tall matrices."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                updates = orthogonalize(
                    torch.stack([self.nesterov(m, group["momentum"]) for m in matrices]), self.dtype
                )
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def nesterov(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum_buffer"], momentum)


def orthogonalize(updates_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Each of the matrices [N, rows, columns] with singular values near 1 (0.7 to 1.2), by Newton-Schulz in `dtype`."""
    a, b, c = COEFFICIENTS
    wide = updates_NRC.shape[1] <= updates_NRC.shape[2]
    x = updates_NRC.to(dtype) if wide else updates_NRC.mT.to(dtype)  # the products below have the smaller side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(updates_NRC.dtype)
