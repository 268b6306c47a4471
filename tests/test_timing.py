"""The benchmark's arithmetic compared with closed forms and the standard library, and its protocol on a fake clock."""

import statistics

import numpy as np
import pytest

from picollm.engine.gpu_time import split
from picollm.engine.table import latency_lines
from picollm.engine.timing import Protocol, latency, measure, speedup, verdict

PROTOCOL = Protocol(rounds=6, block_seconds=0.05, warmup_seconds=0.02, seed=3)


class Clock:
    """A clock that advances only while a backend runs."""

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
    samples, failed = measure(runs, [np.zeros((1, 2))], PROTOCOL, clock)
    assert failed == {}
    return clock, samples


def test_latency_matches_the_standard_library():
    rounds = [[5.0, 1.0, 4.0], [2.5, 9.0, 3.0, 7.0]]
    x = sorted(sum(rounds, []))
    found = latency(rounds)
    assert found["n"] == 7 and found["min"] == 1.0
    assert found["mean"] == pytest.approx(statistics.mean(x))
    assert found["std"] == pytest.approx(statistics.stdev(x))
    assert found["p50"] == statistics.median(x)
    assert found["p90"] == pytest.approx(statistics.quantiles(x, n=10, method="inclusive")[8])
    assert found["p95"] == pytest.approx(statistics.quantiles(x, n=20, method="inclusive")[18])
    low, _, high = statistics.quantiles(x, n=4, method="inclusive")
    assert found["iqr_rel"] == pytest.approx((high - low) / statistics.median(x))
    assert found["p99"] is None and latency([x * 150])["p99"] == pytest.approx(9.0)


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
    samples, _ = measure({"slow": clock.backend("slow", 1.0)}, [np.zeros((1, 2))], PROTOCOL, clock)
    assert [len(block) for block in samples["slow"]] == [1] * PROTOCOL.rounds


@pytest.mark.parametrize("calls", [0, 4, 40])  # in the warm-up, in the first round, later
def test_a_backend_that_fails_while_it_is_timed_has_no_times_and_the_others_all_of_theirs(calls):
    clock, left = Clock(), iter(range(calls))
    steady, fragile = clock.backend("steady", 0.004), clock.backend("fragile", 0.008)

    def fails(ids):
        if next(left, None) is None:
            raise MemoryError("no more")
        return fragile(ids)

    samples, failed = measure({"fragile": fails, "steady": steady}, [np.zeros((1, 2))], PROTOCOL, clock)
    assert set(samples) == {"steady"} and len(samples["steady"]) == PROTOCOL.rounds
    assert set(failed) == {"fragile"} and str(failed["fragile"]) == "no more"
    assert clock.calls.count("fragile") == calls


def test_inputs_rotate():
    clock, seen = Clock(), []
    run = clock.backend("one", 0.001)
    inputs = [np.full((1, 2), i) for i in range(5)]
    measure({"one": lambda ids: seen.append(int(ids[0, 0])) or run(ids)}, inputs, PROTOCOL, clock)
    assert seen == [i % 5 for i in range(len(seen))] and len(seen) > 10


def test_gpu_time_is_the_union_of_kernels_and_the_copies_each_way():
    def event(category, name, start, duration):
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    events = [
        event("cpu_op", "aten::mm", 0, 5000),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 0, 100),
        event("kernel", "gemm", 100, 1000),
        event("kernel", "softmax on another stream", 600, 1000),
        event("gpu_memset", "Memset (Device)", 1700, 300),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 2000, 200),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 3000, 400),
    ]
    found = split(events, calls=2)
    assert found == pytest.approx({"to_device": 0.05, "kernels": 1.0, "to_host": 0.2})
    row = {"backend": "x", "output": "last", "batch": 1, "latency_ms": {"p50": 1.5}, "speedups": {}, "noisy": False}
    (line,) = latency_lines({"results": [row | {"gpu_ms": found}], "hardware": {"device": "cpu"}})
    assert "GPU 1.000 ms, copies 0.050 to it and 0.200 back" in line
    assert split(events[:1], calls=2) is None
