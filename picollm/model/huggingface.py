"""Export to and import from Hugging Face's folder layout, as its StableLM class reads it.

StableLM has exactly this model's parts: LayerNorm with bias, RoPE over the whole head, SwiGLU, no other bias.
`AutoModelForCausalLM.from_pretrained(FOLDER)` loads an exported folder; this module loads a folder of that layout or of
the pipeline's own (`model.safetensors`, `config.json`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from picollm.data.tokenizer import END_OF_TEXT
from picollm.errors import PicollmError
from picollm.files import read_json, write_bytes, write_json
from picollm.model.transformer import ModelConfig, Transformer
from picollm.model.weights import load_model

# Values that a foreign config.json must have for its weights to mean the same here.
MEANING = {
    "model_type": "stablelm",
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 1.0,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}

# Fields that determine the function the weights compute; dropout and context matter only in training.
DECISIVE = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "tied", "rope_theta")
THEIR_NAMES = {
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "tied": "tie_word_embeddings",
}


def names(layers: int, tied: bool) -> dict[str, tuple[str, ...]]:
    """Maps each of our parameters to theirs, stacked along the first axis."""
    mapping: dict[str, tuple[str, ...]] = {
        "embedding.weight": ("model.embed_tokens.weight",),
        "norm.weight": ("model.norm.weight",),
        "norm.bias": ("model.norm.bias",),
    }
    if not tied:
        mapping["head.weight"] = ("lm_head.weight",)
    for i in range(layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        for part, other in (("norm_attention", "input_layernorm"), ("norm_mlp", "post_attention_layernorm")):
            for kind in ("weight", "bias"):
                mapping[f"{ours}.{part}.{kind}"] = (f"{theirs}.{other}.{kind}",)
        mapping[f"{ours}.attention.qkv.weight"] = tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
        mapping[f"{ours}.attention.out.weight"] = (f"{theirs}.self_attn.o_proj.weight",)
        mapping[f"{ours}.mlp.gate_up.weight"] = tuple(f"{theirs}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        mapping[f"{ours}.mlp.down.weight"] = (f"{theirs}.mlp.down_proj.weight",)
    return mapping


def export(model: Transformer, folder: Path) -> None:
    """Writes config.json and model.safetensors (float32), without the vocabulary's padding rows."""
    config, state = model.config, model.state_dict()
    tensors = {}
    for ours, theirs in names(config.n_layers, config.tied).items():
        tensor = state[ours][: config.vocab_size] if ours in ("embedding.weight", "head.weight") else state[ours]
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            tensors[name] = part.detach().cpu().float().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    write_json(
        folder / "config.json",
        {
            "architectures": ["StableLmForCausalLM"],
            **MEANING,
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": config.d_ff,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_heads,
            "max_position_embeddings": config.rope_cache,
            "training_context": config.context,  # our own field; transformers keeps fields it doesn't know
            "rope_theta": config.rope_theta,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0,
            },
            "tie_word_embeddings": config.tied,
            "bos_token_id": END_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            "dtype": "float32",
        },
    )  # fmt: skip


def load_folder(folder: Path) -> Transformer:
    """Loads the model in a folder of either layout, of any shape, in evaluation mode.

    Raises PicollmError if it is not a folder of such a model.
    """
    if not folder.is_dir():
        raise PicollmError(f"{folder} is {'a file' if folder.exists() else 'missing'}: name the folder of a model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = read_json(config)
    if not is_foreign(values):
        return load_model(weights, config)
    values = theirs(values)
    length = values.get("max_position_embeddings")
    context = values.get("training_context", length)
    shape: dict[str, Any] = {"context": context, "rope_cache": length, "dropout": 0.0}
    shape |= {name: values.get(name) for name in DECISIVE}
    missing = [THEIR_NAMES.get(name, name) for name, value in shape.items() if value is None]
    if missing:
        raise PicollmError(
            f"{config} is not of a StableLM model, it lacks {', '.join(missing)}: name a "
            "model of picollm, or one that `picollm export` wrote; only `picollm analyze` takes other families"
        )
    return load_foreign(folder, ModelConfig(**shape))


def load_foreign(folder: Path, wanted: ModelConfig) -> Transformer:
    """Loads a folder's model in evaluation mode. Raises PicollmError naming each field that differs from `wanted`."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = read_json(config)
    foreign = is_foreign(values)
    mismatches = sorted(disagreements(theirs(values) if foreign else values, MEANING if foreign else {}, wanted))
    if mismatches:
        raise PicollmError(f"{folder} can't be used as this model: {'; '.join(mismatches)}")
    if not foreign:
        model = Transformer(wanted)
        model.load_state_dict(load_model(weights, config).state_dict())
        return model.eval()
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise PicollmError(f"{weights} can't be read ({error}): copy the folder again") from None
    return assemble(tensors, wanted, weights)


def is_foreign(values: dict) -> bool:
    return "model_type" in values or "architectures" in values


def theirs(values: dict) -> dict:
    """Returns their fields under our names; those of MEANING keep theirs."""
    rope = values.get("rope_parameters") or {}
    return values | {
        **{ours: values.get(name) for ours, name in THEIR_NAMES.items()},
        "rope_theta": rope.get("rope_theta", values.get("rope_theta")),
        "partial_rotary_factor": rope.get("partial_rotary_factor", values.get("partial_rotary_factor")),
    }


def disagreements(values: dict, meaning: dict, wanted: ModelConfig) -> list[str]:
    """Lists the fields of `meaning` and DECISIVE that differ from the config."""
    expected = meaning | {name: getattr(wanted, name) for name in DECISIVE}
    heads = values.get("num_key_value_heads", wanted.n_heads)
    wrong = [] if heads == wanted.n_heads else [f"num_key_value_heads is {heads}, not {wanted.n_heads}"]
    for name, value in expected.items():
        if values.get(name) != value:
            wrong.append(f"{name} is {values.get(name)}, not {value}")
    return wrong


def assemble(tensors: dict[str, Tensor], config: ModelConfig, source: Path) -> Transformer:
    """Loads their tensors into our model. Raises PicollmError for the first that is missing or has the wrong shape."""
    model = Transformer(config)
    state = model.state_dict()
    with torch.no_grad():
        for ours, others in names(config.n_layers, config.tied).items():
            missing = [name for name in others if name not in tensors]
            if missing:
                raise PicollmError(f"{source} has no {missing[0]}: copy the folder again")
            tensor = torch.cat([tensors[name].float() for name in others])
            room = state[ours][: config.vocab_size] if ours in ("embedding.weight", "head.weight") else state[ours]
            if tensor.shape != room.shape:
                raise PicollmError(
                    f"{source}: {', '.join(others)} has shape {tuple(tensor.shape)}, not {tuple(room.shape)}"
                )
            room.copy_(tensor)
    return model.eval()
