"""The benchmark: accuracy gate, cold starts, interleaved latencies; the report, and a row for each timed call.

What can't run, or fails the gate, gets its reason and no number. What it may say is in benchmark.schema.json.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import torch

from picollm.engine.accuracy_gate import (
    LIMITS,
    compare_all,
    greedy,
    greedy_match,
    judge,
    mean_kl,
    rows_at_once,
    thresholds,
)
from picollm.engine.backends.backend import LoadContext
from picollm.engine.backends.onnxruntime import OnnxRuntime, load_onnx
from picollm.engine.backends.registry import Loaded, find_backend, load_backend, why_skipped
from picollm.engine.backends.tensorrt import TensorRt
from picollm.engine.build import artefact
from picollm.engine.cold_start import cold_start
from picollm.engine.gpu_time import gpu_time
from picollm.engine.grid import BASELINES, OUTPUTS, REFERENCE, Grid, grid, result_key
from picollm.engine.timing import Call, OverBudget, Protocol, Rounds, latency, measure, speedup, verdict
from picollm.errors import PicollmError, one_line
from picollm.hardware import CpuMeter, describe_hardware
from picollm.model.transformer import Transformer
from picollm.progress import progress

log = logging.getLogger(__name__)

SCHEMA = "picollm-benchmark/3"
COLUMNS = ("backend", "output", "batch", "round", "ms")
AGAIN = f"{REFERENCE} (again)"
INPUTS = 16  # rotating inputs: timing one and the same would flatter caches and branch prediction
DISTURBED = 0.1  # share of the cores that others may take before the benchmark warns
GREEDY_ROWS = 4
CELL_MARGIN = 10
# It rounds weights and activations as the engine does, and adds up products in float32.
STAND_IN = "its ONNX graph in ONNX Runtime"


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    gate_rows: of the validation split; None: all. noise_limit: how far the interval of the baseline against itself may
    reach from 1 before a row is marked. cold: also start each backend in a fresh process.
    """

    grid: Grid
    gate_rows: int | None
    protocol: Protocol
    noise_limit: float
    cold: bool = True


def setting(engine: Mapping, benchmark: Mapping) -> Setting:
    """Of the configuration's sections `engine` and `benchmark`; engine.grid: full takes the whole validation split."""
    protocol = Protocol(**{key: benchmark[key] for key in ("rounds", "block_seconds", "warmup_seconds", "seed")})
    return Setting(
        grid(engine, benchmark["batches"]),
        None if engine["grid"] == "full" else benchmark["gate_rows"],
        protocol,
        benchmark["noise_limit"],
        benchmark["cold_start"],
    )


def benchmark(ctx: LoadContext, rows: np.ndarray, how: Setting, model_folder: Path) -> tuple[dict, list[dict]]:
    """The report, and one row per timed call: backend, output, batch, round, ms. rows: validation rows [n, T + 1].

    Raises PicollmError where sizes don't fit, or the checkpoint itself answers no numbers.
    """
    check_sizes(rows, how.grid, ctx.manifest["max_batch"], ctx.model)
    names = dict.fromkeys([*BASELINES, *how.grid.backends])
    loaded = {name: load_wanted(name, ctx, how.grid) for name in names}
    accuracy, status = check_accuracy(loaded, ctx, rows[: how.gate_rows])
    if status[REFERENCE] != "ok":
        raise PicollmError(f"{model_folder}: the checkpoint itself can't be compared with: {status[REFERENCE]}")
    del loaded  # and the memory that it takes
    runnable = [name for name in names if status[name] == "ok"]
    cold = {name: cold_start_or_none(name, ctx, model_folder) for name in runnable if how.cold}
    meter, before = CpuMeter(), os.getloadavg()[0]
    results, samples = time_all(runnable, status, ctx, rows, how)
    others = meter.others()
    if others and sum(others.values()) > DISTURBED * (os.cpu_count() or 1):
        log.warning("other processes took %.1f cores meanwhile: measure again when it is quiet", sum(others.values()))
    report = describe(ctx, how, len(rows[: how.gate_rows])) | {
        "other_processes": others,
        "load_average": [before, os.getloadavg()[0]],
        "backends": {
            name: {
                "status": status[name], "precision": find_backend(name).precision, "accuracy": accuracy.get(name),
                "artefact": artefact(ctx.manifest, name), "cold": cold.get(name),
            }
            for name in names
        },
        "results": results,
    }  # fmt: skip
    return report, samples


