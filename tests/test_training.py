"""Training a tiny model: it is reproducible to the bit, learns what can be learnt, and says if it can't continue."""

import logging
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from picollm.data.feeding import Feed
from picollm.data.loading import Order
from picollm.data.ngram import ngram_losses
from picollm.errors import PicollmError
from picollm.hardware import cxx_compiler
from picollm.model import device, loss
from picollm.model.checkpoints import Checkpoints
from picollm.model.device import Compiled, autocast, set_up
from picollm.model.loss import SampledSoftmax, evaluate
from picollm.model.training import Trainer, TrainingConfig, optimizers, train
from picollm.model.transformer import ModelConfig, Transformer

pytestmark = pytest.mark.usefixtures("one_thread")

V, CONTEXT, CPU = 97, 16, torch.device("cpu")
SHAPE = {
    "vocab_size": V, "context": CONTEXT, "d_model": 28, "n_layers": 2, "n_heads": 7, "d_ff": 36,
    "dropout": 0.0, "tied": True, "rope_theta": 10000.0, "rope_cache": 32,
}  # fmt: skip
RECIPE = {
    "length": 6, "unit": "steps", "batch_rows": 4, "accumulate": 1, "processes": 1, "loading": "gather",
    "optimizer": "adamw", "lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1, "muon_weight_decay": 0.1,
    "warmup": 0.1, "final_lr": 0.1, "clip": 1.0,
    "head_common": 0, "head_sampled": 0, "autocast": "none", "compile": "none", "validate_every": 3, "patience": 0,
    "checkpoint_every": 3, "checkpoint_minutes": 0.0, "snapshots": False, "seed": 1,
}  # fmt: skip


def recipe(**edits):
    return TrainingConfig(**RECIPE | edits)


def random_rows(n, vocab=V, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (n, CONTEXT + 1)).astype(np.uint16)


def chain_rows(n, seed=0):
    """x -> 5 x + 3 modulo 97 from a random start: uniform as single tokens, certain given the token before."""
    rows = np.random.default_rng(seed).integers(0, V, (n, CONTEXT + 1))
    for t in range(CONTEXT):
        rows[:, t + 1] = (5 * rows[:, t] + 3) % V
    return rows.astype(np.uint16)


def run(rows=None, validation=None, checkpoints=None, shape=None, **edits):
    """Returns a finished trainer."""
    rows = random_rows(24) if rows is None else rows
    trainer = Trainer(ModelConfig(**SHAPE | (shape or {})), recipe(**edits), rows, CPU)
    train(trainer, random_rows(7, seed=1) if validation is None else validation, checkpoints)
    return trainer


def bits(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def losses(result):
    return [(row["loss"], row["grad_norm"], row["validation_loss"]) for row in result.curve]


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"optimizer": "muon"},
        {"shape": {"dropout": 0.2}},
        {"autocast": "all"},
        {"head_common": 20, "head_sampled": 10},
    ],
)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(edits):
    first, second, other = run(**edits), run(**edits), run(**edits, seed=2)
    assert bits(first.model) == bits(second.model) and losses(first) == losses(second)
    assert bits(first.model) != bits(other.model) and losses(first) != losses(other)


