"""Runs a model with some heads' outputs replaced, computing the layers before the first of them only once.

A head's output z, [T, K], is its input to the output projection W_O. Replacements:

mean      its mean over training text: the head writes its average (the primary kind)
zero      zeros
uniform   the mean of the values up to each position: the head's values under a pattern without information
no-sink   its own pattern without position 0, renormalised

A model is picollm's own or one of another family (picollm.model.foreign), for which the last two kinds are unavailable
because they need queries, keys and values.

Shape suffixes: B sequence, T position, D model width, H head of a layer, K head width, L layer, N variant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from picollm.model.foreign import Examined, ForeignBlock
from picollm.model.loss import EVALUATION_TOKENS, token_losses
from picollm.model.transformer import Block

KINDS = ("mean", "zero", "uniform", "no-sink")
OF_OUTPUTS = KINDS[:2]  # kinds that need only a head's output
BATCH_TOKENS = 512  # tokens of the windows read at once, before multiplying by the heads of a layer
TOKENS_AT_ONCE = 4096  # tokens of all variants together, which keeps their hidden states small


def outputs(block: Block, x_BTD: Tensor, rotary: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes rotated queries and keys, values, and the heads' outputs z, each [B, H, T, K]."""
    q, k, v = block.attention.heads(block.norm_attention(x_BTD), *rotary)
    return q, k, v, F.scaled_dot_product_attention(q, k, v, is_causal=True)


def head_output(block: Block | ForeignBlock, x_BTD: Tensor, rest: Sequence) -> Tensor:
    """Computes the heads' outputs z, [B, H, T, K]; `rest` is what the model's `start` returns in addition to x."""
    return block.outputs(x_BTD, *rest) if isinstance(block, ForeignBlock) else outputs(block, x_BTD, rest)[3]


def after(block: Block | ForeignBlock, x_BTD: Tensor, z_BHTK: Tensor, rest: Sequence) -> Tensor:
    """Computes the residual stream after a block whose heads output z."""
    if isinstance(block, ForeignBlock):
        return block.after(x_BTD, z_BHTK, *rest)
    x_BTD = x_BTD + block.attention.merge(z_BHTK)
    return x_BTD + block.mlp(block.norm_mlp(x_BTD))


