"""The benchmark's arithmetic against closed forms and the standard library, its protocol on a synthetic clock."""

import statistics
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from picollm.engine import backends
from picollm.engine.backends import REFERENCE, Subject
from picollm.engine.benchmark import AGAIN, Protocol, benchmark, latency, measure, metrics, speedup, verdict
from picollm.engine.gate import compare, judge
from picollm.errors import PicollmError
from picollm.hardware import CpuMeter, describe_hardware
from picollm.model.transformer import ModelConfig, Transformer

PROTOCOL = Protocol(rounds=6, block_seconds=0.05, warmup_seconds=0.02, seed=3)


class Clock:
    """Seconds that pass only while a backend runs."""

    def __init__(self):
        self.now, self.calls, self.noise = 0.0, [], np.random.default_rng(0)

    def __call__(self):
        return self.now

    def backend(self, name, seconds):
        def run(ids):
            self.calls.append(name)
            self.now += seconds * self.noise.lognormal(0, 0.1)
            return ids

        return run


def simulate():
    clock = Clock()
    runs = {"base": clock.backend("base", 0.004), "half": clock.backend("half", 0.002)}
    runs["base again"] = runs["base"]
    return clock, measure(runs, [np.zeros((1, 2))], PROTOCOL, clock)


def test_latency_matches_the_standard_library():
    rounds = [[5.0, 1.0, 4.0], [2.5, 9.0, 3.0, 7.0]]
    x = sorted(sum(rounds, []))
    found = latency(rounds)
    assert found["n"] == 7 and found["min"] == 1.0
    assert found["mean"] == pytest.approx(statistics.mean(x))
    assert found["std"] == pytest.approx(statistics.stdev(x))
    assert found["p50"] == statistics.median(x)
    assert found["p90"] == pytest.approx(statistics.quantiles(x, n=10, method="inclusive")[8])


def test_the_baseline_against_itself_covers_one_and_a_faster_backend_does_not():
    _, samples = simulate()
    noise = speedup(samples["base"], samples["base again"], seed=1)
    assert noise["low"] <= 1 <= noise["high"]
    assert verdict(noise, noise) == "no difference"
    found = speedup(samples["base"], samples["half"], seed=1)
    assert found["low"] <= 2 <= found["high"] and found["low"] < found["ratio"] < found["high"]
    assert verdict(found, noise) == "faster"
    assert verdict(speedup(samples["half"], samples["base"], seed=1), noise) == "slower"


def test_every_backend_runs_a_block_in_every_round_in_a_seeded_shuffled_order():
    clock, samples = simulate()
    assert {name: len(rounds) for name, rounds in samples.items()} == dict.fromkeys(samples, PROTOCOL.rounds)
    for rounds in samples.values():
        for block in rounds:
            # The block ends with the first call that reaches block_seconds.
            assert sum(block[:-1]) < PROTOCOL.block_seconds * 1e3 <= sum(block) + 1e-9
    again, same = simulate()
    assert clock.calls == again.calls and samples == same
    orders = np.random.default_rng(PROTOCOL.seed)
    assert len({tuple(orders.permutation(3)) for _ in range(PROTOCOL.rounds)}) > 1


def test_a_slow_backend_still_gets_one_call_a_round():
    clock = Clock()
    samples = measure({"slow": clock.backend("slow", 1.0)}, [np.zeros((1, 2))], PROTOCOL, clock)
    assert [len(block) for block in samples["slow"]] == [1] * PROTOCOL.rounds


def test_inputs_rotate():
    clock, seen = Clock(), []
    run = clock.backend("one", 0.001)
    inputs = [np.full((1, 2), i) for i in range(5)]
    measure({"one": lambda ids: seen.append(int(ids[0, 0])) or run(ids)}, inputs, PROTOCOL, clock)
    assert seen == [i % 5 for i in range(len(seen))] and len(seen) > 10


def test_accuracy_matches_scipy():
    draw = np.random.default_rng(0)
    reference = draw.normal(size=(6, 40)).astype(np.float32)
    logits = reference + draw.normal(scale=0.1, size=reference.shape).astype(np.float32)
    targets = draw.integers(40, size=6)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (reference, logits))
    kl = scipy.stats.entropy(p, q, axis=-1)
    found = compare(reference, logits, targets)
    assert found["mean_kl"] == pytest.approx(kl.mean(), rel=1e-4)
    assert found["max_kl"] == pytest.approx(kl.max(), rel=1e-4)
    nll = [-np.log(x[np.arange(6), targets]) for x in (p, q)]
    assert found["loss_difference"] == pytest.approx(nll[1].mean() - nll[0].mean(), rel=1e-3)
    assert found["top1_agreement"] == np.mean(p.argmax(-1) == q.argmax(-1))