def load_wanted(name: str, ctx: LoadContext, wanted: Grid) -> Loaded:
    """Every graph of the grid; what is left out comes back with the reason."""
    reason = why_skipped(find_backend(name), wanted, ctx.device)
    if reason:
        return Loaded(find_backend(name), f"not run: {reason}")
    return load_backend(name, ctx, wanted.graphs)


def cold_start_or_none(name: str, ctx: LoadContext, model_folder: Path) -> dict | None:
    try:
        return cold_start(name, ctx, model_folder, batch=1)
    except PicollmError as error:
        log.warning("no cold start: %s", error)
        return None


def describe(ctx: LoadContext, how: Setting, gate_rows: int) -> dict:
    """Of what, where and how: everything in the report that is not a result."""
    model, manifest = ctx.model, ctx.manifest
    return {
        "schema": SCHEMA,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"config": model.config.to_dict(), "parameters": model.parameter_counts(),
                  "checkpoint_sha256": manifest["checkpoint_sha256"]},
        "hardware": describe_hardware(device=ctx.device.type, threads=ctx.threads),
        "protocol": asdict(how.protocol) | {
            "timed": "ids [B, T] on the host to the float32 output on the host",
            "interleaved": True,
            "noise_limit": how.noise_limit,
            "gate_rows": gate_rows,
            "gate_tokens": gate_rows * model.config.context,
        },
        "limits": thresholds(),
    }  # fmt: skip


def check_sizes(rows: np.ndarray, grid: Grid, max_batch: int, model: Transformer) -> None:
    """Raises PicollmError where the grid, the engines, the tokens and the model don't fit each other."""
    context, vocabulary = model.config.context, model.config.vocab_size
    if grid.largest > max_batch:
        raise PicollmError(
            f"benchmark.batches: {grid.largest} is beyond the engines' profile, batch 1 to {max_batch}: raise "
            "engine.max_batch and run trt_compile"
        )
    if rows.shape[1] != context + 1 or len(rows) < grid.largest:
        raise PicollmError(
            f"the validation split has {len(rows)} rows of {rows.shape[1] - 1} tokens; the benchmark needs at least "
            f"{grid.largest} (the largest of benchmark.batches) of {context} (the model's context)"
        )
    if rows.max() >= vocabulary:
        raise PicollmError(
            f"the tokens go up to {rows.max()}, the model's vocabulary has {vocabulary}: not its tokenizer"
        )


def check_accuracy(loaded: Mapping[str, Loaded], ctx: LoadContext, rows: np.ndarray) -> tuple[dict, dict[str, str]]:
    """{backend: comparison with the reference, `failed` the exceeded limits}, and every backend's status.

    A TensorRT plan that can't run here is judged by the graph that it was compiled from: that can.
    """
    status = {name: backend.status for name, backend in loaded.items()}
    answers = {name: backend.run for name, backend in loaded.items() if backend.runs}
    if REFERENCE not in answers:
        return {}, status
    graphs = {name: path for name in loaded if (path := source_graph(name, loaded[name], ctx))}
    of = {name: name for name in answers} | {name: path.name for name, path in graphs.items()}
    answers |= {path.name: load_onnx(path, ctx.threads) for path in set(graphs.values())}
    max_batch = ctx.manifest["max_batch"]
    batch = rows_at_once(rows, ctx.model.config.vocab_size, max_batch)
    try:
        compared, raised = compare_all(answers, REFERENCE, rows, batch)
    except torch.OutOfMemoryError as error:
        return {}, status | {REFERENCE: f"failed: {one_line(error)[:300]}"}
    texts = {name: greedy(answers[name], rows[:GREEDY_ROWS][:max_batch]) for name in compared}
    accuracy = {}
    for name, answered in of.items():
        if answered in raised:
            log.debug("%s", name, exc_info=raised[answered])
            status[name] = failure(raised[answered])
            continue
        failed = judge(compared[answered], loaded[name].backend.precision)
        # What is not a number failed, and JSON has no word for it.
        found = {what: value if np.isfinite(value) else None for what, value in compared[answered].items()}
        accuracy[name] = found | {
            "greedy_match": greedy_match(texts[REFERENCE], texts[answered]),
            "failed": failed,
            "of": STAND_IN if name in graphs else "the backend",
        }
        if failed:
            status[name] = f"failed: accuracy ({'; '.join(failed)})"
    return accuracy, status


