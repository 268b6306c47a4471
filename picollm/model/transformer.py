"""The model: a decoder-only transformer with RoPE, LayerNorm and SwiGLU, small enough to read in one sitting.

Two paths compute the same attention: `F.scaled_dot_product_attention` for training and speed, and an explicit softmax
that also returns the weights (`Transformer.attention_maps`). A test checks that they agree.

Shape suffixes: B batch, T position, D model width, H head, K head width, F feed-forward width, V vocabulary, L layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm.errors import PicollmError

VOCAB_MULTIPLE = 64  # GEMMs are faster at round sizes; the padded columns never leave this module


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. `context` is the longest sequence it was trained on, `rope_cache` the longest it accepts."""

    vocab_size: int
    context: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    dropout: float
    tied: bool
    rope_theta: float
    rope_cache: int

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise PicollmError(
                f"model.d_model = {self.d_model} with model.n_heads = {self.n_heads}: "
                f"RoPE needs d_model to be a multiple of 2 x n_heads = {2 * self.n_heads}"
            )
        if self.rope_cache < self.context:
            raise PicollmError(
                f"model.rope_cache = {self.rope_cache} is shorter than the context of the tokens, {self.context}: "
                "raise model.rope_cache or lower tokens.context"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], vocab_size: int, **changes: Any) -> ModelConfig:
        """Reads the shape from a configuration's sections `model`, without its `checkpoint`, and `tokens`."""
        shape: dict[str, Any] = {"vocab_size": vocab_size, "context": config["tokens"]["context"]}
        shape |= {key: value for key, value in config["model"].items() if key != "checkpoint"}
        return cls(**shape | changes)

    @property
    def padded_vocab_size(self) -> int:
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def to_dict(self) -> dict:
        return asdict(self)


