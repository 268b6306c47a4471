"""Pictures of measurements: the loss curve, latencies with their spread, and where a training step's time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pandas as pd
from matplotlib.figure import Figure

from picollm.report.style import ACCENT, MUTED, SECOND, plt

if TYPE_CHECKING:
    from picollm.engine.shapes import Result
    from picollm.model.training_report import TrainingReport
    from picollm.profiling.profile import ProfileReport

BASELINES = {
    "unigram_loss": "unigram", "bigram_loss": "bigram", "four_gram_loss": "4-gram",
    "four_gram_cache_loss": "4-gram that remembers the row",
}  # fmt: skip


def loss_curve(curve: pd.DataFrame, training: TrainingReport) -> Figure:
    """Training and validation loss over tokens, beside what n-grams reach on the same split. `curve`: training.csv."""
    figure, axis = plt.subplots(figsize=(6.6, 3.4))
    axis.plot(curve["tokens"], curve["loss"], color=MUTED, linewidth=0.8, label="training, each step")
    known = curve.dropna(subset="validation_loss")
    axis.plot(known["tokens"], known["validation_loss"], color=ACCENT, marker="o", markersize=3, label="validation")
    for (name, label), style in zip(BASELINES.items(), (":", "-.", "--", (0, (6, 1))), strict=True):
        loss = cast(dict[str, float], training)[name]
        axis.axhline(loss, color=SECOND, linestyle=style, linewidth=1, label=f"{label}, {loss:.2f}")
    axis.set(xlabel="training tokens", ylabel="loss, nats per token")
    axis.ticklabel_format(axis="x", style="plain")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f} k")
    axis.legend(frameon=False, fontsize=8)
    return figure


def latency_bars(results: list[Result]) -> Figure:
    """Median latency by backend, at the smallest and the largest batch; the whisker ends at the 90th percentile."""
    rows = [row for row in results if "latency_ms" in row and row["output"] == results[0]["output"]]
    batches = sorted({row["batch"] for row in rows})
    batches = sorted({batches[0], batches[-1]})
    rows = [row for row in rows if row["batch"] in batches]
    figure, axes = plt.subplots(1, len(batches), figsize=(4.2 * len(batches), 0.42 * len(rows) / len(batches) + 1.1),
                                squeeze=False, sharey=True)  # fmt: skip
    for axis, batch in zip(axes[0], batches, strict=True):
        shown = [row for row in rows if row["batch"] == batch][::-1]
        times = [row["latency_ms"] for row in shown]
        middle = [time["p50"] for time in times]
        spread = [max(0.0, time["p90"] - time["p50"]) for time in times]
        axis.barh([row["backend"] for row in shown], middle, color=ACCENT, alpha=0.85, height=0.62,
                  xerr=[[0] * len(shown), spread], error_kw={"ecolor": MUTED, "capsize": 2})  # fmt: skip
        for y, time in enumerate(times):
            axis.annotate(f"{time['p50']:.2f}", (0, y), xytext=(4, 0), textcoords="offset points", va="center",
                          color="white", fontsize=8)  # fmt: skip
        axis.set(xlabel="milliseconds, median and 90th percentile", title=f"batch {batch}")
    return figure


def latencies(results: list[Result]) -> pd.DataFrame:
    """Of each backend, output and batch that ran: percentiles in milliseconds, and the speed-up with its interval."""
    rows = []
    for row in results:
        if "latency_ms" in row:
            found = row["speedups"].get("eager-fp32", {})
            speedup = {f"speedup_{name}": found.get(name) for name in ("ratio", "low", "high")}
            rows.append({name: row[name] for name in ("backend", "output", "batch")} | row["latency_ms"] | speedup)
    return pd.DataFrame(rows)


def step_timeline(profile: ProfileReport) -> Figure:
    """The first profiled steps as a timeline, one lane a range."""
    spans = profile["timeline"]
    lanes = list(dict.fromkeys(span["name"] for span in spans))
    figure, axis = plt.subplots(figsize=(8, 0.34 * len(lanes) + 0.9))
    for span in spans:
        y = lanes.index(span["name"])
        colour = MUTED if span["name"] == "step" else ACCENT
        start, end = span["start_ms"], span["end_ms"]
        axis.barh(y, end - start, left=start, height=0.7, color=colour, edgecolor="white")
    axis.set_yticks(range(len(lanes)), lanes)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds")
    return figure
