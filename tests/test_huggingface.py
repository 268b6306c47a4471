"""The same weights give the same numbers in two independent implementations; a mismatch is named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file

from picollm.model.huggingface import export, load_folder, load_foreign
from picollm.model.transformer import ModelConfig, Transformer
from picollm.model.weights import save_model

ROOT = Path(__file__).parents[1]
SHAPE = {"vocab_size": 203, "context": 24, "d_model": 56, "n_layers": 3, "n_heads": 7, "d_ff": 74, "dropout": 0.1,
         "tied": True, "rope_theta": 10000.0, "rope_cache": 48}  # fmt: skip


def make(**edits):
    torch.manual_seed(3)
    model = Transformer(ModelConfig(**SHAPE | edits)).eval()
    with torch.no_grad():  # far from the initial state: norms and biases that matter, scores that are not all equal
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if "norm" in name else 8)
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture
def ids():
    return torch.randint(203, (4, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.heavy
@pytest.mark.parametrize("tied", [True, False])
def test_hugging_face_computes_the_same_logits(tmp_path, ids, tied):
    transformers = pytest.importorskip("transformers")
    model = make(tied=tied, rope_theta=5000.0)
    export(model, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(other).__name__ == "StableLmForCausalLM"
    assert sum(p.numel() for p in other.parameters()) == model.parameter_counts()["total"]
    with torch.no_grad():
        ours, theirs = model(ids), other(ids).logits
    assert ours.std() > 0.5 and (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_from_both_layouts(tmp_path, ids, tied):
    model = make(tied=tied)
    export(model, tmp_path / "theirs")
    save_model(model, tmp_path / "ours" / "model.safetensors", tmp_path / "ours" / "config.json")
    for name in ("ours", "theirs"):
        wanted = replace(model.config, rope_cache=64, dropout=0.0)
        again = load_foreign(tmp_path / name, wanted)
        assert again.config == wanted and not again.training and torch.equal(again(ids), model(ids))
        alone = load_folder(tmp_path / name)  # the file contains its shape
        assert not alone.training and torch.equal(alone(ids), model(ids))
        assert replace(alone.config, dropout=model.config.dropout) == model.config


def test_what_does_not_fit_is_named_field_by_field(tmp_path):
    model = make()
    export(model, tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    edits = {
        "hidden_size": 64,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.25},
    }
    config.write_text(json.dumps(values | edits))
    text = refusal(load_foreign, tmp_path, model.config)
    for words in ("d_model is 64, not 56", "num_key_value_heads is 1", "rope_theta is 1000000.0",
                  "partial_rotary_factor is 0.25, not 1.0"):  # fmt: skip
        assert words in text
    assert "d_ff" not in text
    del values["hidden_size"]
    config.write_text(json.dumps(values))
    assert "it lacks hidden_size" in refusal(load_folder, tmp_path)
    config.write_text(json.dumps(values | {"model_type": "llama"}))
    assert "model_type is llama, not stablelm" in refusal(load_foreign, tmp_path, model.config)
    save_model(model, tmp_path / "model.safetensors", config)
    text = refusal(load_foreign, tmp_path, ModelConfig(**SHAPE | {"n_heads": 14, "vocab_size": 50257}))
    assert "n_heads is 7, not 14" in text and "vocab_size is 203" in text


def test_damaged_weights_give_a_one_line_error(tmp_path):
    model = make()
    export(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    assert f"has no {name}" in refusal(load_foreign, tmp_path, model.config)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, weights)
    assert "has shape (167, 56), not (168, 56)" in refusal(load_foreign, tmp_path, model.config)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "can't be read" in refusal(load_foreign, tmp_path, model.config)
    weights.unlink()
    assert "can't be read" in refusal(load_foreign, tmp_path, model.config)


@pytest.mark.parametrize("tied", [True, False])
def test_transformer_lens_computes_the_same_by_the_loader_in_the_docs(tmp_path, ids, tied):
    pytest.importorskip("transformer_lens")
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)[1]
    names = {}
    exec(block, names)
    model = make(tied=tied)
    save_model(model, tmp_path / "model.safetensors", tmp_path / "config.json")
    with torch.no_grad():
        logits, cache = names["hooked"](str(tmp_path)).run_with_cache(ids)
        maps, x = model.attention_maps(ids)
        ours = model.logits(x)
    assert (logits - ours).abs().max() < 1e-4
    for layer in range(3):
        assert (cache["pattern", layer] - maps[:, layer]).abs().max() < 1e-5
