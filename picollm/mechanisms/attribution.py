"""Attribution to layers and heads: the loss after each layer, and each head's direct effect on the next token.

Logit lens (nostalgebraist 2020): the final norm and the vocabulary head read the residual stream after each
layer. Direct logit attribution (Elhage et al. 2021): what a head itself adds to the next token's logit, minus what it
adds to the vocabulary's mean, with the final norm's scale of the complete model; effects through later layers are not
included.

Shape suffixes: W window, B batch, T position, D model width, H head of a layer (or layers flattened), K head width,
L layer.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from picollm.mechanisms.intervention import after, batches, head_output, losses
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.readout import divisor, linear_part
from picollm.stats import DefinedInterval, known, resampled

EVERY = 4  # every 4th target is read after each layer: the vocabulary head is the expensive part


@torch.no_grad()
def attribution(s: ModelAndText) -> tuple[list[DefinedInterval], NDArray[np.float64]]:
    """Returns the loss after the embedding and each layer, with intervals over windows, and direct parts [L x H, W]."""
    after_layer, direct = [], []
    mean_D = s.model.head.weight[: s.model.config.vocab_size].mean(0)
    for ids in batches(s.windows, s.device):
        scored_BT = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
        scored_BT[:, EVERY - 1 :: EVERY] = True
        x_BTD, *rest = s.model.start(ids[:, :-1])
        nats, written = [losses(s.model, x_BTD, ids, scored_BT)], []
        for block in s.model.layers:
            z_BHTK = head_output(block, x_BTD, rest)
            written.append(torch.einsum("bhtk,dhk->bhtd", z_BHTK, block.out_weight()))
            x_BTD = after(block, x_BTD, z_BHTK, rest)
            nats.append(losses(s.model, x_BTD, ids, scored_BT))
        after_layer.append(torch.stack(nats).double().sum(-1) / scored_BT.sum(-1))
        towards_BTD = s.model.head.weight[ids[:, 1:]] - mean_D
        written_NBTD = linear_part(s.model.norm, torch.stack(written).transpose(1, 2).flatten(0, 1))
        direct.append(((written_NBTD * towards_BTD).sum(-1) / divisor(s.model.norm, x_BTD)).double().mean(-1))
    nats_LW = torch.cat(after_layer, dim=1).cpu().numpy()
    low, high = resampled(nats_LW, s.cfg["seed"])
    return known(nats_LW.mean(1), low, high), torch.cat(direct, dim=1).cpu().numpy()
