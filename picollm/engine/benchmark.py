"""Runs the benchmark: accuracy gate, cold starts, interleaved latencies; returns the report and a row per timed call.

A backend that can't run or fails the gate gets a reason and no numbers. benchmark.schema.json defines the report. How
long a backend may take is in picollm.engine.timing (SLACK, SECONDS).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from picollm.engine.accuracy_gate import compare_all, greedy, greedy_match, judge, rows_at_once, thresholds
from picollm.engine.backends.backend import LoadContext
from picollm.engine.backends.onnxruntime import OnnxRuntime, load_onnx
from picollm.engine.backends.registry import Loaded, find_backend, load_backend, why_skipped
from picollm.engine.backends.tensorrt import TensorRt
from picollm.engine.build import artefact
from picollm.engine.cells import failure, time_all
from picollm.engine.cold_start import cold_start
from picollm.engine.grid import AGAIN, BASELINES, REFERENCE, Grid, grid, result_key
from picollm.engine.journal import Journal
from picollm.engine.timing import Protocol
from picollm.errors import PicollmError, one_line
from picollm.hardware import CpuMeter, describe_hardware
from picollm.model.foreign import Examined

log = logging.getLogger(__name__)

SCHEMA = "picollm-benchmark/4"
COLUMNS = ("backend", "output", "batch", "round", "ms")
DISTURBED = 0.1  # share of the cores that other processes may use before the benchmark warns
GREEDY_ROWS = 4
# ONNX Runtime rounds weights and activations as the engine does, and accumulates products in float32.
STAND_IN = "its ONNX graph in ONNX Runtime"


@dataclass(frozen=True)
class Setting:
    """Settings of a benchmark.

    gate_rows: number of validation rows; None: all. noise_limit: how far the interval of the baseline against itself
    may reach from 1 before a row is marked. cold: also start each backend in a fresh process.
    """

    grid: Grid
    gate_rows: int | None
    protocol: Protocol
    noise_limit: float
    cold: bool = True


def setting(engine: Mapping, benchmark: Mapping) -> Setting:
    """Reads the configuration's sections `engine` and `benchmark`; engine.grid: full takes all validation rows."""
    protocol = Protocol(**{key: benchmark[key] for key in ("rounds", "block_seconds", "warmup_seconds", "seed")})
    return Setting(
        grid(engine, benchmark["batches"]),
        None if engine["grid"] == "full" else benchmark["gate_rows"],
        protocol,
        benchmark["noise_limit"],
        benchmark["cold_start"],
    )


def benchmark(
    ctx: LoadContext, rows: np.ndarray, setting: Setting, model_folder: Path, journal: Journal | None = None
) -> tuple[dict, list[dict]]:
    """Returns the report, and one row per timed call: backend, output, batch, round, ms. rows: validation [n, T + 1].

    Entries of the journal are not measured again; backends that ended an earlier process are left out.
    Raises PicollmError if sizes don't fit, or if the checkpoint itself returns no numbers.
    """
    journal = journal or Journal()
    check_sizes(rows, setting.grid, ctx.manifest["max_batch"], ctx.model)
    names = tuple(dict.fromkeys([*BASELINES, *setting.grid.backends]))
    gate = journal.get("gate", lambda: pass_gate(names, ctx, rows[: setting.gate_rows], setting.grid, journal))
    accuracy, status = gate["accuracy"], gate["status"]
    if status[REFERENCE] != "ok":
        raise PicollmError(f"{model_folder}: the checkpoint itself can't serve as the reference: {status[REFERENCE]}")
    runnable = [name for name in names if status[name] == "ok"]
    cold = {name: cold_start_once(name, ctx, model_folder, journal) for name in runnable if setting.cold}
    meter, before = CpuMeter(), os.getloadavg()[0]
    results, samples, clocks = time_all(runnable, status, ctx, rows, setting, journal)
    others = meter.others()
    if others and sum(others.values()) > DISTURBED * (os.cpu_count() or 1):
        log.warning("other processes used %.1f cores: measure again on an idle machine", sum(others.values()))
    report = describe(ctx, setting, len(rows[: setting.gate_rows])) | {
        "other_processes": others,
        "load_average": [before, os.getloadavg()[0]],
        "backends": {
            name: {
                "status": status[name], "precision": find_backend(name).precision, "accuracy": accuracy.get(name),
                "artefact": artefact(ctx.manifest, name), "cold": cold.get(name),
            }
            for name in names
        },
        "clocks": clocks,
        "results": results,
    }  # fmt: skip
    return report, samples


def pass_gate(names: Sequence[str], ctx: LoadContext, rows: np.ndarray, wanted: Grid, journal: Journal) -> dict:
    """Returns `accuracy` and `status` of each backend; see `check_accuracy`."""
    loaded = {name: load_wanted(name, ctx, wanted, journal) for name in names}
    accuracy, status = check_accuracy(loaded, ctx, rows, journal)
    journal.mark()
    return {"accuracy": accuracy, "status": status}


def load_wanted(name: str, ctx: LoadContext, wanted: Grid, journal: Journal) -> Loaded:
    """Loads every graph of the grid; a backend that is left out is returned with the reason."""
    if why := journal.ended.get(name):
        return Loaded(find_backend(name), f"failed: {why}")
    reason = why_skipped(find_backend(name), wanted, ctx.device)
    if reason:
        return Loaded(find_backend(name), f"not run: {reason}")
    journal.mark(name, "while it was loaded")
    return load_backend(name, ctx, wanted.graphs)


