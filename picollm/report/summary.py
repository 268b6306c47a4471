"""Summarises a run in five lines, which are printed after `make report`; the report uses some of them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from picollm.engine.table import best_row, on_cpu
from picollm.files import read_json
from picollm.report.metric_files import METRIC_FILES

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport
    from picollm.engine.shapes import BenchmarkReport
    from picollm.model.training_report import TrainingReport

ALIKE = 0.05  # nats per token, more than twice the difference between seeds of training
COUNTED = {"bigram": "a bigram", "four_gram": "a 4-gram", "four_gram_cache": "a 4-gram with a cache of the row"}


def five_lines(reports: Path) -> list[str]:
    """Returns the five lines. Raises PicollmError if a chapter has not run yet."""
    metrics = {name: read_json(reports / "metrics" / f"{name}.json") for name in METRIC_FILES}
    return lines(metrics, read_json(reports / "heads.json"), read_json(reports / "benchmark.json"))


def lines(metrics: dict[str, dict], heads: HeadsReport, benchmark: BenchmarkReport) -> list[str]:
    data, training = metrics["data"], metrics["training"]
    return [
        f"Data: {data['train_articles']:,} articles, {data['train_tokens']:,} training tokens, "
        f"{data['validation_tokens']:,} for validation, {data['test_tokens']:,} for test.",
        training_line(training),
        heads_line(heads),
        clusters_line(metrics["clusters"]),
        speed_line(benchmark),
    ]


def rank(loss: float, losses: Mapping[str, float]) -> str:
    """Compares a loss with those of n-gram counts: a bigram, a 4-gram, and a 4-gram with a cache of the row."""
    near = [title for name, title in COUNTED.items() if abs(losses[name] - loss) <= ALIKE]
    if near:
        return f"about as well as {near[-1]}"
    beaten = [title for name, title in COUNTED.items() if losses[name] > loss]
    unbeaten = [title for name, title in COUNTED.items() if losses[name] < loss]
    if not beaten:
        return f"worse than {unbeaten[0]}"
    if not unbeaten:
        return f"better than {beaten[-1]}"
    rival = unbeaten[0].replace("a 4-gram with", "one with") if beaten[-1] == "a 4-gram" else unbeaten[0]
    return f"better than {beaten[-1]}, worse than {rival}"


def on_test(training: Mapping[str, float] | TrainingReport) -> tuple[float, dict[str, float]]:
    """Returns the model's test loss and those of the n-gram counts."""
    losses = cast(Mapping[str, float], training)
    return losses["test_loss"], {name: losses[f"test_{name}_loss"] for name in COUNTED}


def training_line(training: Mapping[str, float]) -> str:
    trained = f"after {training['tokens']:,} tokens" if training["steps"] else "trained elsewhere"
    loss, losses = on_test(training)
    return (
        f"Model: {training['parameters'] / 1e6:.1f} M parameters {trained}: test loss {loss:.2f} nats, "
        f"{rank(loss, losses)} (4-gram {losses['four_gram']:.2f}, with the cache {losses['four_gram_cache']:.2f})."
    )


def clusters_line(clusters: Mapping[str, float]) -> str:
    if not clusters["clusters"]:
        return (
            "Families of heads: none; the best cut of their distances is no better than that of one cloud without "
            f"clusters, or too weak (silhouette {clusters['silhouette']:.2f}, p = {clusters['structure_p']:.2f})."
        )
    return (
        f"Families of heads: {clusters['clusters']}, {clusters['stable_clusters']} of them stable under resampled "
        f"sentences; agreement with layers {clusters['rand_layers']:.2f}, with classes {clusters['rand_labels']:.2f} "
        "(adjusted Rand index)."
    )


def heads_line(heads: HeadsReport) -> str:
    labels = {label: row for label, row in heads["labels"].items() if row["count"]}
    shares = ", ".join(f"{row['count']} {label}" for label, row in labels.items())
    null = heads["null"]["labels"]["global"] / heads["null"]["heads"]
    sharpened = heads["sharpened_null"]["labels"]["token-specific"] / heads["sharpened_null"]["heads"]
    return (
        f"Heads: of {len(heads['heads'])}, {shares}; in untrained models {null:.0%} come out as global, in "
        f"sharpened untrained ones {sharpened:.0%} as token-specific."
    )


def speed_line(benchmark: BenchmarkReport) -> str:
    best, tensorrt = best_row(benchmark), tensorrt_status(benchmark)
    if best is None:
        return f"Speed: no backend other than eager fp32 ran; TensorRT: {tensorrt}."
    name, ratio = best["backend"], best["speedups"]["eager-fp32"]
    hardware = benchmark["hardware"]
    gpu = hardware["device"] == "cuda" and not on_cpu(name, hardware)
    machine = hardware["gpu"]["name"] if gpu else hardware["cpu"]["model"]
    return (
        f"Speed, batch 1: {name} is {ratio['ratio']:.2f}x eager fp32 (95 % {ratio['low']:.2f} to {ratio['high']:.2f}: "
        f"{ratio['verdict']}{'; noisy' if best['noisy'] else ''}) on {machine}; TensorRT: {tensorrt}."
    )


def tensorrt_status(benchmark: BenchmarkReport) -> str:
    """Returns "measured" if TensorRT has a latency, else the first reason why not."""
    rows = [row for row in benchmark["results"] if row["backend"].startswith("tensorrt")]
    if any("latency_ms" in row for row in rows):
        return "measured"
    return next((row["status"] for row in rows if row["status"] != "ok"), "not requested")
