"""The model compared with a second implementation in plain NumPy, its properties, and checkpoints that do not fit."""

import json
import math

import numpy as np
import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file

from picollm.model.checkpoints import Checkpoints
from picollm.model.transformer import Dropout, ModelConfig, Transformer, rope_tables, rotate
from picollm.model.weights import load_config, load_model, save_model, save_snapshots

SMALL = {
    "vocab_size": 97, "context": 16, "d_model": 24, "n_layers": 3, "n_heads": 3, "d_ff": 20,
    "dropout": 0.0, "tied": True, "rope_theta": 10000.0, "rope_cache": 24,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    yield
    torch.set_num_threads(threads)


def make(seed=0, sharp=False, **edits):
    """A model in evaluation mode; `sharp` draws all weights large, so that attention is far from uniform."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**SMALL | edits)).eval()
    if sharp:
        model = model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(*((0, 0.4) if parameter.ndim == 2 else (1, 0.2)))
    return model


def random_ids(batch, length, vocab=97, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def numpy_model(model, ids):
    """Computes maps [layer, head, query, key] and logits [T, V] of one sequence, token by token, head by head."""
    w = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    c = model.config
    T, K = len(ids), c.d_model // c.n_heads
    maps = np.zeros((c.n_layers, c.n_heads, T, T))
    turn = np.exp(1j * np.outer(np.arange(T), c.rope_theta ** (-2 * np.arange(K // 2) / K)))  # RoPE as complex numbers
    x = w["embedding.weight"][ids]
    for layer in range(c.n_layers):
        name = f"blocks.{layer}."
        normed = layer_norm(x, w[name + "norm_attention.weight"], w[name + "norm_attention.bias"])
        q, k, v = np.split(normed @ w[name + "attention.qkv.weight"].T, 3, axis=-1)
        heads = []
        for head in range(c.n_heads):
            own = slice(head * K, (head + 1) * K)
            z_q, z_k = ((y[:, own][:, : K // 2] + 1j * y[:, own][:, K // 2 :]) * turn for y in (q, k))
            for i in range(T):
                score = np.exp((z_q[i] * z_k[: i + 1].conj()).real.sum(-1) / math.sqrt(K))
                maps[layer, head, i, : i + 1] = score / score.sum()
            heads.append(maps[layer, head] @ v[:, own])
        x = x + np.concatenate(heads, -1) @ w[name + "attention.out.weight"].T
        normed = layer_norm(x, w[name + "norm_mlp.weight"], w[name + "norm_mlp.bias"])
        gate, up = np.split(normed @ w[name + "mlp.gate_up.weight"].T, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[name + "mlp.down.weight"].T
    return maps, layer_norm(x, w["norm.weight"], w["norm.bias"]) @ w["head.weight"][: c.vocab_size].T


@pytest.mark.parametrize("tied", [True, False])
def test_maps_and_logits_equal_a_second_implementation(tied):
    model, ids = make(sharp=True, tied=tied), random_ids(2, 24)
    maps, x = model.attention_maps(ids)
    logits = model.logits(x)
    for b in range(2):
        expected_maps, expected_logits = numpy_model(model, ids[b].numpy())
        assert expected_maps.max(-1)[:, :, 5:].mean() > 0.4, "sharp enough to notice a wrong score"
        np.testing.assert_allclose(maps[b].numpy(), expected_maps, atol=1e-4)
        np.testing.assert_allclose(logits[b].detach().numpy(), expected_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 16, 24])
def test_both_paths_compute_the_same(length):
    model, ids = make(sharp=True), random_ids(3, length)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.attention_maps(ids)[1]), model(ids), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(ids, last=True), model(ids)[:, -1], rtol=1e-12, atol=1e-12)


def test_each_row_of_attention_is_a_causal_distribution():
    maps, _ = make(sharp=True).attention_maps(random_ids(2, 16))
    assert maps.shape == (2, 3, 3, 16, 16)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 3, 16, dtype=torch.float64))
    assert (maps.triu(1) == 0).all() and (maps >= 0).all()


def test_attention_maps_are_taken_without_dropout_and_leave_the_mode():
    model, ids = make(dropout=0.5), random_ids(1, 16)
    expected = model(ids)
    model.train()
    torch.testing.assert_close(model.logits(model.attention_maps(ids)[1]), expected, rtol=1e-5, atol=1e-6)
    assert model.training and not torch.allclose(model(ids), expected, atol=1e-3)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_takes_its_share_at_random_and_keeps_the_mean(p):
    dropped = round(256 * p) / 256
    dropout, x = Dropout(p), torch.ones(301, 403, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), out) and not torch.equal(dropout(x), out)
    kept = out > 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - dropped)))
    tolerance = 4 * math.sqrt(dropped * (1 - dropped) / x.numel())
    assert 1 - kept.float().mean().item() == pytest.approx(dropped, abs=tolerance)
    flat = kept.flatten().float() - (1 - dropped)
    for lag in range(1, 17):  # eight values come from one random word
        correlation = (flat[lag:] * flat[:-lag]).mean() / (dropped * (1 - dropped))
        assert abs(correlation) < 5 / math.sqrt(x.numel()), lag
    out.sum().backward()
    assert torch.equal(x.grad > 0, kept)
    assert torch.equal(dropout.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)


def test_a_later_token_changes_nothing_before_it():
    model, ids = make(sharp=True), random_ids(1, 16)
    with torch.no_grad():
        before = model(ids)
        for t in (1, 7, 15):
            edited = ids.clone()
            edited[0, t] = (edited[0, t] + 1) % 97
            after = model(edited)
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-12, atol=1e-12)
            assert (after[:, t:] - before[:, t:]).abs().amax(-1).min() > 1e-3, "and every logit from there on"


def test_rope_scores_depend_on_the_offset_only():
    cos, sin = (table.double() for table in rope_tables(16, 512, 10000.0))
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score(i, j):
        return (rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j])).item()

    for offset in (0, 1, 5, 100):
        at = [score(start + offset, start) for start in (0, 1, 17, 400)]
        assert at == pytest.approx([at[0]] * 4, abs=1e-5)
    assert score(0, 0) == pytest.approx((q @ k).item())
    assert len({round(score(offset, 0), 3) for offset in range(20)}) > 15, "and they do depend on it"


def test_tables_turn_by_the_papers_angles():
    cos, sin = rope_tables(8, 50, 100.0)
    assert cos.shape == sin.shape == (50, 4)
    for m, i in [(0, 0), (1, 0), (1, 3), (49, 1), (33, 2)]:
        angle = m * 100.0 ** (-2 * i / 8)
        assert (cos[m, i].item(), sin[m, i].item()) == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-6)


def test_parameter_counts_of_the_full_model():
    d, f, layers = 448, 592, 8
    shape = SMALL | {"vocab_size": 50257, "d_model": d, "n_layers": layers, "n_heads": 7, "d_ff": f}
    body = layers * (4 * d * d + 3 * d * f + 2 * 2 * d) + 2 * d  # q, k, v, out; gate, up, down; norms
    assert (body, body + 50257 * d) == (12_802_944, 35_318_080)
    with torch.device("meta"):
        tied, untied = (Transformer(ModelConfig(**shape | {"tied": tied})) for tied in (True, False))
    assert tied.parameter_counts() == {"total": 35_318_080, "non_embedding": 12_802_944}
    assert untied.parameter_counts() == {"total": 35_318_080 + 50257 * d, "non_embedding": 12_802_944}
    assert sum(p.numel() for p in tied.parameters()) == 35_318_080 + (50304 - 50257) * d, "padded to 64s"


@pytest.mark.parametrize(("d_model", "tied"), [(448, False), (112, True)])
def test_initial_loss(d_model, tied):
    """After the last norm |h|^2 = d, so logits are N(0, s^2) with s^2 = d 0.02^2, and E log sum exp = ln V + s^2 / 2.

    Tied, the token's own logit is about 0.02 d: its share of the sum is e^(0.02 d) / V, nothing at this width.
    """
    model = make(vocab_size=5003, d_model=d_model, n_heads=7, context=64, rope_cache=64, tied=tied)
    rows = random_ids(32, 65, 5003)
    with torch.no_grad():
        loss = model.loss(rows[:, :-1], rows[:, 1:]).item()
    assert loss == pytest.approx(math.log(5003) + d_model * 0.02**2 / 2, abs=0.03)


@pytest.mark.parametrize("tied", [True, False])
def test_the_padded_vocabulary_never_leaks(tied):
    model, ids = make(tied=tied), random_ids(2, 16)
    with torch.no_grad():
        logits, loss = model(ids), model.loss(ids[:, :-1], ids[:, 1:])
        assert model.head.weight.shape[0] == 128 and logits.shape == (2, 16, 97)
        model.head.weight[97:] = 1e9
        assert torch.equal(model(ids), logits) and model.loss(ids[:, :-1], ids[:, 1:]) == loss
        torch.testing.assert_close(model(ids, last=True), logits[:, -1])  # a product of another shape
        assert model.attention_maps(ids)[1].shape == model.hidden(ids).shape
    torch.testing.assert_close(loss, -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).mean())


def test_lengths_beyond_the_context_but_within_the_cache():
    model = make()
    assert model(random_ids(1, 24)).shape == (1, 24, 97)
    for path in (model, model.attention_maps):
        text = refusal(path, random_ids(1, 25))
        assert "25 tokens" in text and "at most 24" in text


@pytest.mark.parametrize(("key", "value", "other"), [("d_model", 25, 3), ("d_model", 27, 3), ("rope_cache", 15, 16)])
def test_shapes_that_can_not_be(key, value, other):
    text = refusal(lambda: ModelConfig(**SMALL | {key: value}))
    assert f"model.{key} = {value} " in text and str(other) in text


@pytest.fixture
def saved(tmp_path):
    def save(**edits):
        save_model(make(**edits), tmp_path / "model.safetensors", tmp_path / "config.json")
        return tmp_path / "model.safetensors", tmp_path / "config.json"

    return save


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_whole(saved, tied):
    model, ids = make(seed=3, tied=tied), random_ids(2, 16)
    paths = saved(seed=3, tied=tied)
    first = [path.read_bytes() for path in paths]
    loaded = load_model(*paths)
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(ids), model(ids))
    assert (loaded.head.weight is loaded.embedding.weight) == tied
    stored = load_file(paths[0])
    assert ("head.weight" in stored) == (not tied) and "embedding.weight" in stored
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters())
    assert [path.read_bytes() for path in saved(seed=3, tied=tied)] == first, "equal models, equal bytes"


@pytest.mark.parametrize("fault", ["truncated", "short", "empty", "missing"])
def test_a_damaged_checkpoint_gives_a_one_line_error(saved, fault):
    weights, config = saved()
    data = bytearray(weights.read_bytes())
    if fault == "truncated":
        del data[-100:]
    else:
        del data[0 if fault == "empty" else 5 :]
    weights.write_bytes(data)
    if fault == "missing":
        weights.unlink()
    text = refusal(load_model, weights, config)
    assert str(weights) in text and "pretrain" in text
    assert ("is missing" if fault == "missing" else "is damaged") in text


def test_a_flipped_bit_gives_a_one_line_error(saved):
    weights, config = saved(n_layers=1)
    data = weights.read_bytes()
    for position in [*range(120), *range(len(data) // 2, len(data), len(data) // 20)]:  # in the header, in the weights
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        weights.write_bytes(flipped)
        assert str(weights) in refusal(load_model, weights, config)


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        ({}, {"d_ff": 22}, ["blocks.0.mlp.down.weight", "(24, 20)", "(24, 22)"]),
        ({}, {"n_layers": 4}, ["blocks.3.attention.out.weight", "none", "(24, 24)"]),
        ({}, {"n_layers": 2}, ["blocks.2.attention.out.weight", "(24, 24)", "none"]),
        ({}, {"vocab_size": 200}, ["embedding.weight", "(128, 24)", "(256, 24)"]),
        ({}, {"tied": False}, ["head.weight", "none", "(128, 24)"]),
        ({"tied": False}, {"tied": True}, ["head.weight", "(128, 24)", "none"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_field(saved, trained, asked, words):
    weights, config = saved(**trained)
    config.write_text(json.dumps(json.loads(config.read_text()) | asked))
    text = refusal(load_model, weights, config)
    assert f"{weights} does not fit {config}" in text
    assert all(word in text for word in words)


def test_a_config_with_other_fields_is_refused_by_name(saved):
    _, config = saved()
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"n_kv_heads": 1}))
    assert "unknown ['n_kv_heads']" in refusal(load_config, config)
    del values["d_ff"]
    config.write_text(json.dumps(values))
    assert "missing ['d_ff']" in refusal(load_config, config)
    config.write_text("{")
    assert f"{config} is not valid JSON" in refusal(load_config, config)


def test_snapshots_are_bfloat16_and_replace_the_run_before(tmp_path):
    manifest = tmp_path / "snapshots" / "manifest.json"
    for last in (4, 2):
        model, store = make(seed=last), Checkpoints(tmp_path / "checkpoints", {"run": last})
        for step in (0, last):
            store.snapshot(step, model)
        save_snapshots(store.snapshots(), manifest)
        entries = json.loads(manifest.read_text())["snapshots"]
        assert [entry["step"] for entry in entries] == [0, last]
        stored = load_file(manifest.parent / entries[1]["file"])
        assert torch.equal(stored["embedding.weight"], model.embedding.weight.bfloat16())
        names = {path.name for path in manifest.parent.iterdir()}
        assert names == {entry["file"] for entry in entries} | {"manifest.json"}
