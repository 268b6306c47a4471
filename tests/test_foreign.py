"""Models of other families, with random weights: maps, losses and replaced heads equal those of transformers and of
TransformerLens."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refusal

from picollm.attention.analysis import analyse_model, open_any
from picollm.attention.controls import peaked, untrained_models
from picollm.attention.sentences import CATEGORIES
from picollm.errors import PicollmError
from picollm.mechanisms import repeats
from picollm.mechanisms.control import emergence_line, lines, scores_of
from picollm.mechanisms.intervention import baseline, each_head, each_set, mean_outputs
from picollm.mechanisms.readout import divisor, linear_part
from picollm.model import foreign_folder
from picollm.model.foreign import FAMILIES, ForeignModel
from picollm.model.foreign_folder import load_foreign_model, parameters_in

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


@pytest.mark.heavy
@pytest.mark.parametrize("family", list(FAMILIES))
def test_maps_and_losses_are_their_own(family, ids):
    model = theirs(family)
    found = ForeignModel(model)
    with torch.no_grad():
        expected = model(ids, output_attentions=True)
    maps, x = found.attention_maps(ids)
    assert maps.shape == (3, 2, 4, 12, 12)
    assert torch.allclose(maps, torch.stack(expected.attentions, 1), rtol=0, atol=1e-6)
    assert torch.triu(maps, 1).abs().max() == 0 and (maps.sum(-1) - 1).abs().max() < 1e-5
    nats = -expected.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(baseline(found, ids), nats, rtol=0, atol=1e-5)
    for logits in (found.logits(x), found(ids)):
        assert torch.allclose(logits, expected.logits, rtol=0, atol=1e-5)
    assert found.config.n_layers == 2 and found.config.n_heads == 4 and found.config.context == 64


def by_hand(family, ids, heads, means):
    """Returns the nats of transformers' model, with a plain hook on the heads' columns before the output projection."""
    model = theirs(family)
    width = means.shape[-1]
    layers = model.get_submodule(FAMILIES[family].layers)
    for layer, head in heads:

        def rewrite(module, given, layer=layer, head=head):
            z = given[0].clone()
            z[..., head * width : (head + 1) * width] = means[layer, head]
            return (z, *given[1:])

        layers[layer].get_submodule(FAMILIES[family].out).register_forward_pre_hook(rewrite)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_heads_are_replaced_as_by_a_hook_written_by_hand(family, ids):
    found = ForeignModel(theirs(family))
    means = mean_outputs(found, [ids[:1], ids[1:]])
    whole, each = baseline(found, ids), each_head(found, ids, "mean", means)
    for h, (layer, head) in enumerate(np.ndindex(2, 4)):
        assert torch.allclose(each[h], by_hand(family, ids, [(layer, head)], means), rtol=0, atol=1e-5)
    assert (each - whole).abs().amax((1, 2)).min() > 1e-3, "each head does something"
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    (several,) = each_set(found, ids, [mask], means)
    assert torch.allclose(several, by_hand(family, ids, [(0, 1), (0, 3), (1, 0)], means), rtol=0, atol=1e-5)
    nothing = each_head(found, ids, "zero", means)
    assert torch.allclose(nothing[5], by_hand(family, ids, [(1, 1)], torch.zeros_like(means)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_copying_is_what_a_head_alone_writes_through_the_last_norm(family):
    """Passes each head's output alone through the model's projection and norm, which keeps the order of the logits."""
    found, L = ForeignModel(theirs(family)), 6
    generator = np.random.default_rng(3)
    copies = np.stack([generator.permutation(np.arange(3, 300))[:L] for _ in range(4)])
    ids = torch.from_numpy(np.concatenate([np.ones((4, 1), int), copies, copies], 1))
    share = repeats.copying(found, ids.numpy(), CPU)
    x, calls = found.start(ids)
    bias = getattr(found.norm, "bias", None)
    for layer, block in enumerate(found.layers):
        z = block.outputs(x, calls)
        for head in range(4):
            alone = torch.zeros_like(z)
            alone[:, head] = z[:, head]
            nothing = block.out(torch.zeros_like(z).transpose(1, 2).flatten(2))
            written = block.out(alone.transpose(1, 2).flatten(2)) - nothing  # without its bias
            normed = found.norm(1e3 * written)
            logits = found.head(normed if bias is None else normed - bias).detach()
            for s in range(4):
                wins = []
                for t in range(L + 1, 2 * L):
                    others = [i for i in copies[s] if i not in (copies[s][t - L], copies[s][t - L - 1])]
                    wins += [float(logits[s, t, copies[s][t - L]] > logits[s, t, i]) for i in others]
                assert share[s, 4 * layer + head] == pytest.approx(np.mean(wins), abs=1e-9)
        x = block(x, calls)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_last_norm_is_a_linear_map_over_one_number(family):
    norm = ForeignModel(theirs(family)).norm
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        found = linear_part(norm, x) / divisor(norm, x)[:, None]
        assert torch.allclose(found + getattr(norm, "bias", 0), norm(x), atol=1e-5)


LENS = {
    "gpt2": ("gpt2", dict(normalization_type="LN", positional_embedding_type="standard", act_fn="gelu_new")),
    "gpt_neox": ("neox", dict(normalization_type="LN", positional_embedding_type="rotary", act_fn="gelu",
                              rotary_dim=2, parallel_attn_mlp=True)),
    "llama": ("llama", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                            rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                            n_key_value_heads=2)),
    "mistral": ("mistral", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                                rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                                n_key_value_heads=2)),
    "qwen2": ("qwen2", dict(normalization_type="RMS", positional_embedding_type="rotary", act_fn="silu",
                            rotary_dim=8, rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True,
                            n_key_value_heads=2)),
}  # fmt: skip


@pytest.mark.parametrize("family", list(LENS))
def test_transformer_lens_computes_the_same(family, ids):
    """Converts the same random weights with TransformerLens, into its own layers."""
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained import weight_conversions

    model = theirs(family)
    name, more = LENS[family]
    cfg = lens.HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_vocab=300, eps=epsilon_of(model.config),
        d_mlp=4 * 32 if family == "gpt2" else 64, device="cpu", dtype=torch.float32, **more,
    )  # fmt: skip
    hooked = lens.HookedTransformer(cfg)
    state = getattr(weight_conversions, f"convert_{name}_weights")(model, cfg)
    hooked.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    with torch.no_grad():
        logits, cache = hooked.run_with_cache(ids)
    maps, x = ForeignModel(model).attention_maps(ids)
    assert torch.allclose(torch.stack([cache["pattern", layer] for layer in range(2)], 1), maps, rtol=0, atol=1e-5)
    assert torch.allclose(logits, ForeignModel(model).logits(x), rtol=0, atol=1e-4)


def epsilon_of(config):
    names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
    return next(getattr(config, name) for name in names if hasattr(config, name))


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
    for block in found.layers:
        block.out.register_forward_pre_hook(lambda module, given: seen.append(given[0].unflatten(-1, (4, -1))))
    found(ids)
    expected = torch.stack([z.mean((0, 1)) for z in seen])
    for block in found.layers:
        block.out._forward_pre_hooks.clear()
    assert torch.allclose(mean_outputs(found, [ids[:1], ids[1:]]), expected, atol=1e-6)


def test_untrained_models_are_other_models_and_can_be_as_peaked(ids):
    found = ForeignModel(theirs("gpt_neox"))
    first, second = untrained_models(found, models=2, seed=1)
    assert not torch.equal(baseline(first, ids), baseline(second, ids))
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


@pytest.mark.heavy
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
    assert "no known heads for 'bert'" in refusal(lines, "bert", model, 1, CPU)
    small = ForeignModel(theirs("gpt2"))
    assert "has no head L5H1" in refusal(lines, "gpt2", small, 1, CPU)


def test_a_folder_that_lacks_something_gives_a_one_line_error(tmp_path):
    folder = saved(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin, a pickle, which is never read: convert" in refusal(load_foreign_model, folder)
    (folder / "pytorch_model.bin").unlink()
    assert "has no model.safetensors" in refusal(load_foreign_model, folder)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(load_foreign_model, tmp_path / "empty")
    lost = saved(tmp_path / "lost")
    (lost / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(open_any, str(lost))
    (lost / "tokenizer.json").write_text("{")
    assert "tokenizer.json can't be read" in refusal(open_any, str(lost))
    parts = saved(tmp_path / "parts", "llama", sharded=True)
    files = sorted(parts.glob("*.safetensors"))
    assert len(files) > 2
    files[1].unlink()
    said = refusal(load_foreign_model, parts)
    assert f"lacks 1 of its {len(files)} weight files, the first is {files[1].name}: copy the complete folder" in said
    files[0].write_bytes(files[0].read_bytes()[:7])
    (parts / "model.safetensors.index.json").unlink()
    assert "has no model.safetensors" in refusal(load_foreign_model, parts)
    cut = saved(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    assert "header is longer than the file" in refusal(load_foreign_model, cut)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "t5"}, "is an encoder-decoder (t5): only decoders are examined"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "is an encoder (BertForMaskedLM): only decoders",
        ),
        ({"model_type": "opt"}, "is of the family 'opt'; supported: gpt2"),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}},
            "needs its own code, which is never",
        ),
    ],
)
def test_a_model_of_another_kind_gives_a_one_line_error(tmp_path, values, words):
    folder = saved(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "own.py").write_text("raise SystemExit('code of the folder ran')")
    assert words in refusal(load_foreign_model, folder)


def test_bf16_weights_are_read_as_float32(tmp_path, ids):
    theirs("llama").bfloat16().save_pretrained(tmp_path)
    found = load_foreign_model(tmp_path)
    assert found.head.weight.dtype == torch.float32 and found.config.family == "llama"
    model = theirs("llama")  # not the converted model made float again: its rotary table would stay rounded
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
        assert torch.allclose(found(ids), model(ids).logits, atol=1e-5)


def test_a_tokenizer_of_another_model_gives_a_one_line_error(tmp_path):
    folder = saved(tmp_path / "model")
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(301)}, unk_token="w0"))
    other.save(str(folder / "tokenizer.json"))
    assert "its tokenizer has 301 ids, the model's vocabulary 300: they don't belong" in refusal(open_any, str(folder))


def test_attention_without_weights_gives_a_one_line_error(ids):
    model = theirs("gpt2")
    model.set_attn_implementation("sdpa")
    said = refusal(ForeignModel(model).attention_maps, ids)
    assert said == "layer 0: its attention returns no weights; they need attn_implementation='eager'"
    with pytest.raises(PicollmError, match="a sequence of 65 tokens: the model accepts at most 64"):
        ForeignModel(model).attention_maps(torch.ones(1, 65, dtype=torch.long))


def test_too_little_memory_is_reported_before_a_weight_is_read(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model")
    number = sum(p.numel() for p in theirs("gpt2").parameters())
    assert parameters_in(folder) == number
    monkeypatch.setattr(foreign_folder.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * number - 1))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    assert re.search(
        r"billion parameters take 0\.0 GiB in float32.* are free here$", refusal(load_foreign_model, folder)
    )


class Refusing(BaseHTTPRequestHandler):
    """A hub with only two repositories: one gated, one not public."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        gated = "gated" in self.path
        self.send_response(200 if self.path == "/" else 403 if gated else 401)
        if self.path != "/":
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD


@pytest.mark.heavy
def test_the_hubs_refusals_give_a_one_line_error(tmp_path):
    """Runs in a separate process, because the hub's client reads its settings once."""
    script = """
import sys
from picollm.errors import PicollmError
from picollm.model.foreign_folder import folder_of
for name in sys.argv[1:]:
    try:
        folder_of(name)
    except PicollmError as error:
        print(error)
"""

    def said(address, *names):
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", script, *names], env=os.environ | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    gated, unknown, name = said(f"http://127.0.0.1:{server.server_port}", "some/gated", "some/other", "no such folder")
    server.shutdown()
    server.server_close()
    assert "some/gated is gated: accept its terms" in gated and "or name a folder on this machine" in gated
    assert "some/other is unknown on the hub, or private: check it, log in" in unknown
    assert name.startswith("no such folder is not a folder here and can't be fetched")
    (silent,) = said("http://127.0.0.1:9", "gpt2")
    assert "gpt2 is not a folder here, and the hub (http://127.0.0.1:9) can't be reached" in silent
