"""Models of other families, by random weights: their maps and losses are transformers' own, and heads are removed "
"whole."""

import json

import numpy as np
import pytest
import torch
from refusals import refusal

from picollm.attention.analysis import analyse_model, open_any
from picollm.attention.controls import peaked, untrained_models
from picollm.attention.sentences import CATEGORIES
from picollm.mechanisms.control import emergence_line, lines, scores_of
from picollm.model.foreign import FAMILIES, ForeignModel, load_foreign_model

tokenizers = pytest.importorskip("tokenizers", reason="pip install -e '.[models]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[models]'")
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
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


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(3, 300, (3, 12)))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_maps_and_losses_are_their_own(family, ids):
    model = theirs(family)
    found = ForeignModel(model)
    with torch.no_grad():
        expected = model(ids, output_attentions=True)
    maps, logits = found.attention_maps(ids)
    assert maps.shape == (3, 2, 4, 12, 12) and torch.equal(maps, torch.stack(expected.attentions, 1))
    assert torch.triu(maps, 1).abs().max() == 0 and (maps.sum(-1) - 1).abs().max() < 1e-5
    nats = -expected.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(found.nats(ids), nats, atol=1e-5) and torch.allclose(logits, expected.logits, atol=1e-5)
    assert found.config.n_layers == 2 and found.config.n_heads == 4 and found.config.context == 64


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_head_is_removed_as_if_its_columns_of_the_projection_were(family, ids):
    found = ForeignModel(theirs(family))
    nothing = torch.zeros_like(found.mean_outputs([ids]))
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[1, 2] = True
    without = found.without(ids, mask, nothing)
    assert torch.allclose(found.without(ids, torch.zeros_like(mask), nothing), found.nats(ids), atol=1e-6)
    out = found.layers[1].get_submodule(found.family.out)
    width = nothing.shape[-1]
    with torch.no_grad():
        if type(out).__name__ == "Conv1D":
            out.weight[2 * width : 3 * width] = 0
        else:
            out.weight[:, 2 * width : 3 * width] = 0
    assert torch.allclose(found.nats(ids), without, atol=1e-5)
    assert not torch.allclose(ForeignModel(theirs(family)).nats(ids), without, atol=1e-3)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_are_scaled_layer_by_layer(family, ids):
    found, factor = ForeignModel(theirs(family)), 2.5
    before = found.attention_maps(ids)[0][:, 0].double()
    found.scale_logits(0, factor)
    after = found.attention_maps(ids)[0][:, 0].double()
    expected = (before.log() * factor).softmax(-1)
    assert torch.allclose(after, expected, atol=1e-5)


def test_means_are_over_all_positions(ids):
    found = ForeignModel(theirs("llama"))
    seen = []
    with found.hooked(lambda layer, z: seen.append((layer, z)) or z):
        found.nats(ids)
    assert [layer for layer, _ in seen] == [0, 1]
    expected = torch.stack([z.mean((0, 1)) for _, z in seen])
    assert torch.allclose(found.mean_outputs([ids[:1], ids[1:]]), expected, atol=1e-6)


def test_untrained_models_are_other_models_and_can_be_as_peaked(ids):
    found = ForeignModel(theirs("gpt_neox"))
    first, second = untrained_models(found, models=2, seed=1)
    assert not torch.equal(first.nats(ids), second.nats(ids))
    sentences = [row.tolist() for row in ids]
    flat = first.attention_maps(ids)[0]
    sharp = peaked(first, [0.4, 0.4], sentences, CPU).attention_maps(ids)[0]
    assert sharp[:, :, :, 5:].max() > 2 * flat[:, :, :, 5:].max()


def saved(folder, family="gpt2", sharded=False):
    theirs(family).save_pretrained(folder, safe_serialization=True, max_shard_size="40KB" if sharded else "1GB")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {char: i + 3 for i, char in enumerate(sorted(alphabet))} | {"<u>": 0, "<s>": 1, "</s>": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<u>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        tokenizers.decoders.ByteLevel(),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sentences_file(tmp_path):
    lines = {
        name: {"title": name.title(), "sentences": [f"{name} sat on it.", f"Was {name} ill?"]} for name in CATEGORIES
    }
    path = tmp_path / "sentences.yaml"
    path.write_text(json.dumps(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("family", "sharded"), [("gpt2", False), ("llama", True)])
def test_a_folder_of_another_family_is_analysed(tmp_path, family, sharded):
    folder = saved(tmp_path / "model", family, sharded)
    assert len(list(folder.glob("*.safetensors"))) > 1 or not sharded
    model, tokenizer = open_any(str(folder))
    assert tokenizer.start == 1 and tokenizer.start_name == "<s>"
    ids, spans = tokenizer.pieces("The cat")
    assert len(ids) == 7 and spans[4] == (4, 5)
    sections = {
        "heads": dict(kappa=0.25, content=0.15, broad=0.8, sink=0.1, window=4, bootstraps=50, null_models=1, seed=1),
        "clusters": dict(max_k=3, bootstraps=5, seed=1),
    }
    heads, families, _ = analyse_model(
        model, sentences_file(tmp_path), "plain", tmp_path / "out", device=CPU, tokenizer=tokenizer, **sections
    )
    assert len(heads["heads"]) == 8 and heads["null"]["heads"] == 8 and len(families["heads"]) == 8
    json.dumps([heads, families], allow_nan=False)


def test_the_public_control_runs_to_its_end_on_random_weights(tmp_path, capsys):
    shape = {"vocab_size": 300, "n_embd": 48, "n_layer": 8, "n_head": 12, "n_positions": 128}
    torch.manual_seed(0)
    model = ForeignModel(
        transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model("gpt2", **shape), attn_implementation="eager"
        )
    )
    told = lines("gpt2", model, 1, CPU)
    known = [line for line in told if line.startswith("  L")]
    assert len(known) == 9 and all("not found" in line and "of 96" in line for line in known)
    assert "Wang et al. 2022" in told[0] and sum(line.startswith("largest") for line in told) == 3
    scores = scores_of(model, 1, CPU)
    assert all(abs(values).max() < 0.05 for values in scores.values()), "random weights have no such heads"
    assert "0 induction" in emergence_line("step0", model, 1, CPU)
    assert "nothing is known here of 'bert'" in refusal(lines, "bert", model, 1, CPU)
    small = ForeignModel(theirs("gpt2"))
    assert "has no head L5H1" in refusal(lines, "gpt2", small, 1, CPU)


def test_what_can_not_be_examined_is_one_line(tmp_path):
    folder = saved(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin, a pickle, which is never read: convert" in refusal(load_foreign_model, str(folder))
    (folder / "pytorch_model.bin").unlink()
    assert "it has no *.safetensors" in refusal(load_foreign_model, str(folder))
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(load_foreign_model, str(tmp_path / "empty"))
    for kind, words in (("t5", "is an encoder-decoder"), ("bert", "of the family 'bert'; known are gpt2")):
        other = saved(tmp_path / kind)
        (other / "config.json").write_text(json.dumps({"model_type": kind}))
        assert words in refusal(load_foreign_model, str(other))
    lost = saved(tmp_path / "lost")
    (lost / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(open_any, str(lost))
    (lost / "tokenizer.json").write_text("{")
    assert "tokenizer.json can't be read" in refusal(open_any, str(lost))
