"""Adapter for Hugging Face transformers models, unchanged: attention by its eager path, heads by hooks.

A family is described only by a table of module names; nothing is ported. A model offers the interface that the
analyses use in picollm's own (picollm.model.transformer): `start`, `layers`, `norm` and `head`, so that attention maps,
replaced heads and the logit lens are written once. Weights are read only from safetensors, and no code of the folder
is ever run (picollm.model.foreign_folder).

Shape suffixes: B sequence, T position, L layer, H head of a layer, Q query, K key, D model width, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from picollm.errors import PicollmError
from picollm.model.transformer import Transformer


@dataclass(frozen=True)
class Family:
    """Module names of a family: the list of layers, the last norm, and in a layer the output projection.

    `scale` multiplies the queries of a layer by a factor.
    """

    layers: str
    norm: str
    out: str
    scale: Callable[[Any, float], None]  # the layer is of a class of transformers


def scale_first_columns(layer: Any, factor: float) -> None:
    """Scales the queries in GPT-2's Conv1D, [width, 3 width]: its first columns."""
    weight, bias = layer.attn.c_attn.weight, layer.attn.c_attn.bias
    width = weight.shape[0]
    weight[:, :width] *= factor
    bias[:width] *= factor


def scale_interleaved(layer: Any, factor: float) -> None:
    """Scales the queries of GPT-NeoX, which stores query, key and value of one head after another."""
    attention = layer.attention
    heads = attention.config.num_attention_heads
    attention.query_key_value.weight.view(heads, 3, -1, attention.config.hidden_size)[:, 0] *= factor
    if attention.query_key_value.bias is not None:
        attention.query_key_value.bias.view(heads, 3, -1)[:, 0] *= factor


def scale_neo(layer: Any, factor: float) -> None:
    layer.attn.attention.q_proj.weight.mul_(factor)


def scale_query(layer: Any, factor: float) -> None:
    """Scales the queries of Llama-like layers; in their norm's weight if there is one, since it undoes any other."""
    norms = (getattr(layer.self_attn, name, None) for name in ("q_norm", "q_layernorm"))
    queries = next((norm for norm in norms if isinstance(norm, nn.Module)), layer.self_attn.q_proj)
    for parameter in queries.parameters():
        parameter.mul_(factor)


LLAMA = Family("model.layers", "model.norm", "self_attn.o_proj", scale_query)
FAMILIES = {
    "gpt2": Family("transformer.h", "transformer.ln_f", "attn.c_proj", scale_first_columns),
    "gpt_neo": Family("transformer.h", "transformer.ln_f", "attn.attention.out_proj", scale_neo),
    "gpt_neox": Family("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense", scale_interleaved),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "stablelm", "gemma"), LLAMA),
}


@dataclass(frozen=True)
class ForeignConfig:
    """Shape of a model as the analyses need it, under the names of picollm's own.

    `context` is the longest sequence that the model reads; in a run, the length that the tokens are cut to.
    """

    family: str
    vocab_size: int
    context: int
    d_model: int
    n_layers: int
    n_heads: int

    def to_dict(self) -> dict:
        return asdict(self)


class ForeignBlock:
    """A layer. `calls` in all methods are the arguments that its model passes to each layer; they depend only on T."""

    def __init__(self, number: int, layer: nn.Module, family: Family, n_heads: int) -> None:
        self.number, self.layer, self.n_heads = number, layer, n_heads
        self.out = layer.get_submodule(family.out)
        self.attention = layer.get_submodule(family.out.rpartition(".")[0])

    def __call__(self, x_BTD: Tensor, calls: Calls) -> Tensor:
        arguments, named = calls[self.number]
        output = self.layer(x_BTD, *arguments, **named)
        return output[0] if isinstance(output, tuple) else output

    def explicit(self, x_BTD: Tensor, calls: Calls) -> tuple[Tensor, Tensor]:
        """Returns the residual stream after the layer, and its attention weights [B, H, query, key].

        Raises PicollmError if its attention returns none.
        """
        with watched_attention([self]) as outputs:
            x_BTD = self(x_BTD, calls)
        return x_BTD, self.weights(outputs[0])

    def weights(self, output: Any) -> Tensor:
        """Returns the weights [B, H, query, key] in the attention's output. Raises PicollmError if there are none."""
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise PicollmError(
                f"layer {self.number}: its attention returns no weights; they need attn_implementation='eager'"
            )
        return weights

    def outputs(self, x_BTD: Tensor, calls: Calls) -> Tensor:
        """Returns the heads' inputs to the output projection, [B, H, T, W]."""
        seen: list[Tensor] = []
        handle = self.out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            self(x_BTD, calls)
        finally:
            handle.remove()
        return seen[0].unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def after(self, x_BTD: Tensor, z_BHTW: Tensor, calls: Calls) -> Tensor:
        """Returns the residual stream after the layer when the heads pass z to the output projection."""
        z_BTD = z_BHTW.transpose(1, 2).flatten(2)
        handle = self.out.register_forward_pre_hook(lambda module, given: (z_BTD, *given[1:]))
        try:
            return self(x_BTD, calls)
        finally:
            handle.remove()

    def out_weight(self) -> Tensor:
        """Returns the output projection by head, [D, H, W]."""
        weight = cast(Tensor, self.out.weight)
        weight = weight.mT if type(self.out).__name__ == "Conv1D" else weight
        return weight.unflatten(1, (self.n_heads, -1))


