"""Draws the effects of heads: the loss without each, the scores over training, and the probes with their rivals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from picollm.report.gallery import Gallery
from picollm.report.style import ACCENT, INK, LABEL_COLOURS, MUTED, SECOND, SMALLEST, every, plt, scaled
from picollm.report.tested_probes import tested_probes

if TYPE_CHECKING:
    from picollm.mechanisms.ablation import AblationReport
    from picollm.mechanisms.emergence import EmergenceReport
    from picollm.mechanisms.mechanisms import MechanismsReport
    from picollm.mechanisms.probes import ProbesReport

LINEAR = 0.005  # nats below which the ablation's axis is linear, log above: else one layer would dwarf the others
CURVES = {
    "kappa_max": "positional (kappa)",
    "kappa_set": "token-specific",
    "previous": "previous token",
    "duplicate": "duplicate token",
    "induction": "induction",
}


def ablation_bars(ablation: AblationReport, labels: list[str]) -> Figure:
    """Draws the increase of the loss without each head, in nats with intervals, by layer; colour is the class."""
    heads = ablation["heads"]
    figure, axis = plt.subplots(figsize=scaled(9, 3.2))
    x, delta = np.arange(len(heads)), np.array([head["delta"] for head in heads])
    arms = [
        np.maximum(0, delta - [head["low"] for head in heads]),
        np.maximum(0, [head["high"] for head in heads] - delta),
    ]
    axis.bar(x, delta, color=[LABEL_COLOURS[label] for label in labels], yerr=arms, error_kw={"elinewidth": 0.7})
    axis.axhline(0, color=INK, linewidth=0.6)
    shown = every(heads, 8.2)
    axis.set_xticks(shown, [heads[k]["name"] for k in shown], rotation=90, fontsize=SMALLEST)
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.yaxis.set_major_formatter(lambda nats, _: f"{nats:g}")
    axis.set_ylabel("nats per token")
    return figure


def emergence_curves(emergence: EmergenceReport) -> Figure:
    """Draws the number of heads with an effect (above) and the loss on some validation windows (below), by snapshot."""
    snapshots = emergence["snapshots"]
    steps = [row["step"] for row in snapshots]
    figure, (above, below) = plt.subplots(2, 1, figsize=scaled(7.2, 4.8), sharex=True, height_ratios=(2, 1))
    for (name, label), style in zip(CURVES.items(), ("-", "--", "-.", ":", "-"), strict=True):
        counts = [row["effects"][name] for row in snapshots]
        above.plot(steps, counts, linestyle=style, marker="o", markersize=3, label=label)
    above.set_ylabel("heads with an effect")
    above.set_ylim(0, max(1, *(count for row in snapshots for count in row["effects"].values())) * 1.05)
    above.legend(frameon=False, fontsize=8)
    below.plot(steps, [row["loss"] for row in snapshots], color=MUTED, marker="o", markersize=3)
    below.set(xlabel="training step", ylabel=f"loss, {emergence['windows']}\nvalidation windows")
    below.set_xscale("symlog", linthresh=1)
    below.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")  # the default formatter writes formulas
    return figure


def probe_table(probes: ProbesReport) -> pd.DataFrame:
    rows = []
    for name, (own, entry) in tested_probes(probes).items():
        rows.append({"probe": name, "of": "the model", **own})
        rows += [{"probe": name, "of": rival, **row} for rival, row in entry["baselines"].items()]
    return pd.DataFrame(rows)


def probe_bars(probes: ProbesReport) -> Figure:
    """Draws the model's accuracy on every probe, with its interval, and that of all rivals."""
    rows = {name: (own, entry["baselines"]) for name, (own, entry) in tested_probes(probes).items()}
    figure, axis = plt.subplots(figsize=scaled(6.4, 0.6 * len(rows) + 1))
    for y, (own, rivals) in enumerate(rows.values()):
        arms = [[max(0, own["accuracy"] - own["low"])], [max(0, own["high"] - own["accuracy"])]]
        axis.errorbar(own["accuracy"], y, xerr=arms, fmt="o", color=ACCENT, capsize=3)
        axis.scatter([row["accuracy"] for row in rivals.values()], [y] * len(rivals), marker="|", s=120, color=SECOND)
    axis.axvline(0.5, color=MUTED, linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy; dotted: chance")
    return figure


def context_table(mechanisms: MechanismsReport) -> pd.DataFrame:
    """Tabulates the context curve, then the loss after each layer (0: the embedding)."""
    layers = pd.DataFrame(mechanisms["after_layer"]).rename(columns={"value": "loss"}).reset_index(names="layers")
    return pd.concat([pd.DataFrame(mechanisms["context"]["curve"]), layers])


def context_figure(mechanisms: MechanismsReport) -> Figure:
    """Draws the loss increase if only the last tokens are read (left), and the loss after each layer (logit lens)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=scaled(8.4, 3.2))
    curve, layers = mechanisms["context"]["curve"], mechanisms["after_layer"][1:]  # 0, the embedding, predicts nothing
    for axis, x, rows, middle in (
        (left, [row["tokens"] for row in curve], curve, np.array([row["cost"] for row in curve])),
        (right, range(len(layers)), layers, np.array([row["value"] for row in layers])),
    ):
        arms = [
            np.maximum(0, middle - [row["low"] for row in rows]),
            np.maximum(0, [row["high"] for row in rows] - middle),
        ]
        axis.errorbar(x, middle, yerr=arms, marker="o", markersize=4, color=ACCENT, elinewidth=0.8)
    left.axhline(0, color=MUTED, linewidth=0.6)
    left.set_xscale("log", base=2)
    left.set_xticks([row["tokens"] for row in curve], [str(row["tokens"]) for row in curve])
    left.set(xlabel="tokens that are read", ylabel="nats lost")
    right.set_xticks(range(len(layers)))
    right.set(xlabel="read out after layer", ylabel="loss, nats")
    return figure


def emergence_table(emergence: EmergenceReport) -> pd.DataFrame:
    """Tabulates the loss and the number of heads with each effect, one row per snapshot."""
    rows = [{"step": row["step"], "loss": row["loss"], **row["effects"]} for row in emergence["snapshots"]]
    return pd.DataFrame(rows)


def ablation_table(ablation: AblationReport, labels: list[str]) -> pd.DataFrame:
    """Tabulates the increase of the loss without each head, with its interval, and the head's class."""
    names = ["name", "delta", "low", "high", "q"]
    return pd.DataFrame(ablation["heads"])[names].assign(label=labels)


def mechanism_figures(gallery: Gallery, report: Mapping[str, Any], labels: list[str]) -> None:
    gallery.add(
        "ablation.svg",
        ablation_bars(report["ablation"], labels),
        "The loss without each head; colour: its class",
        data=ablation_table(report["ablation"], labels),
    )
    gallery.add(
        "context.svg",
        context_figure(report["mechanisms"]),
        "What is lost where only the last tokens are read, and the loss when the model is read out after each layer",
        data=context_table(report["mechanisms"]),
    )
    if report["emergence"]["snapshots"]:
        gallery.add(
            "emergence.svg",
            emergence_curves(report["emergence"]),
            "Heads with an effect, and the loss, by step",
            data=emergence_table(report["emergence"]),
        )
    if tested_probes(report["probes"]):
        gallery.add(
            "probes.svg",
            probe_bars(report["probes"]),
            "Probes: the model (dot, 95 %) and its rivals (strokes)",
            data=probe_table(report["probes"]),
        )
