"""Times the cells of the benchmark's table, one output and batch size each: the runnable backends take turns.

On a GPU each cell has three times: from host to host, and on the device with its L2 cache warm and flushed
(picollm.engine.device_timing).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from picollm.engine import timing
from picollm.engine.accuracy_gate import LIMITS, mean_kl
from picollm.engine.backends.backend import DeviceRun, LoadContext
from picollm.engine.backends.registry import Loaded, load_backend
from picollm.engine.device_timing import event_timer, flush_buffer, gpu_state, resident_call, unsteady
from picollm.engine.gpu_time import gpu_time
from picollm.engine.grid import OUTPUTS, REFERENCE, again
from picollm.engine.journal import Journal
from picollm.engine.timing import (
    Call,
    OverBudget,
    Protocol,
    Rounds,
    Timer,
    latency,
    measure,
    speedup,
    verdict,
)
from picollm.errors import PicollmError, one_line
from picollm.progress import progress

if TYPE_CHECKING:
    from picollm.engine.benchmark import Setting

log = logging.getLogger(__name__)

AGAIN = again(REFERENCE)
INPUTS = 16  # rotating inputs: timing a single one would favour caches and branch prediction
CELL_MARGIN = 10


def time_all(
    names: Sequence[str],
    status: Mapping[str, str],
    ctx: LoadContext,
    rows: np.ndarray,
    setting: Setting,
    journal: Journal,
) -> tuple[list[dict], list[dict], list[dict] | None]:
    """Times all cells; returns the table's rows, the raw samples, and the GPU's clocks (None without a GPU)."""
    results, samples, clocks, inputs = [], [], [], {}
    on_gpu, draw = ctx.device.type == "cuda", np.random.default_rng(setting.protocol.seed)
    cells = [(output, batch) for output, batches in setting.grid.batches.items() for batch in batches]
    passes = 3 if on_gpu else 1
    with progress(total=len(cells) * passes * setting.protocol.rounds * (len(names) + 2), desc="benchmark") as bar:
        for output, batches in setting.grid.batches.items():
            loaded: dict[str, Loaded] = {}
            for batch in batches:
                given = [rows[draw.integers(len(rows), size=batch), :-1].astype(np.int64) for _ in range(INPUTS)]
                inputs[output, batch] = given
                key = f"cell {output} {batch}"
                if key not in journal.entries:
                    loaded = loaded or load_all(names, ctx, output, journal)
                    journal.add(
                        key, time_cell(loaded, output, given, setting.protocol, ctx.device, bar.update, journal)
                    )
                cell = journal.entries[key]
                about = {"output": output, "batch": batch}
                results += summarise(
                    cell, status, about, ctx.model.config.context, setting.protocol.seed, setting.noise_limit
                )
                clocks.append(about | cell["clocks"])
                samples += [
                    {"backend": name, **about, "round": number, "ms": ms}
                    for name, rounds in cell["host"].items()
                    for number, block in enumerate(rounds)
                    for ms in block
                ]
    if on_gpu:
        add_gpu_times(results, names, ctx, inputs, journal)
    return results, samples, clocks if on_gpu else None


def load_all(names: Sequence[str], ctx: LoadContext, output: str, journal: Journal) -> dict[str, Loaded]:
    """Loads the backends' graph of one output; per output, since runtimes keep the memory of their largest answer."""
    loaded = {}
    for name in (name for name in names if name not in journal.ended):
        journal.mark(name, f"while it was loaded for output {output}")
        loaded[name] = load_backend(name, ctx, (OUTPUTS[output],))
    journal.mark()
    if not loaded[REFERENCE].runs:
        raise PicollmError(f"{REFERENCE} can't be loaded again: {loaded[REFERENCE].status}")
    return loaded