@contextmanager
def watched_attention(blocks: Iterable[ForeignBlock]) -> Iterator[list[Any]]:
    """Yields a list that collects the output of each block's attention, in the order of the calls."""
    outputs: list[Any] = []

    def note(module: nn.Module, given: tuple, output: Any) -> None:
        outputs.append(output)

    handles = [block.attention.register_forward_hook(note) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


# list[tuple[tuple, dict[str, Any]]]: checkers confuse it with the rotary tensors that picollm's own blocks take.
Calls = Any


class Reached(Exception):  # noqa: N818, not an error
    """Signals that the first layer was called: only its inputs were needed."""


class ForeignModel(nn.Module):
    """A causal language model of transformers, in float32 and evaluation mode: ids [B, T] -> logits [B, T, V]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        settings = model.config
        self.model = model.float().eval()
        self.family = FAMILIES[settings.model_type]
        self.config = ForeignConfig(
            settings.model_type,
            settings.vocab_size,
            getattr(settings, "training_context", settings.max_position_embeddings),
            settings.hidden_size,
            settings.num_hidden_layers,
            settings.num_attention_heads,
        )
        self.calls: dict[tuple, Calls] = {}

    @property
    def layers(self) -> list[ForeignBlock]:
        layers = self.model.get_submodule(self.family.layers)
        return [ForeignBlock(i, layer, self.family, self.config.n_heads) for i, layer in enumerate(layers)]

    @property
    def norm(self) -> nn.Module:
        """The norm before the vocabulary head."""
        return self.model.get_submodule(self.family.norm)

    @property
    def head(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def start(self, ids_BT: Tensor) -> tuple[Tensor, Calls]:
        """Returns the residual stream before the first layer, [B, T, D], and each layer's other arguments.

        Raises PicollmError if the sequence is longer than the model accepts.
        """
        self.check_length(ids_BT)
        key = (ids_BT.shape[1], ids_BT.device, self.embedding.weight.dtype)
        if key not in self.calls:
            with self.watched() as seen:
                self.hidden(ids_BT[:1])
            self.calls = {key: [(given[1:], named) for given, named in seen]}  # of one length: masks have size T x T
        with self.watched(stop=True) as seen, torch.no_grad(), suppress(Reached):
            self.hidden(ids_BT)
        return seen[0][0][0], self.calls[key]

    def check_length(self, ids_BT: Tensor) -> None:
        """Raises PicollmError if the sequence is longer than the model accepts."""
        if ids_BT.shape[1] > self.config.context:
            raise PicollmError(
                f"a sequence of {ids_BT.shape[1]} tokens: the model accepts at most {self.config.context}: shorten "
                "the text"
            )

    @contextmanager
    def watched(self, stop: bool = False) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
        """Yields a list that collects each layer's arguments; with `stop` the first layer raises Reached."""
        seen: list[tuple[tuple, dict[str, Any]]] = []

        def note(module: nn.Module, given: tuple, named: dict[str, Any]) -> None:
            seen.append((given, named))
            if stop:
                raise Reached

        handles = [block.layer.register_forward_pre_hook(note, with_kwargs=True) for block in self.layers]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Returns the normed residual stream before the vocabulary head, [B, T, D]."""
        return self.model.base_model(ids_BT, use_cache=False).last_hidden_state

    def logits(self, x_BTD: Tensor) -> Tensor:
        return self.head(x_BTD)

    def forward(self, ids_BT: Tensor, last: bool = False) -> Tensor:
        """Returns logits [B, T, V], or with `last` only those of the last position, [B, V]."""
        x_BTD = self.hidden(ids_BT)
        return self.logits(x_BTD[:, -1] if last else x_BTD)

    @torch.no_grad()
    def attention_maps(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns attention weights [B, L, H, query, key], and the result of `hidden`.

        Not by `start`, which runs the model once more for every new length.
        """
        self.check_length(ids_BT)
        blocks = self.layers
        with watched_attention(blocks) as outputs:
            x_BTD = self.hidden(ids_BT)
        maps = [block.weights(output) for block, output in zip(blocks, outputs, strict=True)]
        return torch.stack(maps, dim=1), x_BTD

    def untrained(self) -> ForeignModel:
        """Returns the same shape with new random weights, by the family's initialisation and torch's random state."""
        from transformers import AutoModelForCausalLM

        return ForeignModel(AutoModelForCausalLM.from_config(self.model.config, attn_implementation="eager"))

    @torch.no_grad()
    def scale_logits(self, layer: int, factor: float) -> None:
        """Multiplies the attention logits of a layer by `factor`."""
        self.family.scale(self.layers[layer].layer, factor)

    def parameter_counts(self) -> dict[str, int]:
        """Counts all parameters, and those outside head and embeddings (including those of positions)."""
        total = sum(p.numel() for p in self.parameters())
        body = sum(p.numel() for block in self.layers for p in block.layer.parameters())
        return {"total": total, "non_embedding": body + sum(p.numel() for p in self.norm.parameters())}


Examined = Transformer | ForeignModel
