"""Pre-training: one readable loop over packed rows, from a seed to a trained model.

Every reported number is measured here: losses, gradient norms, tokens per second, the share of time spent waiting for
data. The same seed, device, threads, processes and software give the same bytes, even if the run was killed and
resumed: each step's random numbers come from its own seed, and the rest is in the checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from picollm.data.feeding import Feed
from picollm.data.loading import Order, Rows
from picollm.errors import PicollmError, one_line
from picollm.model.checkpoints import Checkpoints
from picollm.model.costs import peak_memory_mib
from picollm.model.distributed import ALONE, World
from picollm.model.interruption import Interruption, Stopped
from picollm.model.loss import Objective, SampledSoftmax, evaluate
from picollm.model.muon import Muon
from picollm.model.transformer import ModelConfig, Transformer
from picollm.precision import muon_dtype
from picollm.progress import progress
from picollm.ranges import ranges

log = logging.getLogger(__name__)

# Steps between readings of the loss. Each one idles a GPU, since the next step is not queued yet.
READ_EVERY = {"cpu": 1, "cuda": 16}
# The curve's columns: losses in nats per token (validation's or None), norm before clipping, share of time waiting.
CURVE = ("step", "tokens", "loss", "validation_loss", "lr", "grad_norm", "tokens_per_second", "data_wait")


@dataclass(frozen=True)
class TrainingConfig:
    """The `pretrain` section of the config, `auto` replaced by what fits the device (`picollm.precision.fit`)."""

    length: int
    unit: str
    batch_rows: int
    accumulate: int
    processes: int
    loading: str
    optimizer: str
    lr: float
    muon_lr: float
    weight_decay: float
    muon_weight_decay: float
    warmup: float
    final_lr: float
    clip: float
    head_common: int
    head_sampled: int
    autocast: str
    compile: str
    validate_every: int
    patience: int
    checkpoint_every: int
    checkpoint_minutes: float
    snapshots: bool
    seed: int

    @property
    def head_dtype(self) -> torch.dtype:
        """Type in which the vocabulary head multiplies."""
        return torch.float32 if self.autocast == "none" else torch.bfloat16

    @property
    def head_rows(self) -> int | None:
        """Number of vocabulary rows with which a step's loss compares each target; None: all."""
        return self.head_common + self.head_sampled if self.head_sampled else None

    def steps(self, n_rows: int) -> int:
        return self.length if self.unit == "steps" else self.length * (n_rows // self.batch_rows)

    def learning_rate_share(self, step: int, steps: int) -> float:
        """Learning-rate schedule, as a share of the peak: linear warm-up, then a cosine down to `final_lr`."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizers(model: Transformer, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Builds AdamW, decay on matrices only; with `muon`, Muon (Jordan et al. 2024) takes the hidden 2-D weights."""
    hidden = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    built: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)]
    if taken:
        built.append(Muon(hidden, config.muon_lr, config.muon_weight_decay, dtype=muon_dtype(hidden[0].device)))
    for group in (group for optimizer in built for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return built


class Trainer:
    """Model in training: everything that a step changes, and the step itself."""

    def __init__(
        self,
        shape: ModelConfig,
        config: TrainingConfig,
        rows: Rows | np.ndarray,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        """Starts at step 0 on rows [n, context + 1] uint16. Raises PicollmError if they don't fill a step."""
        if config.batch_rows % (world.size * config.accumulate):
            raise PicollmError(
                f"pretrain.batch_rows = {config.batch_rows} can't be shared by {world.size} processes in "
                f"{config.accumulate} parts each: make it a multiple of {world.size * config.accumulate}"
            )
        self.config, self.device, self.world = config, device, world
        order = Order(len(rows), config.batch_rows // world.size, config.seed, world.rank, world.size)
        self.feed = Feed(rows, order, device, config.loading)
        self.stream = iter(self.feed)
        self.steps = config.steps(len(rows))
        torch.manual_seed(config.seed)
        self.model = Transformer(shape).to(device)
        sampled = None
        if config.head_sampled:
            counts = np.bincount(np.asarray(rows)[:, 1:].ravel(), minlength=shape.vocab_size)
            sampled = SampledSoftmax(counts, config.head_common, config.head_sampled, config.seed)
        self.objective = Objective(self.model, config.autocast, config.compile, sampled, device)
        self.shared = world.share(self.objective, device)
        self.optimizers = optimizers(self.model, config)
        self.curve: list[dict] = []  # one row per step
        self.unread: list[dict] = []  # rows whose loss is not read yet
        self.read_at = time.perf_counter()
        self.best: dict = {"step": 0, "loss": None}
        self.best_weights: dict[str, Tensor] = {}
        self.resumed_at: list[int] = []
        self.varies = ""  # reason why the same seed may give other bits

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.curve) + len(self.unread)

    def advance(self) -> None:
        """Runs one optimizer step; its row is in `curve` after the next `read`."""
        number = self.step
        start = time.perf_counter()
        with ranges("step"):
            with ranges("data_wait"):
                batch = next(self.stream)
            waited = time.perf_counter() - start
            with ranges("h2d"):
                ids = batch.to(self.device, non_blocking=True)
            loss = self.repeatable(number, ids)
            with ranges("optimizer"):
                norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
                rate = self.config.learning_rate_share(number, self.steps)
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["peak_lr"]
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            tokens = ids[:, 1:].numel() * self.world.size
            self.unread.append({"loss": loss, "norm": norm, "rate": rate, "tokens": tokens, "waited": waited})
            if len(self.unread) == READ_EVERY[self.device.type]:
                self.read()

    def repeatable(self, number: int, ids: Tensor) -> Tensor:
        """Calls `gradient`. If this device has an operation without a fixed order, warns and continues without one."""
        try:
            return self.gradient(number, ids)
        except RuntimeError as error:
            if "does not have a deterministic implementation" not in str(error):
                raise
            self.varies = f"; the same seed may give other bits: {one_line(error).split(',')[0]}"
            log.warning("training continues%s", self.varies)
            torch.set_deterministic_debug_mode("warn")
            self.model.zero_grad(set_to_none=True)
            return self.gradient(number, ids)

    def gradient(self, number: int, ids: Tensor) -> Tensor:
        """Leaves the gradient of the mean loss over this process's rows in the parameters; returns that loss."""
        parts = ids.chunk(self.config.accumulate)
        losses = []
        for i, part in enumerate(parts):
            if self.model.config.dropout:
                # A seed computed from the step: nothing to save, and nothing that a resumed run could miss.
                seed(self.device, seed_from(self.config.seed, number, i, self.world.rank))
            waits = self.world.size == 1 or i == len(parts) - 1
            with nullcontext() if waits else cast(Any, self.shared).no_sync():
                with ranges("forward"):
                    loss = self.shared(part[:, :-1], part[:, 1:], number)
                    loss = loss / len(parts) if len(parts) > 1 else loss
                with ranges("backward"):
                    loss.backward()
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def read(self) -> None:
        """Waits for the device and adds the rows of the steps since the last reading to the curve.

        Raises PicollmError if a loss is not a number, or twice that of a model that knows nothing.
        """
        if not self.unread:
            return
        measured = torch.stack([row[name] for row in self.unread for name in ("loss", "norm")])
        values = self.world.mean(measured).view(-1, 2).tolist()
        now = time.perf_counter()
        seconds = (now - self.read_at) / len(self.unread)
        self.read_at = now
        unread, self.unread = self.unread, []
        for row, (loss, norm) in zip(unread, values, strict=True):
            step = len(self.curve)
            refuse_divergence(loss, step, self.model.config.vocab_size)
            tokens, lr = (step + 1) * row["tokens"], row["rate"] * self.config.lr
            rates = (row["tokens"] / seconds, row["waited"] / seconds)
            self.curve.append(dict(zip(CURVE, (step, tokens, loss, None, lr, norm, *rates), strict=True)))

    def validate(self, rows: Rows | np.ndarray) -> float:
        """Computes the loss over all rows and records it in the curve; keeps the best weights so far."""
        self.read()
        loss = self.world.agreed(evaluate(self.model, rows, self.device), self.device)
        refuse_divergence(loss, self.step, self.model.config.vocab_size)
        self.curve[-1]["validation_loss"] = loss
        if self.best["loss"] is None or loss < self.best["loss"]:
            self.best = {"step": self.step, "loss": loss}
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}
        self.read_at = time.perf_counter()
        return loss

    def out_of_patience(self) -> bool:
        """Tests if none of the last `patience` validations improved the loss."""
        since = sum(row["validation_loss"] is not None for row in self.curve[self.best["step"] :])
        return 0 < self.config.patience <= since

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Returns tensors and the rest, JSON-ready: everything that later steps and the result depend on."""
        assert not self.unread, "read first, in all processes"
        tensors = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        for k, optimizer in enumerate(self.optimizers):
            for i, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{k}.{i}.{name}": value for name, value in values.items()}
        return tensors, {
            "feed": self.feed.state_dict(),
            "curve": self.curve,
            "best": self.best,
            "resumed_at": self.resumed_at,
            "loss_path": self.objective.how + self.varies,
            "peak_memory_mib": peak_memory_mib(self.device),
        }

    def load_state(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Restores the result of `state`, before the first step."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[f"model.{name}"])
        self.best_weights = {name: tensors[f"best.{name}"].to(self.device) for name in own if f"best.{name}" in tensors}
        for k, optimizer in enumerate(self.optimizers):
            values = optimizer.state_dict()
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{k}."):
                    _, _, i, key = name.split(".")
                    values["state"].setdefault(int(i), {})[key] = tensor
            optimizer.load_state_dict(values)
        self.feed.load_state_dict(state["feed"])
        self.curve, self.best = state["curve"], state["best"]
        self.resumed_at = [*state["resumed_at"], self.step]


def seed_from(*numbers: int) -> int:
    """Derives a seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed(device: torch.device, number: int) -> None:
    """Seeds the generator that the device uses; `torch.manual_seed` would go through all devices of all kinds."""
    (torch.cuda if device.type == "cuda" else torch).manual_seed(number)


def refuse_divergence(loss: float, step: int, vocab_size: int) -> None:
    if not loss < 2 * math.log(vocab_size):  # twice that of a model that knows nothing; also true for NaN
        raise PicollmError(
            f"the loss is {loss:.3g} at step {step}: training diverged; lower pretrain.lr or pretrain.muon_lr"
        )


def train(trainer: Trainer, validation_rows: Rows | np.ndarray, checkpoints: Checkpoints | None = None) -> None:
    """Trains from the newest checkpoint, or from scratch, to the last step; the last checkpoint holds the result.

    Raises Stopped after SIGTERM or Ctrl-C, with the state saved; PicollmError if the loss diverges, leaving earlier
    checkpoints unchanged.
    """
    config, world = trainer.config, trainer.world
    newest = checkpoints.newest() if checkpoints else None
    if newest:
        trainer.load_state(*newest)
        log.info("resuming after step %d of %d, from a checkpoint", trainer.step, trainer.steps)
    store = checkpoints if world.rank == 0 else None
    with (
        Interruption(patient=world.size > 1) as interruption,
        store or nullcontext(),
        progress(
            total=trainer.steps, initial=trainer.step, desc="pretrain", unit=" steps", disable=world.rank > 0
        ) as bar,
    ):
        trainer.model.train()
        if store and config.snapshots and trainer.step == 0:
            store.snapshot(0, trainer.model)
        trainer.read_at = time.perf_counter()
        while trainer.step < trainer.steps and not trainer.out_of_patience():
            trainer.advance()
            done, last = trainer.step, trainer.step == trainer.steps
            if trainer.curve:
                row = trainer.curve[-1]
                bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_second']:,.0f}", refresh=False)
            bar.update()
            if done % config.validate_every == 0 or last:
                log.info("step %d: validation loss %.3f", done, trainer.validate(validation_rows))
            if store and config.snapshots and (is_snapshot(done) or last or trainer.out_of_patience()):
                store.snapshot(done, trainer.model)
            asked = interruption.asked or (store is not None and store.stop.exists())
            stop = not trainer.unread and world.any(asked, trainer.device)
            end = last or stop or trainer.out_of_patience()
            if end or done % config.checkpoint_every == 0:
                trainer.read()  # in all processes, since it takes a mean over them; only the first one saves
                if store and (end or store.age() >= 60 * config.checkpoint_minutes):
                    store.save(done, *trainer.state())
                    trainer.read_at = time.perf_counter()
            if stop and not last:
                finish(store, world)
                kept = "the checkpoint is saved, run again to resume" if checkpoints else "nothing was saved"
                raise Stopped(f"stopped by a signal after step {done} of {trainer.steps}; {kept}")
        finish(store, world)


def finish(store: Checkpoints | None, world: World) -> None:
    """Waits until the first process's last checkpoint is written: a process that exits earlier would end the others."""
    if store:
        store.wait()
    world.wait()


def is_snapshot(step: int) -> bool:
    return step & (step - 1) == 0  # 0 and the powers of two
