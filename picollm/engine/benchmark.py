"""Latency of the backends, measured so that a shared machine can't decide the result.

All backends are loaded in one process and take turns: in every round, in a fresh shuffled order, each runs a block of
calls on real token rows. A disturbance hits all of them, or is seen as spread between rounds. The baseline takes part
twice; the ratio of the two copies is the noise band, and a speed-up whose interval overlaps it is no difference.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle

import numpy as np
import torch
from tqdm import tqdm

from picollm.engine.backends import REFERENCE, Backend, Run, Subject, load_backend
from picollm.engine.gate import compare, judge, last_logits, thresholds
from picollm.errors import PicollmError
from picollm.hardware import CpuMeter, describe_hardware

log = logging.getLogger(__name__)

AGAIN = f"{REFERENCE} (again)"
BASELINES = (REFERENCE, "eager-bf16")
BOOTSTRAPS = 1000
INPUTS = 16  # rotating inputs: timing one and the same would flatter caches and branch prediction
DISTURBED = 0.1  # share of the cores that others may take before the benchmark warns
WARMUP_CALLS = 3  # at least; the first of a compiled model compiles

Rounds = list[list[float]]  # milliseconds of each call, by round


@dataclass(frozen=True)
class Protocol:
    rounds: int
    block_seconds: float
    warmup_seconds: float
    seed: int


def measure(
    runs: dict[str, Run],
    inputs: list[np.ndarray],
    protocol: Protocol,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Rounds]:
    """Milliseconds of every timed call, by backend and round. `advance` is called after each block."""
    order = np.random.default_rng(protocol.seed)
    source = cycle(inputs)
    for run in runs.values():
        start, calls = clock(), 0
        while calls < WARMUP_CALLS or clock() - start < protocol.warmup_seconds:
            run(next(source))
            calls += 1
    samples: dict[str, Rounds] = {name: [] for name in runs}
    for _ in range(protocol.rounds):
        for name in order.permutation(list(runs)):
            run, block = runs[name], []
            run(next(source))  # untimed: the caches are the previous backend's
            start = clock()
            while not block or clock() - start < protocol.block_seconds:
                ids = next(source)
                before = clock()
                run(ids)
                block.append((clock() - before) * 1e3)
            samples[name].append(block)
            advance()
    return samples


def latency(rounds: Rounds) -> dict:
    """Statistics over all calls, in milliseconds (n: calls). Percentiles interpolate linearly, as NumPy does."""
    x = np.concatenate(rounds)
    p50, p90 = np.percentile(x, [50, 90])
    deviation = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    return {"n": len(x), "mean": float(x.mean()), "std": deviation, "min": float(x.min()),
            "p50": float(p50), "p90": float(p90)}  # fmt: skip


def speedup(baseline: Rounds, rounds: Rounds, seed: int) -> dict:
    """Ratio of median latencies, baseline / backend, with its 95 % percentile-bootstrap interval.

    Rounds are resampled, the same ones for both sides: calls within a round are not independent of each other.
    """
    draw = np.random.default_rng(seed)

    def ratio(chosen) -> float:
        a, b = (np.median(np.concatenate([x[i] for i in chosen])) for x in (baseline, rounds))
        return float(a / b)

    n = len(rounds)
    low, high = np.percentile([ratio(draw.integers(n, size=n)) for _ in range(BOOTSTRAPS)], [2.5, 97.5])
    return {"ratio": ratio(range(n)), "low": float(low), "high": float(high)}


def verdict(found: dict, noise: dict) -> str:
    """faster, slower, or `no difference` where the interval overlaps the noise band (which always holds 1)."""
    if found["low"] <= max(noise["high"], 1.0) and found["high"] >= min(noise["low"], 1.0):
        return "no difference"
    return "faster" if found["ratio"] > 1 else "slower"


def check_accuracy(backends: dict[str, Backend], rows: np.ndarray, batch: int) -> dict[str, dict]:
    """{backend: comparison with the reference, and `failed`, the exceeded limits}, for the backends that run."""
    reference = last_logits(backends[REFERENCE].run, rows, 1)
    found = {}
    for name, backend in backends.items():
        if backend.run:
            accuracy = compare(reference, last_logits(backend.run, rows, batch), rows[:, -1].astype(np.int64))
            found[name] = accuracy | {"failed": judge(accuracy, backend.precision)}
    return found


def final_status(backend: Backend, accuracy: dict | None) -> str:
    if accuracy and accuracy["failed"]:
        return f"failed: accuracy ({'; '.join(accuracy['failed'])})"
    return backend.status


def check_sizes(rows: np.ndarray, *, largest: int, context: int, max_batch: int) -> None:
    if largest > max_batch:
        raise PicollmError(f"benchmark.batches: {largest} exceeds engine.max_batch = {max_batch}")
    if rows.shape[1] != context + 1 or len(rows) < largest:
        raise PicollmError(
            f"the validation split has {len(rows)} rows of {rows.shape[1] - 1} tokens; the benchmark needs at least "
            f"{largest} (the largest of benchmark.batches) of {context} (the model's context)"
        )


def benchmark(
    subject: Subject, names: list[str], rows: np.ndarray, *, batches: list[int], gate_rows: int, protocol: Protocol
) -> tuple[dict, list[dict]]:
    """The report, and one row per timed call: backend, batch, round, ms.

    rows: validation rows [n, T + 1]. The reference is measured whether it is named or not. A backend that can't run
    or fails the gate gets its status and no numbers.
    """
    model, largest = subject.model, max(batches)
    context = model.config.context
    check_sizes(rows, largest=largest, context=context, max_batch=subject.manifest["max_batch"])
    backends = {name: load_backend(name, subject) for name in dict.fromkeys([REFERENCE, *names])}
    accuracy = check_accuracy(backends, rows[:gate_rows], largest)
    status = {name: final_status(backend, accuracy.get(name)) for name, backend in backends.items()}
    runs = {name: backend.run for name, backend in backends.items() if status[name] == "ok"}
    runs[AGAIN] = runs[REFERENCE]

    results, samples = [], []
    meter = CpuMeter()
    bar = tqdm(total=len(batches) * protocol.rounds * len(runs), desc="benchmark", unit=" blocks", disable=None)
    for batch in batches:
        starts = np.linspace(0, len(rows) - batch, INPUTS).astype(int)
        inputs = [np.ascontiguousarray(rows[s : s + batch, :-1], dtype=np.int64) for s in starts]
        measured = measure(runs, inputs, protocol, advance=bar.update)
        results += summarise(measured, status, batch, context, protocol.seed)
        samples += [
            {"backend": name, "batch": batch, "round": number, "ms": round(ms, 4)}
            for name, rounds in measured.items()
            for number, block in enumerate(rounds)
            for ms in block
        ]
    bar.close()
    others = meter.others()
    if others and sum(others.values()) > DISTURBED * (os.cpu_count() or 1):
        log.warning("other processes took %.1f cores meanwhile: measure again when it is quiet", sum(others.values()))
    report = {
        "model": {"config": model.config.to_dict(), "parameters": model.parameter_counts(),
                  "checkpoint_sha256": subject.manifest["checkpoint_sha256"]},
        "engine": {key: subject.manifest[key] for key in ("target", "precision", "compute_capabilities", "max_batch")},
        "hardware": describe_hardware(device=subject.device.type, threads=subject.threads),
        "protocol": asdict(protocol) | {
            "timed": "ids [B, T] on the host to logits of the last position [B, V] float32 on the host",
            "interleaved": True,
            "gate_rows": min(gate_rows, len(rows)),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        },
        "other_processes": others,
        "limits": thresholds(),
        "backends": {
            name: {"status": status[name], "precision": backend.precision, "load_seconds": backend.load_seconds,
                   "accuracy": accuracy.get(name)}
            for name, backend in backends.items()
        },
        "results": results,
    }  # fmt: skip
    return report, samples


def summarise(measured: dict[str, Rounds], status: dict[str, str], batch: int, context: int, seed: int) -> list[dict]:
    """One row per backend at one batch size; throughput is that of the median latency."""
    noise = speedup(measured[REFERENCE], measured[AGAIN], seed)
    table = []
    for name in [*status, AGAIN]:
        row = {"backend": name, "batch": batch, "status": status.get(name, "ok")}
        if name in measured:
            times = latency(measured[name])
            per_second = batch / times["p50"] * 1e3
            row |= {"latency_ms": times, "sequences_per_s": per_second, "tokens_per_s": per_second * context}
            row["speedups"] = {}
            for baseline in BASELINES:
                if baseline in measured and baseline != name:
                    found = speedup(measured[baseline], measured[name], seed)
                    row["speedups"][baseline] = found | {"verdict": verdict(found, noise)}
        table.append(row)
    return table


def metrics(report: dict) -> dict[str, float]:
    """Flat scalars for DVC, at most 20: first speed-ups over eager float32, then medians, in the report's order."""
    rows = [row for row in report["results"] if "latency_ms" in row and row["backend"] != AGAIN]
    keys = [f"{row['backend'].replace('-', '_')}_b{row['batch']}" for row in rows]
    pairs = [
        (f"{key}_speedup", row["speedups"][REFERENCE]["ratio"])
        for key, row in zip(keys, rows, strict=True)
        if REFERENCE in row["speedups"]
    ]
    pairs += [(f"{key}_p50_ms", row["latency_ms"]["p50"]) for key, row in zip(keys, rows, strict=True)]
    return dict(pairs[:20])
