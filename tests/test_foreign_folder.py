"""Folders of other families' models: what is read and analysed, and what is refused in one line."""

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
from families import theirs, tokenizers, transformers
from refusals import refusal

from picollm.attention.analysis import analyse_model, open_any
from picollm.attention.sentences import CATEGORIES
from picollm.errors import PicollmError
from picollm.mechanisms.public_control import emergence_line, lines, scores_of
from picollm.model import foreign_folder
from picollm.model.foreign import ForeignModel
from picollm.model.foreign_folder import load_foreign_model, parameters_in

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(3, 300, (3, 12)))


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
        r"billion parameters take 0\.0 GiB in float32.* are free here: free some", refusal(load_foreign_model, folder)
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
