"""Draws measurements: the loss curve, latencies with their spread, and the time line of training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pandas as pd
from matplotlib.figure import Figure

from picollm.engine.grid import AGAIN, again, result_key
from picollm.report.style import ACCENT, INK, MUTED, SECOND, plt, scaled

if TYPE_CHECKING:
    from picollm.engine.shapes import Result
    from picollm.model.training_report import TrainingReport
    from picollm.profiling.profile import ProfileReport

BASELINE = "eager-fp32"
BASELINES = {
    "unigram_loss": "unigram", "bigram_loss": "bigram", "four_gram_loss": "4-gram",
    "four_gram_cache_loss": "4-gram with a cache of the row",
}  # fmt: skip


def loss_curve(curve: pd.DataFrame, training: TrainingReport) -> Figure:
    """Draws training and validation loss over tokens, with the losses of n-grams on the same split; the bands are the
    original's three phases of the training loss. `curve` is training.csv."""
    figure, axis = plt.subplots(figsize=scaled(6.6, 3.4))
    axis.plot(curve["tokens"], curve["loss"], color=MUTED, linewidth=0.8, label="training, each step")
    known = curve.dropna(subset="validation_loss")
    axis.plot(known["tokens"], known["validation_loss"], color=ACCENT, marker="o", markersize=3, label="validation")
    losses = {name: cast(dict[str, float], training)[name] for name in BASELINES}
    for (name, label), style in zip(BASELINES.items(), (":", "-.", "--", (0, (6, 1))), strict=True):
        axis.axhline(losses[name], color=SECOND, linestyle=style, linewidth=1, label=f"{label}, {losses[name]:.2f}")
    lowest, highest = curve["loss"].min(), curve["loss"].max()
    for number, phase in enumerate(training["phases"] or (), start=1):
        axis.axhspan(phase["to"], phase["from"], color=MUTED, alpha=0.05 + 0.05 * (number % 2), linewidth=0)
        if lowest < phase["from"] and phase["to"] < highest:
            at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axis.annotate(f"phase {number}", (0, max(phase["to"], lowest)), (3, 2), color=MUTED, fontsize=8, **at)
    axis.set_ylim(0.97 * min(lowest, *losses.values()), 1.02 * highest)
    axis.set(xlabel="training tokens", ylabel="loss, nats per token")
    axis.ticklabel_format(axis="x", style="plain")
    few = curve["tokens"].max() < 10_000
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if few else f"{value / 1000:,.0f} k")
    axis.legend(frameon=False, fontsize=8)
    return figure


def latency_bars(results: list[dict]) -> Figure:
    """Draws the median latency by backend, at the smallest and the largest batch. The whisker is the 95 % interval, via
    that of the speed-up over eager fp32; the stroke the 90th percentile; the band the baseline's own difference."""
    rows = [row for row in results if "latency_ms" in row and row["output"] == results[0]["output"]]
    # Other second copies are of the fastest backend of one batch.
    rows = [row for row in rows if not row["backend"].endswith(AGAIN) or row["backend"] == again(BASELINE)]
    batches = sorted({row["batch"] for row in rows})
    batches = sorted({batches[0], batches[-1]})
    rows = [row for row in rows if row["batch"] in batches]
    names = list(dict.fromkeys(row["backend"] for row in rows))[::-1]  # a batch may lack some
    figure, axes = plt.subplots(1, len(batches), sharey=True, squeeze=False,
                                figsize=scaled(4.4 * len(batches), 0.42 * len(names) + 1.1))  # fmt: skip
    for axis, batch in zip(axes[0], batches, strict=True):
        shown = [row for row in rows if row["batch"] == batch]
        middle = {row["backend"]: row["latency_ms"]["p50"] for row in shown}
        base, copy = middle.get(BASELINE), middle.get(again(BASELINE))
        if base and copy:
            axis.axvspan(min(base, copy), max(base, copy, min(base, copy) * 1.001), color=SECOND, alpha=0.3)
        for row in shown:
            y = names.index(row["backend"])
            axis.barh(y, row["latency_ms"]["p50"], color=ACCENT, alpha=0.85, height=0.62)
            times, speedup = row["latency_ms"], row["speedups"].get(BASELINE)
            if speedup and base:
                axis.plot([base / speedup["high"], base / speedup["low"]], [y, y], color=INK, linewidth=2.2)
            axis.plot(times["p90"], y, marker="|", color=MUTED, markersize=9)
            axis.annotate(f"{times['p50']:.2f}", (0, y), xytext=(4, 0), textcoords="offset points", va="center",
                          color="white", fontsize=8)  # fmt: skip
        axis.set(xlabel="milliseconds, median", title=f"batch {batch}")
        axis.set_yticks(range(len(names)), names)
    return figure


def loading_ladder(rungs: pd.DataFrame, step_ms: float) -> Figure:
    """Draws the milliseconds per batch of each way of loading, and of a training step: a way at a factor of 100 to the
    left of the line can cost training 1 %."""
    figure, axis = plt.subplots(figsize=scaled(7.2, 0.36 * len(rungs) + 1))
    y = range(len(rungs))
    axis.hlines(y, rungs["median_ms"], rungs["p90_ms"], color=MUTED)
    axis.plot(rungs["median_ms"], y, "o", color=ACCENT)
    axis.axvline(step_ms, color=SECOND, linestyle="--", linewidth=1)
    axis.annotate("a training step", (step_ms, 1), (-4, -10), xycoords=("data", "axes fraction"), ha="right",
                  textcoords="offset points", color=SECOND, fontsize=8)  # fmt: skip
    axis.set_yticks(y, list(rungs["rung"]))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default formatter writes formulas
    axis.xaxis.set_minor_formatter(lambda *_: "")
    axis.set(xlabel="milliseconds per batch: median, to the 90th percentile", ylim=(len(rungs) - 0.5, -0.5))
    return figure


def latencies(results: list[Result]) -> pd.DataFrame:
    """Tabulates percentiles in milliseconds and the speed-up with its interval, by backend, output and batch."""
    rows = []
    for row in results:
        if "latency_ms" in row:
            ratio = row["speedups"].get(BASELINE, {})
            speedup = {f"speedup_{name}": ratio.get(name) for name in ("ratio", "low", "high")}
            about = {"name": result_key(row)} | {name: row[name] for name in ("backend", "output", "batch")}
            rows.append(about | row["latency_ms"] | speedup)
    return pd.DataFrame(rows)


def step_timeline(profile: ProfileReport) -> Figure:
    """Draws the first profiled steps as a timeline, one lane per range."""
    spans = profile["timeline"]
    lanes = list(dict.fromkeys(span["name"] for span in spans))
    figure, axis = plt.subplots(figsize=scaled(8, 0.34 * len(lanes) + 0.9))
    for span in spans:
        y = lanes.index(span["name"])
        colour = MUTED if span["name"] == "step" else ACCENT
        start, end = span["start_ms"], span["end_ms"]
        axis.barh(y, end - start, left=start, height=0.7, color=colour, edgecolor="white")
    axis.set_yticks(range(len(lanes)), lanes)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds")
    return figure
