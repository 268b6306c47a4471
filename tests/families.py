"""Small models of every family that picollm reads, with random weights, as transformers makes them."""

import pytest
import torch

tokenizers = pytest.importorskip("tokenizers", reason="pip install -e '.[models]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[models]'")

SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
MORE = {
    "gpt2": {}, "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2},
    "gpt_neox": {"intermediate_size": 64}, "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "stablelm": {"intermediate_size": 64, "num_key_value_heads": 4},
    "gemma": {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 8},
}  # fmt: skip


def config_of(family):
    return transformers.AutoConfig.for_model(family, **SHAPE | MORE[family])


def theirs(family, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").eval()
    with torch.no_grad():  # sharper than at initialisation
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model