def test_the_gate_passes_equal_logits_and_fails_wrong_ones():
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(32, 100)).astype(np.float32)
    targets = draw.integers(100, size=32)
    assert judge(compare(reference, reference.copy(), targets), "fp32") == []
    wrong = reference + draw.normal(scale=0.3, size=reference.shape).astype(np.float32)
    assert any("mean KL" in words for words in judge(compare(reference, wrong, targets), "bf16"))
    broken = reference.copy()
    broken[3, 5] = np.nan
    assert judge(compare(reference, broken, targets), "bf16")


def test_a_small_sample_may_change_one_top_token_and_no_more():
    found = {"rows": 32, "mean_kl": 0.0, "loss_difference": 0.0, "loss_standard_error": 0.0}
    assert judge(found | {"top1_agreement": 31 / 32}, "bf16") == []
    assert judge(found | {"top1_agreement": 30 / 32}, "bf16") == ["top token changed in 2 of 32 rows"]
    many = found | {"rows": 1000, "top1_agreement": 0.994}
    assert judge(many, "bf16") and not judge(many | {"top1_agreement": 0.996}, "bf16")


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(500, 16, 28, 2, 7, 36, 0.0, True, 10000.0, 32)).eval()
    manifest = {"target": "tensorrt-rtx", "precision": "fp16", "compute_capabilities": ["8.9"], "max_batch": 4,
                "checkpoint_sha256": "0" * 64}  # fmt: skip
    return Subject(model, manifest, Path("unused"), torch.device("cpu"), threads=2)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(2).integers(500, size=(12, 17)).astype(np.uint16)


QUICK = Protocol(rounds=3, block_seconds=0.01, warmup_seconds=0.01, seed=1)


def test_the_report_has_numbers_only_for_what_ran(subject, rows, monkeypatch):
    def wrong(subject, precision):
        run = backends.load_eager(subject, "fp32")
        return lambda ids: np.roll(run(ids), 1, axis=-1)

    monkeypatch.setitem(backends.LOADERS, "openvino", wrong)
    names = ["eager-bf16", "openvino-bf16"] + ["tensorrt"] * (not torch.cuda.is_available())
    report, samples = benchmark(subject, names, rows, batches=[1, 4], gate_rows=8, protocol=QUICK)

    table = {(row["backend"], row["batch"]): row for row in report["results"]}
    assert set(table) == {(name, batch) for name in [REFERENCE, *names, AGAIN] for batch in (1, 4)}
    for (name, _), row in table.items():
        if name in (REFERENCE, "eager-bf16", AGAIN):
            assert row["status"] == "ok" and row["latency_ms"]["n"] >= QUICK.rounds
        else:
            assert set(row) == {"backend", "batch", "status"}
    assert table["openvino-bf16", 1]["status"].startswith("failed: accuracy (mean KL")
    assert table.get(("tensorrt", 1), {"status": "not run: no NVIDIA GPU"})["status"] == "not run: no NVIDIA GPU"
    row = table["eager-bf16", 4]
    assert row["tokens_per_s"] == pytest.approx(4 * 16 / row["latency_ms"]["p50"] * 1e3)
    assert set(row["speedups"]) == {REFERENCE}

    timed = {(s["backend"], s["batch"]) for s in samples}
    assert timed == {(name, batch) for name in (REFERENCE, "eager-bf16", AGAIN) for batch in (1, 4)}
    assert len(samples) == sum(row["latency_ms"]["n"] for row in table.values() if "latency_ms" in row)
    assert set(metrics(report)) == {"eager_bf16_b1_speedup", "eager_bf16_b4_speedup", "eager_fp32_b1_p50_ms",
                                    "eager_fp32_b4_p50_ms", "eager_bf16_b1_p50_ms", "eager_bf16_b4_p50_ms"}  # fmt: skip


def test_a_batch_beyond_the_engine_or_the_split_is_refused(subject, rows):
    with pytest.raises(PicollmError, match="benchmark.batches: 8 exceeds engine.max_batch = 4"):
        benchmark(subject, [], rows, batches=[8], gate_rows=8, protocol=QUICK)
    with pytest.raises(PicollmError, match="the validation split has 2 rows of 16 tokens"):
        benchmark(subject, [], rows[:2], batches=[4], gate_rows=8, protocol=QUICK)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux: other processes are not measured")
def test_the_meter_counts_other_processes_and_not_this_one(monkeypatch):
    readings = iter([(100.0, 500.0, 40.0, 7.0), (110.0, 525.0, 50.0, 8.0)])  # clock, everyone, own, stolen
    assert all(value >= 0 for value in CpuMeter.read())
    monkeypatch.setattr(CpuMeter, "read", staticmethod(lambda: next(readings)))
    assert CpuMeter().others() == {"busy_cores": 1.5, "stolen_cores": 0.1}


def test_hardware_is_described_by_facts():
    found = describe_hardware(device="cpu", threads=2)
    assert found["packages"]["torch"] == torch.__version__
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["model"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
