"""Muon: momentum whose update is orthogonalized, for the hidden matrices (Jordan et al. 2024, kellerjordan.github.io).

The update equals that of `torch.optim.Muon`, with two differences. The Newton-Schulz iteration runs in a precision
that is fast on the device: torch's always runs in bfloat16, which a processor without those instructions only emulates.
And matrices are iterated together, with one batched product instead of a product per layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: steep at zero, so that few steps suffice
ITERATIONS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Optimizer for matrices only. `dtype`: of the Newton-Schulz iteration; momentum and weights keep theirs."""

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
        self.padding: Padding | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]  # no caller has a closure
        """Applies orthogonalized Nesterov momentum, times sqrt(rows / columns) if tall, and decoupled weight decay."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            updates = self.orthogonalized(self.nesterov(matrices, group["momentum"]))
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            for (rows, columns), alike in by_shape(matrices).items():
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_sub_([matrices[i] for i in alike], [updates[i] for i in alike], alpha=rate)

    def nesterov(self, matrices: list[nn.Parameter], momentum: float) -> list[Tensor]:
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))

    def orthogonalized(self, updates: list[Tensor]) -> list[Tensor]:
        """Orthogonalizes each update. A CPU batches those of one shape, since padding wastes arithmetic; a GPU batches
        all of them, since a launch costs more."""
        if updates[0].device.type == "cpu":
            results = list(updates)
            for alike in by_shape(updates).values():
                together = orthogonalize(torch.stack([updates[i] for i in alike]), self.dtype)
                for i, update in zip(alike, together, strict=True):
                    results[i] = update
            return results
        shapes = tuple(update.shape for update in updates)
        if self.padding is None or self.padding.shapes != shapes:
            self.padding = Padding(shapes, updates[0].device)
        return self.padding.unpack(orthogonalize(self.padding.pack(updates), self.dtype))


def by_shape(matrices: Iterable[Tensor]) -> dict[torch.Size, list[int]]:
    """Maps each shape to the indices of its matrices."""
    indices: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        indices.setdefault(matrix.shape, []).append(i)
    return indices


class Padding:
    """Packs matrices of several shapes into one batch of wide ones, and unpacks it, each in one gather.

    Tall matrices are transposed, and all are padded with zeros, which the iteration leaves unchanged.
    """

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.shapes, self.sizes = tuple(shapes), [math.prod(shape) for shape in shapes]
        rows, columns = max(map(min, shapes)), max(map(max, shapes))
        total = sum(self.sizes)
        to = np.full((len(shapes), rows, columns), total)  # source index of each entry; initially that of a zero
        back = []
        for i, (shape, start) in enumerate(zip(shapes, np.cumsum([0, *self.sizes]), strict=False)):
            places = np.arange(start, start + math.prod(shape)).reshape(shape)
            wide = places if shape[0] <= shape[1] else places.T
            to[i, : wide.shape[0], : wide.shape[1]] = wide
            own = np.arange(to[i].size).reshape(rows, columns)[: wide.shape[0], : wide.shape[1]] + i * to[i].size
            back.append((own if shape[0] <= shape[1] else own.T).ravel())
        self.batch = to.shape
        self.to, self.back = (
            torch.from_numpy(x.astype(np.int32)).to(device) for x in (to.ravel(), np.concatenate(back))
        )
        self.zero = torch.zeros(1, device=device)

    def pack(self, matrices: Sequence[Tensor]) -> Tensor:
        """Returns the batch, [N, rows, columns]."""
        flat = torch.cat([*(matrix.flatten() for matrix in matrices), self.zero])
        return flat.index_select(0, self.to).view(self.batch)

    def unpack(self, batch_NRC: Tensor) -> list[Tensor]:
        parts = batch_NRC.flatten().index_select(0, self.back).split(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def orthogonalize(updates_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Brings the singular values of matrices [N, rows, columns] near 1 (0.7 to 1.2), by Newton-Schulz in `dtype`."""
    a, b, c = COEFFICIENTS
    wide = updates_NRC.shape[1] <= updates_NRC.shape[2]
    x = updates_NRC.to(dtype) if wide else updates_NRC.mT.to(dtype)  # so that the products below have the smaller side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(updates_NRC.dtype)