def replacement(
    kind: str, block: Block | ForeignBlock, x_BTD: Tensor, rest: Sequence, mean_HK: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the heads' outputs of a layer and their replacements, both [B, H, T, K]."""
    if kind in OF_OUTPUTS:
        z_BHTK = head_output(block, x_BTD, rest)
        return z_BHTK, mean_HK[:, None].expand_as(z_BHTK) if kind == "mean" else torch.zeros_like(z_BHTK)
    q, k, v, z_BHTK = outputs(cast(Block, block), x_BTD, rest)
    return z_BHTK, of_other_pattern(kind, q, k, v)


def of_other_pattern(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Averages the values with an uninformative pattern, or with the head's own minus position 0, [B, H, T, K]."""
    T = q.shape[2]
    if kind == "uniform":
        return v.cumsum(2) / torch.arange(1, T + 1, device=v.device)[:, None]
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    hidden[1:, 0] = True
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


def losses(model: Examined, x_BTD: Tensor, ids_BT: Tensor, scored_BT: Tensor | None = None) -> Tensor:
    """Computes nats of each next token, [B, T - 1], from the residual stream after the last block, last token excluded.

    x may hold N variants of each sequence, [N x B, T - 1, D]; then so do the losses. Outside `scored`, [B, T - 1], they
    are 0 and cost nothing.
    """
    variants = len(x_BTD) // len(ids_BT)
    if scored_BT is None:
        scored_BT = torch.ones_like(ids_BT[:, 1:], dtype=torch.bool)
    scored_BT = scored_BT.repeat(variants, 1)
    x_MD = model.norm(x_BTD[scored_BT])
    targets_M = ids_BT[:, 1:].repeat(variants, 1)[scored_BT]
    weight_VD, at_once = model.head.weight[: model.config.vocab_size], EVALUATION_TOKENS[x_BTD.device.type]
    parts = zip(x_MD.split(at_once), targets_M.split(at_once), strict=True)
    nats_BT = x_BTD.new_zeros(scored_BT.shape)
    nats_BT[scored_BT] = torch.cat([token_losses(x, weight_VD, targets) for x, targets in parts])
    return nats_BT


@torch.no_grad()
def baseline(model: Examined, ids_BT: Tensor, scored_BT: Tensor | None = None) -> Tensor:
    """Computes nats of each next token of the unmodified model, [B, T - 1]; 0 outside `scored`."""
    x, *rest = model.start(ids_BT[:, :-1])
    for block in model.layers:
        x = block(x, *rest)
    return losses(model, x, ids_BT, scored_BT)


@torch.no_grad()
def each_head(model: Examined, ids_BT: Tensor, kind: str, means_LHK: Tensor, scored_BT: Tensor | None = None) -> Tensor:
    """Computes nats of each next token with one head at a time replaced, [L x H, B, T - 1]; 0 outside `scored`.

    The layers before a head's own are computed once for all heads, the attention of its layer once for all its heads.
    """
    x, *rest = model.start(ids_BT[:, :-1])
    nats = []
    B, T = ids_BT[:, 1:].shape
    for layer, block in enumerate(model.layers):
        z_BHTK, other_BHTK = replacement(kind, block, x, rest, means_LHK[layer])
        H = z_BHTK.shape[1]
        for heads in torch.arange(H).split(max(1, TOKENS_AT_ONCE // (B * T))):
            z_NBHTK = z_BHTK.repeat(len(heads), 1, 1, 1, 1)
            for n, head in enumerate(heads):
                z_NBHTK[n, :, head] = other_BHTK[:, head]
            changed = after(block, x.repeat(len(heads), 1, 1), z_NBHTK.flatten(0, 1), rest)
            for later in model.layers[layer + 1 :]:
                changed = later(changed, *rest)
            nats.append(losses(model, changed, ids_BT, scored_BT).view(len(heads), B, T))
        x = after(block, x, z_BHTK, rest)
    return torch.cat(nats)


@torch.no_grad()
def each_set(
    model: Examined,
    ids_BT: Tensor,
    masks_LH: Iterable[Tensor],
    means_LHK: Tensor,
    scored_BT: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields nats of each next token, [B, T - 1], for one boolean mask [L, H] at a time, its heads set to their means.

    The layers before a set's first are computed once for all sets.
    """
    x, *rest = model.start(ids_BT[:, :-1])
    before = [x]
    for block in model.layers:
        before.append(block(before[-1], *rest))
    for mask_LH in masks_LH:
        changed = mask_LH.any(-1).tolist()
        first = changed.index(True) if any(changed) else len(changed)
        x = before[first]
        for layer in range(first, len(changed)):
            block = model.layers[layer]
            if changed[layer]:
                z_BHTK = torch.where(
                    mask_LH[layer, :, None, None], means_LHK[layer, :, None], head_output(block, x, rest)
                )
                x = after(block, x, z_BHTK, rest)
            else:
                x = block(x, *rest)
        yield losses(model, x, ids_BT, scored_BT)


def without(model: Examined, ids_BT: Tensor, heads_LH: Tensor, means_LHK: Tensor) -> Tensor:
    """Runs `each_set` for one mask."""
    return next(each_set(model, ids_BT, [heads_LH], means_LHK))


def batches(ids_WT: NDArray, device: torch.device) -> tuple[Tensor, ...]:
    """Splits rows of ids into batches."""
    return torch.from_numpy(ids_WT.astype(np.int64)).to(device).split(max(1, BATCH_TOKENS // ids_WT.shape[1]))


@torch.no_grad()
def mean_outputs(model: Examined, parts: Iterable[Tensor]) -> Tensor:
    """Computes the mean output of each head, [L, H, K], over all positions of `parts`, ids [B, T]."""
    total, positions = torch.zeros(()), 0
    for ids_BT in parts:
        total = total + torch.stack([z_BHTK.sum((0, 2)) for z_BHTK in head_outputs(model, ids_BT)])
        positions += ids_BT.numel()
    return total / positions


@torch.no_grad()
def head_outputs(model: Examined, ids_BT: Tensor) -> Iterator[Tensor]:
    """Yields the heads' outputs z, [B, H, T, K], layer by layer."""
    x, *rest = model.start(ids_BT)
    for block in model.layers:
        z_BHTK = head_output(block, x, rest)
        yield z_BHTK
        x = after(block, x, z_BHTK, rest)