@pytest.mark.heavy
@pytest.mark.parametrize("head", [{}, {"head_common": 0, "head_sampled": 48}], ids=["whole", "sampled"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_can_be_learnt_is_learnt(optimizer, head):
    validation = chain_rows(40, seed=1)
    result = run(chain_rows(400), validation, length=150, batch_rows=16, optimizer=optimizer, validate_every=90, **head)
    assert result.curve[0]["loss"] == pytest.approx(math.log(V), abs=0.1 if not head else 0.3)
    unigram = ngram_losses(chain_rows(400), validation, V)["unigram"]
    assert unigram > 4.5, "single tokens say nothing"
    assert result.best["loss"] < unigram / 2
    assert result.curve[-1]["validation_loss"] == evaluate(result.model, validation, CPU)


def test_each_kind_of_weight_decays_at_its_own_rate():
    """Without a gradient a step only decays weights, by rate x decay, but not norms."""
    given = recipe(optimizer="muon", lr=0.1, muon_lr=0.2, weight_decay=0.5, muon_weight_decay=0.4)
    model = fresh_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers(model, given):
        optimizer.step()
    for name, parameter in model.named_parameters():
        hidden = name.startswith("blocks.") and parameter.ndim == 2
        kept = 0.92 if hidden else 0.95 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)


def test_the_curve_holds_what_was_measured():
    result = run(length=7, validate_every=3)
    assert [row["step"] for row in result.curve] == list(range(7))
    assert [row["tokens"] for row in result.curve] == [(step + 1) * 4 * CONTEXT for step in range(7)]
    assert [row["step"] for row in result.curve if row["validation_loss"] is not None] == [2, 5, 6]
    assert result.curve[-1]["validation_loss"] == evaluate(result.model, random_rows(7, seed=1), CPU)
    assert result.best["loss"] == min(row["validation_loss"] for row in result.curve if row["validation_loss"])
    assert all(0 <= row["data_wait"] <= 1 and row["tokens_per_second"] > 0 for row in result.curve)


def test_the_best_weights_are_kept_and_patience_ends_a_run():
    """Random tokens can be memorised, which makes other random tokens more and more surprising."""
    validation = random_rows(7, seed=1)
    long = run(validation=validation, length=60, validate_every=5)
    assert long.best["step"] < 30 < long.step
    best = run(validation=validation, length=60, validate_every=5, patience=2)
    assert best.step == best.best["step"] + 2 * 5 and best.best == long.best
    assert losses(best) == losses(long)[: best.step]
    model = fresh_model()
    model.load_state_dict(best.best_weights, strict=False)
    assert evaluate(model, validation, CPU) == best.best["loss"]


@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_in_parts_is_the_same_step(parts):
    whole, several = run(length=4), run(length=4, accumulate=parts)
    assert [row["loss"] for row in several.curve] == pytest.approx([row["loss"] for row in whole.curve], rel=1e-5)
    with pytest.raises(PicollmError, match="pretrain.batch_rows = 4.*multiple of 3"):
        run(accumulate=3)


def fresh_model(seed=1, **shape):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(**SHAPE | shape)).eval()


@pytest.mark.parametrize(
    ("warmup", "final_lr", "steps"), [(0.1, 0.1, 100), (0.25, 0.0, 40), (0.0, 0.5, 30), (1.0, 0.1, 20)]
)
def test_the_rate_is_a_line_and_then_half_a_cosine(warmup, final_lr, steps):
    config = recipe(warmup=warmup, final_lr=final_lr)
    rates = np.array([config.learning_rate_share(step, steps) for step in range(steps + 1)])
    rise = max(1, round(warmup * steps))
    np.testing.assert_allclose(rates[:rise], np.linspace(1 / rise, 1, rise))
    fall = rates[rise:]
    if rise < steps:
        wave = np.cos(np.linspace(0, np.pi / 2, len(fall))) ** 2  # half a cosine, by the half-angle formula
        np.testing.assert_allclose(fall, final_lr + (1 - final_lr) * wave, atol=1e-12)
        assert fall[-1] == pytest.approx(final_lr)


def test_training_uses_the_scheduled_rate():
    result = run(length=20, lr=0.003)
    config = recipe(length=20)
    assert [row["lr"] for row in result.curve] == pytest.approx(
        [0.003 * config.learning_rate_share(step, 20) for step in range(20)]
    )


def test_each_step_is_one_gradient_of_one_batch_at_its_rate():
    rows = random_rows(24)
    trainer = Trainer(ModelConfig(**SHAPE), recipe(length=10, warmup=1.0, seed=3), rows, CPU)
    model, stream = fresh_model(), iter(Feed(rows, Order(len(rows), 4, 3), CPU, "gather"))
    for step in range(3):
        model.load_state_dict(trainer.model.state_dict())
        before = trainer.model.norm.weight.detach().clone()
        trainer.advance()
        model.zero_grad()
        ids = next(stream)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        assert (trainer.curve[step]["loss"], trainer.curve[step]["grad_norm"]) == pytest.approx((loss.item(), norm))
        if step == 0:  # Adam moves every weight by the rate at first; norms do not decay
            moved = (trainer.model.norm.weight - before).abs().detach()
            assert moved.numpy() == pytest.approx(RECIPE["lr"] / 10, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, [0, 1]), (5, [0, 1, 2, 4, 5]), (8, [0, 1, 2, 4, 8]), (9, [0, 1, 2, 4, 8, 9])]
)
def test_snapshots_are_taken_at_powers_of_two_and_at_the_end(tmp_path, length, expected):
    store = Checkpoints(tmp_path, {})
    result = run(length=length, seed=5, snapshots=True, checkpoints=store)
    taken = {step: load_file(path) for step, path in store.snapshots().items()}
    assert list(taken) == expected
    for step, model in ((0, fresh_model(seed=5)), (length, result.model)):
        assert all(torch.equal(taken[step][name], p.bfloat16()) for name, p in model.named_parameters())
    assert len({path.read_bytes() for path in store.snapshots().values()}) == len(expected)
    none = Checkpoints(tmp_path / "none", {})
    assert bits(run(length=length, seed=5, checkpoints=none).model) == bits(result.model) and not none.snapshots()