def time_cell(
    loaded: Mapping[str, Loaded],
    output: str,
    inputs: list[np.ndarray],
    protocol: Protocol,
    device: torch.device,
    advance: Callable,
    journal: Journal,
) -> dict:
    """Times one cell: `host`, and on a GPU `warm` and `flushed`, are milliseconds by backend and round; `wrong` is
    {backend: status} of those without times; `clocks` has the GPU's state before and after, and `unsteady`.
    """
    context, where = inputs[0].shape[1], f"at output {output}, batch {len(inputs[0])}"
    wrong = {name: backend.status for name, backend in loaded.items() if not backend.runs}
    wrong |= {name: f"failed: {why}" for name, why in journal.ended.items()}
    working = {name: backend for name, backend in loaded.items() if name not in wrong}
    runs = {name: journal.watched(name, where, call(each, output, context)) for name, each in working.items()}
    times: dict = {"host": {}, "warm": {}, "flushed": {}, "clocks": {"before": None, "after": None, "unsteady": None}}
    try:
        wrong |= check_cell(runs, loaded, inputs[0])
        runs = {name: run for name, run in runs.items() if name not in wrong}
        before = gpu_state() if device.type == "cuda" else None
        times["host"], failed = timed(runs, inputs, protocol, advance)
        wrong |= failed
        if device.type == "cuda":
            for kind, flush in (("warm", None), ("flushed", flush_buffer(device))):
                resident = resident_calls(working, output, inputs, times["host"], where, journal)
                # A backend that fails here keeps its host times.
                times[kind], _ = timed(resident, inputs, protocol, advance, event_timer(flush=flush))
            after = gpu_state()
            times["clocks"] = {"before": before, "after": after, "unsteady": unsteady(before, after)}
    except torch.OutOfMemoryError as error:  # from the reference: nothing can be compared here
        reason = (
            f"not run: the GPU's memory does not hold output {output} at batch {len(inputs[0])} "
            f"({one_line(error)[:120]}): take smaller benchmark.batches, or fewer engine.backends"
        )
        log.warning("%s", reason)
        times["host"], wrong = {}, dict.fromkeys(loaded, reason) | wrong
    journal.mark()
    return times | {"wrong": wrong}


def timed(
    runs: Mapping[str, Call],
    inputs: list[np.ndarray],
    protocol: Protocol,
    advance: Callable,
    timer: Timer | None = None,
) -> tuple[dict[str, Rounds], dict[str, str]]:
    """Returns milliseconds, to a tenth of a microsecond, and {backend: status} of those that failed."""
    measured, failed = measure(
        {**runs, AGAIN: runs[REFERENCE]}, inputs, protocol, advance=advance, timer=timer, twice=True
    )
    for name in {REFERENCE, AGAIN} & failed.keys():
        raise failed[name]
    rounded = {name: [[round(ms, 4) for ms in block] for block in rounds] for name, rounds in measured.items()}
    return rounded, {name: cell_failure(error) for name, error in failed.items() if name in runs}


def resident_calls(
    loaded: Mapping[str, Loaded],
    output: str,
    inputs: list[np.ndarray],
    timed_on_host: Mapping[str, Rounds],
    where: str,
    journal: Journal,
) -> dict[str, Call]:
    """Returns the calls without copies of those backends that were timed from the host and compute on the GPU."""
    positions = {"last": np.array([inputs[0].shape[1] - 1]), "full": np.arange(inputs[0].shape[1]), "loss": None}
    calls = {}
    for name, each in loaded.items():
        run = each.runs[OUTPUTS[output]]
        if name in timed_on_host and isinstance(run, DeviceRun):
            calls[name] = journal.watched(name, where, resident_call(run, inputs, positions[output]))
    return calls


def add_gpu_times(
    results: list[dict],
    names: Sequence[str],
    ctx: LoadContext,
    inputs: Mapping[tuple[str, int], list[np.ndarray]],
    journal: Journal,
) -> None:
    """Adds `gpu_ms` to every timed row; a failing profiler loses no other number."""
    for name, output in product(names, dict.fromkeys(output for output, _ in inputs)):
        for row in results:
            if (row["backend"], row["output"]) != (name, output) or "latency_ms" not in row:
                continue
            key = f"gpu {name} {output} {row['batch']}"
            if key not in journal.entries and name not in journal.ended:
                where = f"under the profiler, at output {output}, batch {row['batch']}"
                journal.add(key, profiled(name, output, inputs[output, row["batch"]], where, ctx, journal))
            row["gpu_ms"] = journal.entries.get(key)
    journal.mark()


