"""Training objective: precision, torch.compile, and the vocabulary head's two losses, full and sampled.

The head dominates the time: 87 % of the small default's arithmetic is the product with 50,257 rows. So the loss may
compare each target with fewer of them (`SampledSoftmax`). Every loss reported for validation or test is over the whole
vocabulary (`evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from picollm.data.feeding import to_device
from picollm.data.loading import Rows
from picollm.model.device import Compiled, autocast
from picollm.model.foreign import Examined
from picollm.model.transformer import Transformer

# Tokens and vocabulary rows whose logits are computed at once in evaluation: 4 MB on a CPU, which stay in the cache;
# 400 MB on a GPU, which keep it busy.
EVALUATION_TOKENS = {"cpu": 512, "cuda": 12_288}
EVALUATION_VOCABULARY = {"cpu": 2048, "cuda": 8192}


class SampledSoftmax:
    """Cross-entropy whose normaliser is exact over the most frequent tokens and estimated over the rest from a sample.

    At every step, m of n rare tokens are drawn without replacement, and their terms are weighted by n / m: the sum
    inside the logarithm is unbiased (Bengio & Senecal 2008). The target's own term is always included, once.
    """

    def __init__(self, counts_V: np.ndarray, common: int, sampled: int, seed: int) -> None:
        order = np.argsort(-counts_V, kind="stable")
        self.common, self.rare = order[:common], np.sort(order[common:])
        self.sampled, self.seed = min(sampled, len(self.rare)), seed
        self.correction = math.log(len(self.rare) / self.sampled) if self.sampled else 0.0

    def candidates(self, step: int) -> Tensor:
        """Returns the ids, [common + sampled], of the frequent tokens and the step's sample, equal in every process."""
        drawn = np.random.default_rng([self.seed, step]).choice(self.rare, self.sampled, replace=False, shuffle=False)
        return torch.from_numpy(np.concatenate([self.common, drawn]))

    def loss(self, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, candidates_C: Tensor) -> Tensor:
        """Returns the mean in nats. If the target is among the candidates, its exact term replaces its column."""
        rows_CD = weight_VD[candidates_C]
        logits_NC = (x_ND @ rows_CD.T).float()
        correction_C = torch.zeros(len(candidates_C), device=x_ND.device)
        correction_C[len(self.common) :] = self.correction
        target_is_candidate_NC = targets_N[:, None] == candidates_C
        logits_NC = (logits_NC + correction_C).masked_fill(target_is_candidate_NC, float("-inf"))
        own_N = (x_ND * weight_VD[targets_N]).sum(-1).float()
        return (torch.logaddexp(logits_NC.logsumexp(-1), own_N) - own_N).mean()


class Objective(nn.Module):
    """Mean training loss in nats per token of ids [B, T] and targets [B, T]; `how` describes its computation.

    On a CPU, a float32 body with a bf16 head is best for a narrow model: the casts of a narrow body cost more than bf16
    gains.
    """

    def __init__(
        self, model: Transformer, precision: str, compile: str, sampled: SampledSoftmax | None, device: torch.device
    ) -> None:
        """Selects the path; `precision` and `compile` are values of the config: all | head | none."""
        super().__init__()
        self.model, self.precision, self.sampled, self.device = model, precision, sampled, device
        self.compiled: Compiled | None = None
        self.loss: Callable = self.whole
        self.head: Callable = self.head_loss
        if compile == "head":
            self.head = self.compiled = Compiled(self.head, device)
        elif compile == "all":
            self.loss = self.compiled = Compiled(self.whole, device)

    @property
    def how(self) -> str:
        description = self.compiled.how if self.compiled else "eager"
        if self.sampled:
            part = f"{len(self.sampled.common):,} common and {self.sampled.sampled:,} sampled tokens"
            description += f", each target against {part}"
        return description

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, step: int) -> Tensor:
        candidates = to_device(self.sampled.candidates(step), self.device) if self.sampled else None
        return self.loss(ids_BT, targets_BT, candidates)

    def whole(self, ids_BT: Tensor, targets_BT: Tensor, candidates_C: Tensor | None) -> Tensor:
        with autocast(self.device, self.precision == "all"):
            x_BTD = self.model.hidden(ids_BT)
        return self.head(x_BTD, targets_BT, candidates_C)

    def head_loss(self, x_BTD: Tensor, targets_BT: Tensor, candidates_C: Tensor | None) -> Tensor:
        with autocast(self.device, self.precision != "none"):
            if candidates_C is None or self.sampled is None:
                return self.model.head_loss(x_BTD, targets_BT)
            return self.sampled.loss(x_BTD.flatten(0, 1), self.model.head.weight, targets_BT.flatten(), candidates_C)


@torch.no_grad()
def evaluate(model: Examined, rows: Rows | np.ndarray, device: torch.device) -> float:
    """Mean loss in nats per token over all rows [rows, context + 1], float32, evaluation mode, full vocabulary."""
    was_training = model.training
    model.eval()
    total = summed(small_losses, model, rows, device)
    if not math.isfinite(total):
        total = summed(token_losses, model, rows, device)
    model.train(was_training)
    return total / (len(rows) * (rows[:1].shape[1] - 1))


def summed(losses: Callable, model: Examined, rows: Rows | np.ndarray, device: torch.device) -> float:
    """Sums the `losses` of all tokens. Waits for the device only once, for the sum: every wait leaves a GPU idle."""
    at_once = max(1, EVALUATION_TOKENS[device.type] // model.config.context)
    weight_VD = model.head.weight[: model.config.vocab_size]
    total = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, len(rows), at_once):
        ids = to_device(torch.from_numpy(rows[start : start + at_once].astype(np.int64)), device)
        x_ND = model.hidden(ids[:, :-1]).flatten(0, 1)
        total += losses(x_ND, weight_VD, ids[:, 1:].flatten()).sum()
    return total.item()


def small_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropies in nats, [N], over slices of the vocabulary; not finite beyond 88 nats, where float32 overflows.

    The full logits of 512 tokens take 103 MB, and F.cross_entropy on them is several times slower. Logits are relative
    to the target's own, not to the largest, which would need another pass over them.
    """
    own_N1 = (x_ND * weight_VD[targets_N]).sum(-1, keepdim=True)
    slices = weight_VD.split(EVALUATION_VOCABULARY[x_ND.device.type])
    parts = [(x_ND @ slice_SD.T).sub_(own_N1).exp_().sum(-1) for slice_SD in slices]
    return torch.stack(parts).sum(0).log()


def token_losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropies in nats, [N], of any size. Waits for the device."""
    losses_N = small_losses(x_ND, weight_VD, targets_N)
    over_N = ~losses_N.isfinite()
    if over_N.any():
        x_ND, own_N1 = x_ND[over_N], (x_ND * weight_VD[targets_N]).sum(-1, keepdim=True)[over_N]
        losses_N[over_N] = torch.logsumexp(x_ND @ weight_VD.T - own_N1, -1)
    return losses_N
