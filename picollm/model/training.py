"""Pre-training: one readable loop over packed rows, from a seed to a trained model.

Every number that is reported is measured here: losses, gradient norms, tokens per second, the share of the time that
was spent waiting for data. The same seed, device, threads and software give the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from picollm.data.feeding import Feed
from picollm.data.loading import Order, Rows
from picollm.errors import PicollmError
from picollm.model.compute import autocast, compiled
from picollm.model.transformer import ModelConfig, Transformer
from picollm.profiling.nvtx import ranges

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """The `pretrain` section of the config."""

    length: int
    unit: str
    batch_rows: int
    loading: str
    optimizer: str
    lr: float
    muon_lr: float
    weight_decay: float
    warmup: float
    final_lr: float
    clip: float
    autocast: str
    compile: str
    validate_every: int
    validation_rows: int
    snapshots: bool
    seed: int

    def steps(self, n_rows: int) -> int:
        return self.length if self.unit == "steps" else self.length * (n_rows // self.batch_rows)

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step: linear warm-up, then a cosine down to `final_lr`."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Result:
    model: Transformer
    curve: list[dict]  # one row a step
    summary: dict


def optimizers(model: Transformer, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW, decay on matrices only; with `muon`, the hidden 2-D weights go to Muon (Jordan et al. 2024) instead."""
    hidden = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    found = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)]
    if taken:
        found.append(torch.optim.Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    for group in (group for optimizer in found for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return found


def loss_function(model: Transformer, config: TrainingConfig, device: torch.device) -> tuple[Callable, str]:
    """(ids, targets) -> mean loss, with autocast and torch.compile where the config wants them; and what runs.

    On a CPU the best of a small model is a float32 body and a compiled bf16 head: the casts of a narrow body cost
    more than bf16 gains, while softmax over 50,257 words is bound by memory unless it is fused.
    """

    def head(x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        with autocast(device, config.autocast != "none"):
            return model.head_loss(x_BTD, targets_BT)

    head_used, how = compiled(head, device) if config.compile == "head" else (head, "eager")

    def loss(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with autocast(device, config.autocast == "all"):
            x_BTD = model.hidden(ids_BT)
        return head_used(x_BTD, targets_BT)

    if config.compile == "all":
        return compiled(loss, device)
    return loss, how


@torch.no_grad()
def evaluate(model: Transformer, rows: np.ndarray, device: torch.device, batch_rows: int = 16) -> float:
    """Mean loss in nats per token over all rows [rows, context + 1], float32, evaluation mode."""
    was_training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(rows), batch_rows):
        ids = torch.from_numpy(rows[start : start + batch_rows].astype(np.int64)).to(device)
        x_ND = model.hidden(ids[:, :-1]).flatten(0, 1)
        total += negative_log_likelihood(x_ND, model.head.weight[: model.config.vocab_size], ids[:, 1:].flatten())
    model.train(was_training)
    return total / rows[:, 1:].size


def negative_log_likelihood(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> float:
    """Sum of cross-entropies in nats, over slices of the vocabulary that stay in the cache.

    The full logits of 2,048 tokens are 412 MB: on two cores this is 3.5 times as fast as F.cross_entropy on them.
    """
    log_sums = [torch.logsumexp(x_ND @ slice_SD.T, -1) for slice_SD in weight_VD.split(4096)]
    return (torch.logsumexp(torch.stack(log_sums), 0) - (x_ND * weight_VD[targets_N]).sum(-1)).sum().item()


def train(
    model_config: ModelConfig,
    config: TrainingConfig,
    train_rows: Rows | np.ndarray,
    validation_rows: np.ndarray,
    device: torch.device,
    save_snapshot: Callable[[int, Transformer], None] = lambda step, model: None,
) -> Result:
    """Train from scratch on rows [n, context + 1] uint16; `save_snapshot` gets the steps 0, 1, 2, 4, ... and the last.

    Raises PicollmError where the loss stops being a number.
    """
    torch.manual_seed(config.seed)
    model = Transformer(model_config).to(device)
    used = optimizers(model, config)
    loss_of, how = loss_function(model, config, device)
    steps = config.steps(len(train_rows))
    if steps < 1:
        raise PicollmError(f"the training split has fewer rows ({len(train_rows)}) than one step, {config.batch_rows}")
    stream = iter(Feed(train_rows, Order(len(train_rows), config.batch_rows, config.seed), device, config.loading))
    few = validation_rows[: config.validation_rows]
    counts = model.parameter_counts()
    log.info(
        "%s parameters (%s without embedding), %d steps of %d tokens, loss by %s",
        f"{counts['total']:,}", f"{counts['non_embedding']:,}", steps, config.batch_rows * model_config.context, how,
    )  # fmt: skip

    model.train()
    curve: list[dict] = []
    bar = tqdm(total=steps, desc="pretrain", unit=" steps", disable=None)
    for step in range(steps):
        if config.snapshots and is_snapshot(step):
            save_snapshot(step, model)
        validation = evaluate(model, few, device) if step % config.validate_every == 0 else None
        row = one_step(model, loss_of, used, stream, config, config.rate(step, steps), device)
        curve.append({"step": step, "tokens": (step + 1) * config.batch_rows * model_config.context, **row,
                      "validation_loss": validation})  # fmt: skip
        bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_second']:,.0f}", refresh=False)
        bar.update()
        refuse_divergence(row["loss"], step)
    bar.close()
    final = evaluate(model, validation_rows, device)
    refuse_divergence(final, steps)
    curve[-1]["validation_loss"] = final
    if config.snapshots:
        save_snapshot(steps, model)
    return Result(model.eval(), curve, summary(curve, final, counts, steps, how))


def refuse_divergence(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise PicollmError(f"the loss is {loss} at step {step}: lower pretrain.lr or pretrain.muon_lr")


def is_snapshot(step: int) -> bool:
    return step & (step - 1) == 0  # 0 and the powers of two


def one_step(
    model: Transformer,
    loss_of: Callable,
    used: list[torch.optim.Optimizer],
    stream: Iterator[Tensor],
    config: TrainingConfig,
    rate: float,
    device: torch.device,
) -> dict:
    """One optimizer step; what it measured."""
    start = time.perf_counter()
    with ranges("step"):
        with ranges("data_wait"):
            batch = next(stream)
        waited = time.perf_counter() - start
        with ranges("h2d"):
            ids = batch.to(device, non_blocking=True)
        with ranges("forward"):
            loss = loss_of(ids[:, :-1], ids[:, 1:])
        with ranges("backward"):
            loss.backward()
        with ranges("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            for optimizer in used:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["peak_lr"]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        value, norm = loss.item(), norm.item()  # waits for the device, so the time below is the step's
    seconds = time.perf_counter() - start
    return {
        "loss": value,
        "lr": rate * config.lr,
        "grad_norm": norm,
        "tokens_per_second": ids[:, 1:].numel() / seconds,
        "data_wait": waited / seconds,
    }


def summary(curve: list[dict], final: float, counts: dict[str, int], steps: int, how: str) -> dict:
    """Throughput is the median over steps, so that compilation in the first one does not count."""
    speeds = sorted(row["tokens_per_second"] for row in curve)
    tail = [row["loss"] for row in curve[-max(1, steps // 20) :]]
    return {
        "parameters": counts["total"],
        "parameters_non_embedding": counts["non_embedding"],
        "steps": steps,
        "tokens": curve[-1]["tokens"],
        "first_loss": curve[0]["loss"],
        "train_loss": sum(tail) / len(tail),
        "validation_loss": final,
        "validation_perplexity": math.exp(final),
        "tokens_per_second": speeds[len(speeds) // 2],
        "data_wait_share": sorted(row["data_wait"] for row in curve)[len(curve) // 2],
        "loss_path": how,
    }