def profiled(
    name: str, output: str, inputs: list[np.ndarray], where: str, ctx: LoadContext, journal: Journal
) -> dict | None:
    journal.mark(name, where)
    try:
        loaded = load_backend(name, ctx, (OUTPUTS[output],))
        return gpu_time(journal.watched(name, where, call(loaded, output, inputs[0].shape[1])), inputs)
    except Exception as error:
        log.warning("%s: no GPU time measured: %s", name, one_line(error)[:300])
        return None


def check_cell(runs: Mapping[str, Call], loaded: Mapping[str, Loaded], ids: np.ndarray) -> dict[str, str]:
    """Returns {backend: status} of those whose answer at exactly this output and shape is wrong or missing.

    The gate checked all tokens, at its own shapes; here compiled kernels may differ, and `loss` is a separate graph.
    The mean over one input varies, so an answer is wrong only if it exceeds the gate's limits tenfold.
    """
    expected, wrong = np.asarray(runs[REFERENCE](ids)), {}
    for name in (name for name in runs if name != REFERENCE):
        limits = LIMITS[loaded[name].backend.precision]
        try:
            answer = np.asarray(runs[name](ids))
            if expected.ndim == 2:
                difference, limit, unit = np.abs((answer - expected).mean()), limits.perplexity, "nats"
            else:
                difference, limit, unit = mean_kl(expected, answer), limits.mean_kl, "nats of KL"
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
    """Returns a status: `not run` for a backend that works but would take too long here, otherwise `failed`."""
    return f"{'not run' if isinstance(error, OverBudget) else 'failed'}: {where}{one_line(error)[:300]}"


def call(loaded: Loaded, output: str, context: int) -> Call:
    run = loaded.runs[OUTPUTS[output]]
    if output == "loss":
        return run
    positions = np.array([context - 1]) if output == "last" else np.arange(context)
    return lambda ids: run(ids, positions)


def summarise(
    cell: Mapping, status: Mapping[str, str], about: dict, context: int, seed: int, noise_limit: float
) -> list[dict]:
    """Returns one row per backend at one output and batch size; throughput is that of the median latency.

    The noise is the baseline against itself or the fastest against itself, whichever differs more. `noisy`: it was
    further from 1 than the limit (an end of its interval), so the row's ratios are unreliable.
    """
    measured, status = cell["host"], {name: cell["wrong"].get(name, text) for name, text in status.items()}
    copies = [name for name in measured if again(name) in measured]
    noises = [speedup(measured[name], measured[again(name)], seed) for name in copies]
    noise = {"low": min(x["low"] for x in noises), "high": max(x["high"] for x in noises)} if noises else {}
    table = []
    for name in [*status, *map(again, copies)]:
        row: dict[str, Any] = {"backend": name, **about, "status": status.get(name, "ok")}
        if name in measured:
            times = latency(measured[name])
            per_second = about["batch"] / times["p50"] * 1e3
            row |= {"latency_ms": times, "sequences_per_s": per_second, "tokens_per_s": per_second * context}
            row |= {"noisy": timing.noise_factor(noise) - 1 > noise_limit, "speedups": {}, "gpu_ms": None}
            row["device_ms"] = device_ms(cell, name, seed)
            baselines = [other for other in measured if other.startswith("eager-") and not other.endswith(timing.AGAIN)]
            first = name.removesuffix(timing.AGAIN)  # a second copy is compared with the first, baseline or not
            for baseline in dict.fromkeys(other for other in (*baselines, first) if other != name):
                ratio = speedup(measured[baseline], measured[name], seed)
                row["speedups"][baseline] = ratio | {"verdict": verdict(ratio, noise)}
        table.append(row)
    return table


def device_ms(cell: Mapping, name: str, seed: int) -> dict | None:
    """Returns latencies on the device, L2 warm and flushed, each with the ratio to the reference; None if not timed."""
    if name not in cell["warm"]:
        return None
    return {
        kind: latency(cell[kind][name]) | {"speedup": speedup(cell[kind][REFERENCE], cell[kind][name], seed)["ratio"]}
        for kind in ("warm", "flushed")
        if name in cell[kind]
    }
