"""Models of Hugging Face's transformers, examined as they are: attention by its eager path, heads by hooks.

One table of module names per family is all that is known of one; nothing is ported. A model gives attention maps, the
outputs of its heads before the output projection, and losses with heads replaced; it can be made anew with random
weights, and its logits of one layer scaled, for the controls of picollm.attention.controls. Weights are read from
safetensors alone, and no code of the folder is ever run.

Shape suffixes: B sequence, T position, L layer, H head of a layer, Q query, K key, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from picollm.errors import PicollmError, one_line
from picollm.files import read_json


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts: the list of layers, and in a layer the output projection and what makes queries.

    `scale` multiplies the queries of a layer by a factor.
    """

    layers: str
    out: str
    scale: Callable[[nn.Module, float], None]


def scale_first_columns(layer: nn.Module, factor: float) -> None:
    """GPT-2's Conv1D, [width, 3 width]: the queries are its first columns."""
    weight, bias = layer.attn.c_attn.weight, layer.attn.c_attn.bias
    width = weight.shape[0]
    weight[:, :width] *= factor
    bias[:width] *= factor


def scale_interleaved(layer: nn.Module, factor: float) -> None:
    """GPT-NeoX: query, key and value of one head after another."""
    attention = layer.attention
    heads = attention.config.num_attention_heads
    attention.query_key_value.weight.view(heads, 3, -1, attention.config.hidden_size)[:, 0] *= factor
    attention.query_key_value.bias.view(heads, 3, -1)[:, 0] *= factor


def scale_neo(layer: nn.Module, factor: float) -> None:
    layer.attn.attention.q_proj.weight.mul_(factor)


def scale_query(layer: nn.Module, factor: float) -> None:
    """Llama and those like it; where queries are normed, by the norm's weight, since it undoes any other scale."""
    norms = (getattr(layer.self_attn, name, None) for name in ("q_norm", "q_layernorm"))
    queries = next((norm for norm in norms if isinstance(norm, nn.Module)), layer.self_attn.q_proj)
    for parameter in queries.parameters():
        parameter.mul_(factor)


LLAMA = Family("model.layers", "self_attn.o_proj", scale_query)
FAMILIES = {
    "gpt2": Family("transformer.h", "attn.c_proj", scale_first_columns),
    "gpt_neo": Family("transformer.h", "attn.attention.out_proj", scale_neo),
    "gpt_neox": Family("gpt_neox.layers", "attention.dense", scale_interleaved),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "stablelm", "gemma"), LLAMA),
}


@dataclass(frozen=True)
class ForeignConfig:
    """What the analyses ask of a model's shape."""

    family: str
    vocab_size: int
    context: int
    n_layers: int
    n_heads: int


class ForeignModel:
    """A causal language model of transformers, in float32 and evaluation mode, with the methods that analyses call."""

    def __init__(self, model: Any) -> None:
        settings = model.config
        self.model = model.float().eval()
        self.family = FAMILIES[settings.model_type]
        self.config = ForeignConfig(
            settings.model_type,
            settings.vocab_size,
            settings.max_position_embeddings,
            settings.num_hidden_layers,
            settings.num_attention_heads,
        )

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ForeignModel:
        self.model.to(device=device)
        return self

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.get_submodule(self.family.layers)

    @torch.no_grad()
    def attention_maps(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights [B, L, H, query, key], and the logits."""
        found = self.model(ids_BT, output_attentions=True, use_cache=False)
        return torch.stack(found.attentions, dim=1), found.logits

    def untrained(self) -> ForeignModel:
        """The same shape with fresh random weights, by the family's own initialisation and torch's random state."""
        from transformers import AutoModelForCausalLM

        return ForeignModel(AutoModelForCausalLM.from_config(self.model.config, attn_implementation="eager"))

    @torch.no_grad()
    def scale_logits(self, layer: int, factor: float) -> None:
        """Multiply the attention logits of a layer."""
        self.family.scale(self.layers[layer], factor)

    @contextmanager
    def hooked(self, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """What the heads of each layer put out, [B, T, H, W], goes through `change(layer, z)` before the projection."""

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
            def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                z = given[0]
                return (change(layer, z.unflatten(-1, (self.config.n_heads, -1))).flatten(-2), *given[1:])

            return before

        outs = [layer.get_submodule(self.family.out) for layer in self.layers]
        handles = [out.register_forward_pre_hook(hook(number)) for number, out in enumerate(outs)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def nats(self, ids_BT: Tensor) -> Tensor:
        """Nats of each next token, [B, T - 1]."""
        logits = self.model(ids_BT, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2).float(), ids_BT[:, 1:], reduction="none")

    def mean_outputs(self, parts: Sequence[Tensor]) -> Tensor:
        """The mean output of each head over all positions of parts of ids [B, T], [L, H, W]."""
        total: dict[int, Tensor] = {}

        def add(layer: int, z_BTHW: Tensor) -> Tensor:
            total[layer] = total.get(layer, 0) + z_BTHW.sum((0, 1))
            return z_BTHW

        with self.hooked(add):
            for ids_BT in parts:
                self.nats(ids_BT)
        return torch.stack([total[layer] for layer in range(len(total))]) / sum(ids.numel() for ids in parts)

    def without(self, ids_BT: Tensor, heads_LH: Tensor, means_LHW: Tensor) -> Tensor:
        """Nats of each next token with all the heads of a boolean mask [L, H] at their means, [B, T - 1]."""

        def replace(layer: int, z_BTHW: Tensor) -> Tensor:
            return torch.where(heads_LH[layer][:, None], means_LHW[layer], z_BTHW)

        with self.hooked(replace):
            return self.nats(ids_BT)


def load_foreign_model(name: str, revision: str | None = None) -> ForeignModel:
    """A folder, or a name on the hub and a revision there.

    Raises PicollmError for what can't be examined, with what to do.
    """
    folder = Path(name)
    if folder.is_dir():
        check_folder(folder)
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise PicollmError("models of other families need transformers: pip install -e '.[models]'") from None
    try:
        settings = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_settings(name, settings)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise PicollmError(f"{name} can't be loaded by transformers: {one_line(error)}") from None
    return ForeignModel(model)


def check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise PicollmError(f"{folder} has no config.json: it is no model's folder")
    if not list(folder.glob("*.safetensors")):
        old = [path.name for path in folder.glob("*.bin")]
        how = (
            f"its weights are in {old[0]}, a pickle, which is never read: convert them "
            "(AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True))"
            if old
            else "it has no *.safetensors"
        )
        raise PicollmError(f"{folder}: {how}")


def check_settings(name: str, settings: Any) -> None:
    if getattr(settings, "is_encoder_decoder", False):
        raise PicollmError(f"{name} is an encoder-decoder ({settings.model_type}): only decoders are examined")
    if settings.model_type not in FAMILIES:
        raise PicollmError(
            f"{name} is of the family {settings.model_type!r}; known are {', '.join(FAMILIES)}. Its maps can be "
            "analysed without it: docs/heads.md"
        )


def is_foreign_folder(folder: Path) -> bool:
    """Whether a folder, or a name that is none, is of transformers and not one that this project writes or reads."""
    if not folder.is_dir():
        return True
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    bare = values.get("model_type") == "stablelm" and not (folder / "tokenizer.json").is_file()
    ours = "d_model" in values or "training_context" in values or bare
    return not ours and ("model_type" in values or "architectures" in values)