def source_graph(name: str, loaded: Loaded, ctx: LoadContext) -> Path | None:
    """The ONNX file given to TensorRT's builder, where the engine itself can't run and ONNX Runtime is installed."""
    built = ctx.manifest["backends"].get(name, {"graphs": {}})
    made_from = built["graphs"].get("logits", {}).get("from")
    if loaded.runs or not isinstance(loaded.backend, TensorRt) or not made_from:
        return None
    if OnnxRuntime("fp32").cannot_run(ctx.device):
        return None
    return ctx.folder / made_from


def time_all(
    names: Sequence[str], status: Mapping[str, str], ctx: LoadContext, rows: np.ndarray, how: Setting
) -> tuple[list[dict], list[dict]]:
    """The table's rows and the raw samples, one output and batch size after another."""
    results, samples, inputs = [], [], {}
    context, protocol = ctx.model.config.context, how.protocol
    draw = np.random.default_rng(protocol.seed)
    blocks = sum(map(len, how.grid.batches.values())) * protocol.rounds * (len(names) + 1)
    with progress(total=blocks, desc="benchmark", unit=" blocks") as bar:
        for output, batches in how.grid.batches.items():
            loaded = load_all(names, ctx, output)
            for batch in batches:
                given = [rows[draw.integers(len(rows), size=batch), :-1].astype(np.int64) for _ in range(INPUTS)]
                measured, wrong = time_cell(loaded, output, given, protocol, bar.update)
                about = {"output": output, "batch": batch}
                results += summarise(measured, {**status, **wrong}, about, context, protocol.seed, how.noise_limit)
                samples += [
                    {"backend": name, **about, "round": number, "ms": round(ms, 4)}
                    for name, rounds in measured.items()
                    for number, block in enumerate(rounds)
                    for ms in block
                ]
                inputs[output, batch] = given
    if ctx.device.type == "cuda":
        add_gpu_times(results, names, ctx, inputs)
    return results, samples


def load_all(names: Sequence[str], ctx: LoadContext, output: str) -> dict[str, Loaded]:
    """The backends' graph of one output. Loaded anew for each: runtimes keep the memory of their largest answer."""
    loaded = {name: load_backend(name, ctx, (OUTPUTS[output],)) for name in names}
    if not loaded[REFERENCE].runs:
        raise PicollmError(f"{REFERENCE} can't be loaded again: {loaded[REFERENCE].status}")
    return loaded


def time_cell(
    loaded: Mapping[str, Loaded], output: str, inputs: list[np.ndarray], protocol: Protocol, advance: Callable
) -> tuple[dict[str, Rounds], dict[str, str]]:
    """Milliseconds of one output and batch size, and {backend: status} of those that have none."""
    context = inputs[0].shape[1]
    wrong = {name: backend.status for name, backend in loaded.items() if not backend.runs}
    runs = {name: call(backend, output, context) for name, backend in loaded.items() if name not in wrong}
    try:
        wrong |= check_cell(runs, loaded, inputs[0])
        runs = {name: run for name, run in runs.items() if name not in wrong}
        measured, failed = measure(runs | {AGAIN: runs[REFERENCE]}, inputs, protocol, advance=advance)
        for name in {REFERENCE, AGAIN} & failed.keys():
            raise failed[name]
        return measured, wrong | {name: cell_failure(error) for name, error in failed.items()}
    except torch.OutOfMemoryError as error:  # of the reference: nothing can be compared here
        said = (
            f"not run: the GPU's memory does not hold output {output} at batch {len(inputs[0])} "
            f"({one_line(error)[:120]}): take smaller benchmark.batches, or fewer engine.backends"
        )
        log.warning("%s", said)
        return {}, dict.fromkeys(loaded, said) | wrong