def rope_tables(d_head: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """Computes cos, sin of the rotary angles, each [length, d_head / 2] float32 (Su et al. 2021, arXiv 2104.09864)."""
    frequency = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotates the halves of each head by the position's angles: in real arithmetic, which every exporter accepts."""
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat((a * cos_TK - b * sin_TK, a * sin_TK + b * cos_TK), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def heads(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rotated queries and keys, and values, each [B, H, T, K]."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4).unbind(0)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def merge(self, z_BHTK: Tensor) -> Tensor:
        B, H, T, K = z_BHTK.shape
        return self.out(z_BHTK.transpose(1, 2).reshape(B, T, H * K))

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """Attends to these tokens and, if `past` has their keys and values [B, H, T', K], to earlier ones; see `Cache`.

        Keys and values of these tokens are added to `past`.
        """
        q, k, v = self.heads(x_BTD, cos, sin)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            past[:] = k, v
        causal = q.shape[2] > 1  # one new token attends to all earlier ones
        return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def explicit(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output of `forward` in evaluation, and the weights [B, H, query, key]."""
        q, k, v = self.heads(x_BTD, cos, sin)
        T = q.shape[2]
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        weights_BHTT = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.merge(weights_BHTT @ v), weights_BHTT


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202), gate and up in one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Dropout(nn.Module):
    """Zeroes a share `p` of the values, rounded to 1/256, and scales the others up; only in training.

    On a CPU `F.dropout` draws one number per value, which takes longer than the surrounding block; there each value
    uses one byte of a random 64-bit word. On a GPU the compiler fuses `F.dropout` with the operations around it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropped = round(256 * p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.dropped / 256)
        words = torch.randint(-(2**63), 2**63 - 1, (math.ceil(x.numel() / 8),), device=x.device)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * keep * (256 / (256 - self.dropped))


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.d_model)
        self.attention = Attention(config)
        self.norm_mlp = nn.LayerNorm(config.d_model)
        self.mlp = SwiGLU(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, past: list[Tensor] | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), cos, sin, past))
        return x_BTD + self.dropout(self.mlp(self.norm_mlp(x_BTD)))

    def at(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, positions_P: Tensor) -> Tensor:
        """Returns the output of `forward` at these positions in evaluation, [B, P, D], without computing the others.

        The attention itself is computed in full: causal kernels accept no subset of queries, and it is cheap.
        """
        q, k, v = self.attention.heads(self.norm_attention(x_BTD), cos, sin)
        z_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BPD = x_BTD.index_select(1, positions_P) + self.attention.merge(z_BHTK.index_select(2, positions_P))
        return x_BPD + self.mlp(self.norm_mlp(x_BPD))

    def explicit(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        z_BTD, weights_BHTT = self.attention.explicit(self.norm_attention(x_BTD), cos, sin)
        x_BTD = x_BTD + self.dropout(z_BTD)
        return x_BTD + self.dropout(self.mlp(self.norm_mlp(x_BTD))), weights_BHTT

    def out_weight(self) -> Tensor:
        """Returns the output projection by head, [D, H, K]."""
        return self.attention.out.weight.unflatten(1, (self.attention.n_heads, -1))


class Cache:
    """Keys and values of every layer for `length` tokens, so that generation computes each token once."""

    def __init__(self, n_layers: int) -> None:
        self.length, self.layers = 0, [[] for _ in range(n_layers)]


class Transformer(nn.Module):
    """ids [B, T] int64 -> logits [B, T, vocab_size]. Raises PicollmError beyond `rope_cache` positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        cos, sin = rope_tables(config.d_model // config.n_heads, config.rope_cache, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        # GPT-2's scheme: N(0, 0.02), and 1 / sqrt(2 L) less for the two matrices that write into the residual stream.
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Block):
            for linear in (module.attention.out, module.mlp.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * self.config.n_layers))

    def start(self, ids_BT: Tensor, before: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the residual stream before the first block, [B, T, D], and the rotary tables of these positions.

        Raises PicollmError if the sequence is longer than the model accepts.
        """
        end = before + ids_BT.shape[1]
        if end > self.config.rope_cache:
            raise PicollmError(
                f"a sequence of {end} tokens: the model accepts at most {self.config.rope_cache}: shorten the text"
            )
        return self.dropout(self.embedding(ids_BT)), self.cos[before:end], self.sin[before:end]

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Returns the normed residual stream before the vocabulary head, [B, T, D]."""
        x_BTD, cos, sin = self.start(ids_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        return self.norm(x_BTD)

    def hidden_at(self, ids_BT: Tensor, positions_P: Tensor) -> Tensor:
        """Returns `hidden` at these positions in evaluation, [B, P, D]; the last block is computed only there."""
        x_BTD, cos, sin = self.start(ids_BT)
        for block in self.blocks[:-1]:
            x_BTD = block(x_BTD, cos, sin)
        return self.norm(cast(Block, self.blocks[-1]).at(x_BTD, cos, sin, positions_P))

    def next_logits(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """Returns logits [B, V] after these tokens, which follow the cached ones: first the prompt, then one by one."""
        x_BTD, cos, sin = self.start(ids_BT, cache.length)
        for block, past in zip(self.blocks, cache.layers, strict=True):
            x_BTD = block(x_BTD, cos, sin, past)
        cache.length += ids_BT.shape[1]
        return self.logits(self.norm(x_BTD[:, -1]))

    @property
    def layers(self) -> list[Block]:
        """The blocks with their type, which torch's ModuleList does not carry."""
        return [cast(Block, block) for block in self.blocks]

    def logits(self, x_BTD: Tensor) -> Tensor:
        return self.head(x_BTD)[..., : self.config.vocab_size]

    def forward(self, ids_BT: Tensor, last: bool = False) -> Tensor:
        """Returns logits [B, T, V], or with `last` only those of the last position, [B, V]."""
        x_BTD = self.hidden(ids_BT)
        return self.logits(x_BTD[:, -1] if last else x_BTD)

    def head_loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Returns the mean cross-entropy in nats per token of the result of `hidden`, over the real vocabulary."""
        return F.cross_entropy(self.logits(x_BTD).float().flatten(0, 1), targets_BT.flatten())

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return self.head_loss(self.hidden(ids_BT), targets_BT)

    @torch.no_grad()
    def attention_maps(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns attention weights [B, L, H, query, key] and `hidden`, by the explicit path, without dropout."""
        was_training = self.training
        if was_training:  # visiting all modules takes as long as a layer on a short sentence
            self.eval()
        x_BTD, cos, sin = self.start(ids_BT)
        maps = []
        for block in self.layers:
            x_BTD, weights_BHTT = block.explicit(x_BTD, cos, sin)
            maps.append(weights_BHTT)
        if was_training:
            self.train()
        return torch.stack(maps, dim=1), self.norm(x_BTD)

    def untrained(self) -> Transformer:
        """Returns the same shape with new random weights, by torch's random state, in evaluation mode."""
        return Transformer(self.config).eval()

    @torch.no_grad()
    def scale_logits(self, layer: int, factor: float) -> None:
        """Multiplies the attention logits of a layer by `factor`."""
        self.layers[layer].attention.qkv.weight[: self.config.d_model] *= factor

    def parameter_counts(self) -> dict[str, int]:
        """Counts all parameters, and those outside embedding and head, without the padding rows."""
        body = sum(p.numel() for block in self.blocks for p in block.parameters())
        body += sum(p.numel() for p in self.norm.parameters())
        matrices = 1 if self.config.tied else 2
        return {"total": body + matrices * self.config.vocab_size * self.config.d_model, "non_embedding": body}