def test_epochs_count_whole_batches():
    result = run(random_rows(10), length=3, unit="epochs", batch_rows=4)
    assert result.steps == len(result.curve) == 6
    with pytest.raises(PicollmError, match="pretrain.batch_rows = 4"):
        run(random_rows(3), unit="epochs")
    with pytest.raises(PicollmError, match="pretrain.batch_rows = 4"):
        run(random_rows(3))


@pytest.mark.parametrize("length", [9, 1])
def test_a_nan_loss_stops_the_run(length):
    with pytest.raises(PicollmError) as caught:
        run(length=length, lr=1e30, validate_every=100)
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and "at step 1:" in text and "lower pretrain.lr" in text


@pytest.mark.parametrize(("vocab", "n", "at_once"), [(V, 7, 3), (V, 1, 16), (V, 16, 16), (9001, 5, 2)])
def test_evaluation_is_the_mean_over_all_tokens(monkeypatch, vocab, n, at_once):
    monkeypatch.setitem(loss.EVALUATION_TOKENS, "cpu", at_once * CONTEXT)
    model = fresh_model(vocab_size=vocab, dropout=0.3, tied=False).train()
    with torch.no_grad():
        model.head.weight.mul_(30)  # far from uniform
    rows = random_rows(n, vocab)
    found = evaluate(model, rows, CPU)
    assert model.training
    model.eval().double()
    total = 0.0
    for row in rows.astype(np.int64):
        logits = model(torch.from_numpy(row[None, :-1]))[0].detach().numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total -= np.log(probabilities[np.arange(CONTEXT), row[1:]]).mean()
    assert found == pytest.approx(total / n, rel=1e-5)
    assert abs(found - math.log(vocab)) > 0.3


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_losses_over_slices_are_cross_entropies_even_where_exponentials_overflow(scale):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 16, generator=generator) * scale**0.5 for n in (40, 5000))
    targets = torch.randint(0, 5000, (40,), generator=generator)
    expected = torch.nn.functional.cross_entropy((x @ weight.T).double(), targets, reduction="none")
    assert (expected.max() > 88) == (scale > 1)
    assert loss.token_losses(x, weight, targets).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_the_sampled_loss_is_that_of_its_definition():
    counts = np.random.default_rng(0).integers(0, 50, V)
    head = SampledSoftmax(counts, common=20, sampled=15, seed=7)
    x, weight = torch.randn(40, 8), torch.randn(V, 8)
    targets, candidates = torch.arange(40), head.candidates(3)
    common, drawn = candidates[:20].tolist(), candidates[20:].tolist()
    assert sorted(counts[common]) == sorted(counts)[-20:] and len(set(common + drawn)) == 35
    assert drawn != head.candidates(4)[20:].tolist() and torch.equal(candidates, head.candidates(3))
    expected = []
    for row, target in zip(x.double(), targets.tolist(), strict=True):
        terms = (weight.double() @ row).exp().tolist()
        total = terms[target] + sum(terms[i] for i in common if i != target)
        total += sum(terms[i] for i in drawn if i != target) * (V - 20) / 15
        expected.append(math.log(total) - math.log(terms[target]))
    assert head.loss(x, weight, targets, candidates).item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.heavy
def test_the_sampled_normaliser_is_right_on_average_and_exact_with_all_rows():
    x, weight, targets = torch.randn(30, 8), torch.randn(V, 8), torch.arange(30)
    whole = torch.nn.functional.cross_entropy(x @ weight.T, targets).item()
    every = SampledSoftmax(np.arange(V), common=0, sampled=V, seed=1)
    assert every.loss(x, weight, targets, every.candidates(0)).item() == pytest.approx(whole, rel=1e-5)
    some = SampledSoftmax(np.arange(V), common=30, sampled=30, seed=1)
    sums = [some.loss(x[:1], weight, targets[:1], some.candidates(step)).double().exp() for step in range(4000)]
    exact = torch.nn.functional.cross_entropy(x[:1].double() @ weight.T.double(), targets[:1]).exp()
    spread = torch.stack(sums).std() / math.sqrt(len(sums))
    # If the target itself is drawn, its place stays empty: a bias of a 1 / sampled part of the rare terms.
    assert abs(torch.stack(sums).mean() - exact) < 4 * spread + exact / 30