def add_gpu_times(
    results: list[dict], names: Sequence[str], ctx: LoadContext, inputs: Mapping[tuple[str, int], list[np.ndarray]]
) -> None:
    """`gpu_ms` of every timed row; a profiler that fails costs no other number."""
    context = ctx.model.config.context
    for name, output in product(names, dict.fromkeys(output for output, _ in inputs)):
        loaded = load_backend(name, ctx, (OUTPUTS[output],))
        for row in results:
            if (row["backend"], row["output"]) != (name, output) or "latency_ms" not in row:
                continue
            try:
                row["gpu_ms"] = gpu_time(call(loaded, output, context), inputs[output, row["batch"]])
            except Exception as error:
                log.warning("%s: no time on the GPU: %s", name, one_line(error)[:300])


def check_cell(runs: Mapping[str, Call], loaded: Mapping[str, Loaded], ids: np.ndarray) -> dict[str, str]:
    """{backend: status} of those whose answer at this very output and shape is a wrong one, or none at all.

    The gate has looked at all tokens, at its own shapes; compiled kernels may be others here, and `loss` is a graph of
    its own. One input's mean scatters, so only what exceeds the gate's limits tenfold is wrong.
    """
    expected, wrong = np.asarray(runs[REFERENCE](ids)), {}
    for name in (name for name in runs if name != REFERENCE):
        limits = LIMITS[loaded[name].backend.precision]
        try:
            found = np.asarray(runs[name](ids))
            if expected.ndim == 2:
                difference, limit, unit = np.abs((found - expected).mean()), limits.perplexity, "nats"
            else:
                difference, limit, unit = mean_kl(expected, found), limits.mean_kl, "nats of KL"
        except Exception as error:  # as in `measure`
            wrong[name] = cell_failure(error)
            continue
        if not difference <= CELL_MARGIN * limit:
            wrong[name] = (
                f"failed: accuracy of this output and batch ({difference:.2g} > {CELL_MARGIN * limit:.2g} {unit})"
            )
    return wrong


def cell_failure(error: Exception) -> str:
    log.debug("a backend failed", exc_info=error)
    return failure(error, "this output and batch: ")


def failure(error: Exception, where: str = "") -> str:
    """A status: a backend that would take too long is fit for work, only not here."""
    return f"{'not run' if isinstance(error, OverBudget) else 'failed'}: {where}{one_line(error)[:300]}"


def call(loaded: Loaded, output: str, context: int) -> Call:
    run = loaded.runs[OUTPUTS[output]]
    if output == "loss":
        return run
    positions = np.array([context - 1]) if output == "last" else np.arange(context)
    return lambda ids: run(ids, positions)


def summarise(
    measured: Mapping[str, Rounds], status: Mapping[str, str], about: dict, context: int, seed: int, noise_limit: float
) -> list[dict]:
    """One row per backend at one output and batch size; throughput is that of the median latency.

    `noisy`: the baseline against itself was further from 1 than the limit, so the row's ratios are not to be trusted.
    """
    if measured:
        noise = speedup(measured[REFERENCE], measured[AGAIN], seed)
        noisy = max(noise["high"] - 1, 1 - noise["low"]) > noise_limit
    table = []
    for name in [*status, AGAIN] if measured else status:
        row = {"backend": name, **about, "status": status.get(name, "ok")}
        if name in measured:
            times = latency(measured[name])
            per_second = about["batch"] / times["p50"] * 1e3
            row |= {"latency_ms": times, "sequences_per_s": per_second, "tokens_per_s": per_second * context}
            row |= {"noisy": noisy, "speedups": {}, "gpu_ms": None}
            for baseline in (other for other in measured if other.startswith("eager-") and other not in (name, AGAIN)):
                found = speedup(measured[baseline], measured[name], seed)
                row["speedups"][baseline] = found | {"verdict": verdict(found, noise)}
        table.append(row)
    return table


def metrics(report: dict) -> dict[str, float]:
    """Flat scalars for DVC, at most 20: first speed-ups over eager float32, then medians, in the report's order."""
    rows = [row for row in report["results"] if "latency_ms" in row and row["backend"] != AGAIN]
    pairs = [
        (f"{result_key(row)}_speedup", row["speedups"][REFERENCE]["ratio"])
        for row in rows
        if REFERENCE in row["speedups"]
    ]
    pairs += [(f"{result_key(row)}_p50_ms", row["latency_ms"]["p50"]) for row in rows]
    return dict(pairs[:20])
