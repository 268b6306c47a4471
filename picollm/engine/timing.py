"""Measures latencies robustly on a shared machine, and judges their ratios.

All backends are loaded in one process and take turns: in every round, in a newly shuffled order, each runs a block of
calls on real token rows. A disturbance hits all of them, or is visible as spread between rounds. The baseline and the
fastest take part twice; the difference between the copies is the noise band, and a speed-up whose interval overlaps it
is no difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from picollm.engine.grid import AGAIN, again
from picollm.errors import PicollmError

BOOTSTRAPS = 1000
RESAMPLED_CALLS = 200  # per round at most, evenly spaced: on a GPU a round has thousands, and a cell 50 ratios
ENOUGH_FOR_P99 = 1000
SLACK, SECONDS = 4.0, 10.0  # a backend may take this multiple of the baseline's time, and at least these seconds
WARMUP_CALLS = 3  # at least; the first of a compiled model compiles

Call = Callable[[np.ndarray], object]  # ids [B, T] int64 on the host; when it returns, the answer is on the host
Rounds = list[list[float]]  # milliseconds of each call, by round
Timer = Callable[[Call, np.ndarray], float]  # milliseconds of one call on these ids


@dataclass(frozen=True)
class Protocol:
    rounds: int
    block_seconds: float
    warmup_seconds: float
    seed: int

    def seconds(self, call: float) -> float:
        """Computes the time of one backend at one output and batch size, with warm-up, from the time of a call."""
        block = max(self.block_seconds, call) + call  # the untimed call, and at least one that counts
        return max(self.warmup_seconds, WARMUP_CALLS * call) + self.rounds * block


class OverBudget(PicollmError):
    """Signals that, judging by one call, a backend would take far longer than the baseline."""

    def __init__(self, call: float, takes: float, budget: float) -> None:
        super().__init__(f"one call takes {call:.2g} s, so {takes:.0f} s in all; the limit is {budget:.2g} s")


class WarmUp:
    """Calls backends until they are warm. The first one sets the budget of the others: SLACK times its time, and
    SECONDS at least."""

    def __init__(self, protocol: Protocol, inputs: Iterator[np.ndarray], clock: Callable[[], float]) -> None:
        self.protocol, self.inputs, self.clock = protocol, inputs, clock
        self.budget: float | None = None

    def __call__(self, run: Call) -> float:
        """Returns the seconds of the last call. Raises OverBudget after the second one: the first may compile."""
        start, calls, took = self.clock(), 0, 0.0
        while calls < WARMUP_CALLS or self.clock() - start < self.protocol.warmup_seconds:
            before = self.clock()
            run(next(self.inputs))
            took, calls = self.clock() - before, calls + 1
            if calls == 2:
                self.keep_within_budget(took)
        return took

    def keep_within_budget(self, call: float) -> None:
        takes = self.protocol.seconds(call)
        if self.budget is None:
            self.budget = max(SECONDS, SLACK * max(takes, self.protocol.seconds(0.0)))
        elif takes > self.budget:
            raise OverBudget(call, takes, self.budget)


def measure(
    runs: dict[str, Call],
    inputs: list[np.ndarray],
    protocol: Protocol,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[], object] = lambda: None,
    *,
    timer: Timer | None = None,
    twice: bool = False,
) -> tuple[dict[str, Rounds], dict[str, Exception]]:
    """Returns milliseconds of every timed call, by backend and round; and the exception of each backend that failed.

    The first of `runs` is the baseline. Another one that would take too much time is not timed (OverBudget).
    `advance` is called after each block. timer: milliseconds of a call, by default from the host's clock around it.
    twice: the fastest at warm-up takes part twice, under the name from `again`.
    """

    def host_timer(run: Call, ids: np.ndarray) -> float:
        before = clock()
        run(ids)
        return (clock() - before) * 1e3

    timer = timer or host_timer
    order, source = np.random.default_rng(protocol.seed), cycle(inputs)
    warm_up = WarmUp(protocol, source, clock)
    warm: dict[str, float] = {}  # seconds of the last call while warming up

    def block(run: Call) -> list[float]:
        run(next(source))  # untimed: the caches still hold the previous backend's data
        times, start = [], clock()
        while not times or clock() - start < protocol.block_seconds:
            times.append(timer(run, next(source)))
        return times

    samples: dict[str, Rounds] = {name: [] for name in runs}
    failed: dict[str, Exception] = {}

    def attempt(name: str, part: Callable[[Call], Any]) -> Any:
        try:
            return part(runs[name])
        except Exception as error:  # runtimes raise any type; out of memory is one of them
            failed[name] = error.with_traceback(None)  # its frames would hold the memory of the failed call
            del samples[name]

    for name in runs:
        if seconds := attempt(name, warm_up):
            warm[name] = seconds
    if twice and warm:
        fastest = min(warm, key=lambda name: warm[name]).removesuffix(AGAIN)
        runs = {again(fastest): runs[fastest], **runs}
        samples.setdefault(again(fastest), [])
    for _ in range(protocol.rounds):
        for name in order.permutation(list(samples)):
            if times := attempt(name, block):
                samples[name].append(times)
            advance()
    return samples, failed


def latency(rounds: Rounds) -> dict:
    """Computes statistics over all calls, in milliseconds (n: calls). Percentiles interpolate linearly, as in NumPy.

    Tails need many calls: p99 is None below a thousand. iqr_rel: interquartile range / median.
    """
    x = np.concatenate(rounds)
    p25, p50, p75, p90, p95, p99 = map(float, np.percentile(x, [25, 50, 75, 90, 95, 99]))
    deviation = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    return {"n": len(x), "mean": float(x.mean()), "std": deviation, "min": float(x.min()), "p50": p50, "p90": p90,
            "p95": p95, "p99": p99 if len(x) >= ENOUGH_FOR_P99 else None, "iqr_rel": (p75 - p25) / p50}  # fmt: skip


def speedup(baseline: Rounds, rounds: Rounds, seed: int) -> dict:
    """Computes the ratio of median latencies, baseline / backend, with its 95 % percentile-bootstrap interval.

    Rounds are resampled, the same ones for both sides: calls within a round are not independent.
    """
    draw = np.random.default_rng(seed)
    sides = [[thinned(block) for block in x] for x in (baseline, rounds)]

    def ratio(chosen) -> float:
        a, b = (np.median(np.concatenate([x[i] for i in chosen])) for x in sides)
        return float(a / b)

    n = len(rounds)
    low, high = np.percentile([ratio(draw.integers(n, size=n)) for _ in range(BOOTSTRAPS)], [2.5, 97.5])
    a, b = (np.median(np.concatenate(x)) for x in (baseline, rounds))
    return {"ratio": float(a / b), "low": float(low), "high": float(high)}


def thinned(block: list[float]) -> list[float]:
    step = max(1, len(block) // RESAMPLED_CALLS)
    return block[::step]


def noise_factor(noise: dict) -> float:
    """Returns the largest factor, at least 1, by which a program may differ from itself: an end of the interval of its
    ratio to itself, or that of the inverse ratio."""
    return max(noise["high"], 1 / noise["low"], 1.0)


def verdict(measured: dict, noise: dict) -> str:
    """Returns faster, slower, or `no difference` if the interval overlaps the noise band: 1, times or divided by the
    noise's factor, so that A over B and B over A get the same answer."""
    factor = noise_factor(noise)
    if measured["low"] <= factor and measured["high"] >= 1 / factor:
        return "no difference"
    return "faster" if measured["ratio"] > 1 else "slower"