def cold_start_once(name: str, ctx: LoadContext, model_folder: Path, journal: Journal) -> dict | None:
    """Measures a cold start; returns None if it failed, or if it ended an earlier process."""
    if name in journal.ended:
        return journal.entries.get(f"cold {name}")

    def start() -> dict | None:
        journal.mark(name, "at its start in a fresh process")
        try:
            return cold_start(name, ctx, model_folder, batch=1)
        except PicollmError as error:
            log.warning("no cold start measured: %s", error)
            return None
        finally:
            journal.mark()

    return journal.get(f"cold {name}", start)


def describe(ctx: LoadContext, setting: Setting, gate_rows: int) -> dict:
    """Returns everything in the report that is not a result: model, hardware, protocol, limits."""
    model, manifest = ctx.model, ctx.manifest
    return {
        "schema": SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"config": model.config.to_dict(), "parameters": model.parameter_counts(),
                  "checkpoint_sha256": manifest["checkpoint_sha256"]},
        "hardware": describe_hardware(device=ctx.device.type, threads=ctx.threads),
        "protocol": asdict(setting.protocol) | {
            "timed": "ids [B, T] on the host to the float32 output on the host",
            "interleaved": True,
            "noise_limit": setting.noise_limit,
            "gate_rows": gate_rows,
            "gate_tokens": gate_rows * model.config.context,
        },
        "limits": thresholds(),
    }  # fmt: skip


def check_sizes(rows: np.ndarray, grid: Grid, max_batch: int, model: Examined) -> None:
    """Raises PicollmError if the grid, the engines, the tokens and the model don't fit together."""
    context, vocabulary = model.config.context, model.config.vocab_size
    if grid.largest > max_batch:
        raise PicollmError(
            f"benchmark.batches: {grid.largest} is beyond the engines' profile, batch 1 to {max_batch}: raise "
            "engine.max_batch and run trt_compile"
        )
    if rows.shape[1] != context + 1 or len(rows) < grid.largest:
        raise PicollmError(
            f"the validation split has {len(rows)} rows of {rows.shape[1] - 1} tokens; the benchmark needs at least "
            f"{grid.largest} (the largest of benchmark.batches) of {context} (the model's context): lower "
            "benchmark.batches, or pack tokens of that context"
        )
    if rows.max() >= vocabulary:
        raise PicollmError(
            f"the tokens have ids up to {rows.max()}, but the model's vocabulary has {vocabulary}: tokenize the text "
            "for this model (model.checkpoint)"
        )


def check_accuracy(
    loaded: Mapping[str, Loaded], ctx: LoadContext, rows: np.ndarray, journal: Journal
) -> tuple[dict, dict[str, str]]:
    """Returns {backend: comparison with the reference, `failed`: the exceeded limits}, and every backend's status.

    A TensorRT plan that can't run here is judged by the graph that it was compiled from, which can.
    """
    status = {name: backend.status for name, backend in loaded.items()}
    answers = {
        name: journal.watched(name, "at the accuracy gate", backend.run)
        for name, backend in loaded.items()
        if backend.runs
    }
    if REFERENCE not in answers:
        return {}, status
    graphs = {name: path for name in loaded if (path := source_graph(name, loaded[name], ctx))}
    answers_of = {name: name for name in answers} | {name: path.name for name, path in graphs.items()}
    answers |= {path.name: load_onnx(path, ctx.threads) for path in set(graphs.values())}
    max_batch = ctx.manifest["max_batch"]
    batch = rows_at_once(rows, ctx.model.config.vocab_size, max_batch)
    try:
        compared, raised = compare_all(answers, REFERENCE, rows, batch)
    except torch.OutOfMemoryError as error:
        return {}, status | {REFERENCE: f"failed: {one_line(error)[:300]}"}
    texts = {name: greedy(answers[name], rows[:GREEDY_ROWS][:max_batch]) for name in compared}
    accuracy = {}
    for name, answered in answers_of.items():
        if answered in raised:
            log.debug("%s", name, exc_info=raised[answered])
            status[name] = failure(raised[answered])
            continue
        failed = judge(compared[answered], loaded[name].backend.precision)
        # NaN means failed, and JSON can't represent it.
        comparison = {what: value if np.isfinite(value) else None for what, value in compared[answered].items()}
        accuracy[name] = comparison | {
            "greedy_match": greedy_match(texts[REFERENCE], texts[answered]),
            "failed": failed,
            "of": STAND_IN if name in graphs else "the backend",
        }
        if failed:
            status[name] = f"failed: accuracy ({'; '.join(failed)})"
    return accuracy, status


def source_graph(name: str, loaded: Loaded, ctx: LoadContext) -> Path | None:
    """Returns TensorRT's source ONNX file if the engine itself can't run here and ONNX Runtime is installed."""
    built = ctx.manifest["backends"].get(name, {"graphs": {}})
    made_from = built["graphs"].get("logits", {}).get("from")
    if loaded.runs or not isinstance(loaded.backend, TensorRt) or not made_from:
        return None
    if OnnxRuntime("fp32").cannot_run(ctx.device):
        return None
    return ctx.folder / made_from


def metrics(report: dict) -> dict[str, float]:
    """Returns at most 20 flat scalars for DVC: first speed-ups over eager float32, then medians, in report order."""
    rows = [row for row in report["results"] if "latency_ms" in row and not row["backend"].endswith(AGAIN)]
    pairs = [
        (f"{result_key(row)}_speedup", row["speedups"][REFERENCE]["ratio"])
        for row in rows
        if REFERENCE in row["speedups"]
    ]
    pairs += [(f"{result_key(row)}_p50_ms", row["latency_ms"]["p50"]) for row in rows]
    return dict(pairs[:20])
