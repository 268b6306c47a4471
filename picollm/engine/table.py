"""Formats a benchmark report as lines for a terminal or a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from picollm.engine.grid import AGAIN, REFERENCE, runs_on_cpu

log = logging.getLogger(__name__)


def lines(report: dict) -> Iterator[str]:
    """Yields each backend's result at the gate, then the latencies."""
    yield from backend_lines(report)
    yield from latency_lines(report)


def backend_lines(report: dict) -> Iterator[str]:
    """Yields one line per backend except the reference."""
    for name, backend in report["backends"].items():
        gate = backend["accuracy"]
        if name == REFERENCE:
            continue
        if not gate or gate["mean_kl"] is None:  # it returned no answers, or NaN
            yield f"{name:20} {backend['status']}"
        else:
            yield (
                f"{name:20} perplexity {gate['perplexity_difference']:+.3%}, mean KL {gate['mean_kl']:.1e} nats, "
                f"same top token {gate['top1_agreement']:.2%} of {gate['tokens']}: {backend['status']}"
            )


def latency_lines(report: dict) -> Iterator[str]:
    """Yields one line per result: medians and ratios to the eager baselines with 95 % intervals, or what failed."""
    for cell in report.get("clocks") or ():
        if cell["unsteady"]:
            yield f"UNSTEADY: output {cell['output']}, batch {cell['batch']}: the GPU: {cell['unsteady']}"
    for row in report["results"]:
        name = row["backend"] + on_cpu(row["backend"], report["hardware"])
        about = f"{name:20} {row['output']:5} batch {row['batch']:<3}"
        if "latency_ms" not in row:
            if row["status"] != report["backends"][row["backend"]]["status"]:
                yield f"{about} {row['status']}"
            continue
        over = [f"{s['ratio']:.2f}x [{s['low']:.2f}, {s['high']:.2f}] {name}" for name, s in row["speedups"].items()]
        gpu = device_text(row.get("device_ms")) + gpu_text(row["gpu_ms"])
        noisy = "; NOISY: beyond benchmark.noise_limit" if row["noisy"] else ""
        yield f"{about} p50 {row['latency_ms']['p50']:9.2f} ms  {', '.join(over) or 'baseline'}{gpu}{noisy}"


def best_row(report: Mapping) -> dict | None:
    """Returns the row with the largest speed-up over eager fp32, at batch 1 and the first output; None if none ran."""
    output = report["results"][0]["output"]
    rows: list[dict] = [
        row for row in report["results"]
        if row["batch"] == 1 and row["output"] == output
        and REFERENCE in row.get("speedups", {}) and not row["backend"].endswith(AGAIN)
    ]  # fmt: skip
    return max(rows, key=lambda row: row["speedups"][REFERENCE]["ratio"], default=None)


def best_text(report: Mapping) -> str:
    if row := best_row(report):
        return f"{row['backend']} {row['speedups'][REFERENCE]['ratio']:.2f}x eager fp32"
    return "only eager fp32 ran"


def on_cpu(name: str, hardware: Mapping) -> str:
    """Returns a mark for a backend that runs on the CPU while others run on a GPU."""
    return " (CPU)" if hardware["device"] == "cuda" and runs_on_cpu(name) else ""


def device_text(times: dict | None) -> str:
    """Formats the medians on the device, L2 cache warm and flushed, with the ratio to eager fp32 there."""
    if times is None:
        return ""
    words = [f"L2 {kind} {x['p50']:.3f} ms ({x['speedup']:.2f}x)" for kind, x in times.items()]
    return f"; on the device: {', '.join(words)}"


def gpu_text(parts: dict | None) -> str:
    if parts is None:
        return ""
    return f"; GPU {parts['kernels']:.3f} ms, copies {parts['to_device']:.3f} to it and {parts['to_host']:.3f} back"


def log_table(report: dict) -> None:
    for line in lines(report):
        log.info("%s", line)