def slow_ngrams(train_rows, test_rows, vocab):
    unigram = Counter(int(w) for row in train_rows for w in row[1:])
    pairs = Counter((int(v), int(w)) for row in train_rows for v, w in zip(row, row[1:], strict=False))
    n, first, types = sum(unigram.values()), Counter(), Counter()
    for (v, _), count in pairs.items():
        first[v] += count
        types[v] += 1
    one, two = [], []
    for row in test_rows:
        for v, w in zip(map(int, row), map(int, row[1:]), strict=False):
            p = (unigram[w] + 1) / (n + vocab)
            one.append(-math.log(p))
            two.append(-math.log((pairs[v, w] + types[v] * p) / (first[v] + types[v]) if v in first else p))
    return {"unigram": np.mean(one), "bigram": np.mean(two)}


@pytest.mark.parametrize(("vocab", "n"), [(V, 40), (V, 3), (7, 1), (50257, 20)])
def test_ngrams_equal_a_slow_dictionary(vocab, n):
    train_rows, test_rows = random_rows(n, vocab) // 2, random_rows(9, vocab, seed=5)
    test_rows[:3] = train_rows[:3][: len(train_rows)] if n >= 3 else test_rows[:3]
    assert ngram_losses(train_rows, test_rows, vocab) == pytest.approx(slow_ngrams(train_rows, test_rows, vocab))


def test_a_bigram_knows_the_chain():
    found = ngram_losses(chain_rows(400), chain_rows(40, seed=1), V)
    assert found["bigram"] < 0.2 < 4 < found["unigram"]


def test_without_a_compiler_training_runs_eagerly_and_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert cxx_compiler() is None
    with caplog.at_level(logging.WARNING, logger=device.__name__):
        function = Compiled(len, CPU)
    assert function([1, 2]) == 2 and function.how == "eager (no C++ compiler)"
    assert "torch.compile is off, training runs eagerly and slower: no C++ compiler" in caplog.text
    for part in ("all", "head"):
        result = run(length=2, compile=part)
        assert result.objective.how == "eager (no C++ compiler)"
        assert bits(result.model) == bits(run(length=2).model)


WITH_A_COMPILER = """
import sys
sys.path.insert(0, sys.argv[1])
import logging
logging.basicConfig()
from test_training import bits, run
result = run(length=2, compile="all")
assert bits(result.model) == bits(run(length=2).model)
print(result.objective.how)
"""


@pytest.mark.heavy
def test_with_a_compiler_that_fails_training_runs_eagerly_and_names_the_cause(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text(
        '#!/bin/sh\ncase "$*" in *.cpp*|*.hpp*)\n'
        'echo "x.cpp:1:10: fatal error: Python.h: No such file or directory" >&2; exit 1;; esac\n'
        f'exec {cxx_compiler()} "$@"\n'
    )
    broken.chmod(0o755)
    environment = os.environ | {"CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITH_A_COMPILER, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "eager (" in done.stdout and "Python.h: No such file or directory" in done.stdout
    assert len([line for line in done.stderr.splitlines() if "torch.compile is off" in line]) == 1


def test_a_lack_of_memory_is_recognised_by_its_type_not_by_a_word():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 46)
    assert device.lacks_memory(caught.value) and device.lacks_memory(MemoryError())
    assert device.lacks_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.lacks_memory(RuntimeError("C++ compile error: fatal error: memory.h: No such file or directory"))


def test_cxx_overrides_the_compiler_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("clang++", "my-c++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    assert cxx_compiler() == str(tmp_path / "clang++")
    monkeypatch.setenv("CXX", "my-c++")
    assert cxx_compiler() == str(tmp_path / "my-c++")


def test_device_and_precision_follow_the_configuration_and_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set_up("auto", 1) == set_up("cpu", 1) == CPU and torch.get_num_threads() == 1
    with pytest.raises(PicollmError, match="compute.device = cuda.*set it to auto or cpu"):
        set_up("cuda", 1)
    x = torch.ones(2, 2)
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast(CPU, enabled):
            assert (x @ x).dtype == dtype
