"""Draws the heads: their classes and the evidence for them, their distances and clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from picollm.report.gallery import Gallery
from picollm.report.style import (
    ACCENT,
    INK,
    LABEL_COLOURS,
    LETTERS,
    MUTED,
    SECOND,
    SMALLEST,
    every,
    plt,
    scaled,
)
from picollm.stats import SIGNIFICANT, interval_columns

if TYPE_CHECKING:
    from picollm.attention.clusters import ClustersReport
    from picollm.attention.heads import Head, HeadsReport, LabelShare, Sensitivity
    from picollm.mechanisms.ablation import AblationReport
    from picollm.stats import DefinedInterval, Interval


def class_pie(labels: dict[str, LabelShare]) -> Figure:
    """Draws the shares of the labels. `labels`: {label: {count, share, low, high}}."""
    shown = {label: row for label, row in labels.items() if row["count"]}
    figure, axis = plt.subplots(figsize=scaled(8.2, 3.2))
    wedges, _ = axis.pie(
        [row["count"] for row in shown.values()], colors=[LABEL_COLOURS[label] for label in shown],
        startangle=90, counterclock=False, wedgeprops={"edgecolor": "white", "linewidth": 1.5},
    )  # fmt: skip
    text = [
        f"{label}: {row['count']} ({row['share']:.0%}, 95 % {row['low']:.0%} to {row['high']:.0%})"
        for label, row in shown.items()
    ]
    figure.legend(wedges, text, loc="outside right center", frameon=False)
    return figure


def class_grid(heads: list[Head]) -> Figure:
    """Draws layers x heads, coloured by label, pale if the label is unstable; the number is its stability."""
    frame = pd.DataFrame(heads)
    frame["colour"] = [
        list(LABEL_COLOURS).index(head["label"]) + 0.5 * head["unstable"] for head in heads
    ]  # for each label the full colour, then the pale one
    frame["text"] = [f"{LETTERS[head['label']]} {head['stability']:.2f}" for head in heads]
    shades = [shade for colour in LABEL_COLOURS.values() for shade in (colour, sns.light_palette(colour, 3)[1])]
    grid, text = (frame.pivot(index="layer", columns="head", values=column) for column in ("colour", "text"))
    figure, axis = plt.subplots(figsize=scaled(0.85 * grid.shape[1] + 1.4, 0.5 * grid.shape[0] + 0.9))
    sns.heatmap(
        grid, annot=text, fmt="", cmap=ListedColormap(shades), vmin=-0.25, vmax=len(LABEL_COLOURS) - 0.25, cbar=False,
        linewidths=2, annot_kws={"fontsize": SMALLEST}, ax=axis,
    )  # fmt: skip
    axis.tick_params(axis="y", rotation=0)
    used = [label for label in LABEL_COLOURS if label in set(frame["label"])]
    keys = [Rectangle((0, 0), 1, 1, color=LABEL_COLOURS[label]) for label in used]
    names = [f"{LETTERS[label]}  {label}" for label in used]
    figure.legend(keys, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=8)
    return figure


def plane_figure(report: HeadsReport, ablation: AblationReport | None) -> Figure:
    """Draws every head by what explains its attention: the offset (positional share) or the key itself (content share);
    the rest is uniform. The area is the increase of the loss without the head, if known."""
    figure, axis = plt.subplots(figsize=scaled(7.4, 4.8))
    frame = pd.DataFrame(
        {
            "content": [head["statistics"]["content"]["value"] for head in report["heads"]],
            "positional": [head["statistics"]["positional"]["value"] for head in report["heads"]],
            "label": [head["label"] for head in report["heads"]],
            "loss": [max(0.0, head["delta"]) for head in ablation["heads"]] if ablation else 0.0,
        }
    )
    area = 12 + 400 * np.sqrt(frame["loss"] / max(frame["loss"].max(), 1e-9))
    for label, colour in LABEL_COLOURS.items():
        chosen = (frame["label"] == label) & frame["content"].notna()
        if chosen.any():
            axis.scatter(
                frame["positional"][chosen], frame["content"][chosen], s=area[chosen], color=colour, alpha=0.75,
                edgecolor="white", linewidth=0.8, label=label,
            )  # fmt: skip
    axis.plot([0, 1], [1, 0], color=MUTED, linewidth=0.8, linestyle=":")
    axis.text(0.03, 0.03, "uniform", color=MUTED, fontsize=8)
    axis.set(xlim=(-0.06, 1), ylim=(-0.04, 1), xlabel="positional share", ylabel="content share")
    figure.legend(loc="outside right center", frameon=False, fontsize=8, markerscale=0.6)
    certain = [head["q"] < SIGNIFICANT for head in ablation["heads"]] if ablation else [False] * len(frame)
    named = frame.assign(name=[head["name"] for head in report["heads"]])[certain]
    placed: list[tuple[float, float]] = []
    for _, head in named.nlargest(6, "loss").iterrows():
        x, y = head["positional"], head["content"]
        if any(abs(x - a) < 0.08 and abs(y - b) < 0.04 for a, b in placed):
            continue  # one name over another could not be read
        placed.append((x, y))
        axis.annotate(head["name"], (head["positional"], head["content"]), fontsize=SMALLEST, ha="center", va="center")
    return figure


def evidence_figure(report: HeadsReport) -> Figure:
    """Draws the evidence for the labels: each head's strongest kappa and content share, with those of untrained heads.

    Dashed: the current thresholds. Dotted: 99th percentiles of the nulls, untrained heads and shuffled rows.
    """
    figure, axis = plt.subplots(figsize=scaled(7.2, 4.2))
    null = report["null"]["values"]
    axis.scatter(
        np.array(null["content"], dtype=float),
        np.array(null["kappa_max"], dtype=float),
        s=8,
        color=MUTED,
        alpha=0.5,
        label="heads of untrained models",
    )
    for label, colour in LABEL_COLOURS.items():
        shown = [pair for head in report["heads"] if head["label"] == label for pair in evidence(head["statistics"])]
        if shown:
            content, kappa = zip(*shown, strict=True)
            axis.errorbar(
                [row["value"] for row in content], [row["value"] for row in kappa], xerr=reach(content),
                yerr=reach(kappa), fmt="o", markersize=4, color=colour, elinewidth=0.7, label=label,
            )  # fmt: skip
    for name, line in (("content", axis.axvline), ("kappa", axis.axhline)):
        row = report["thresholds"][name]
        line(row["value"], color=ACCENT, linestyle="--", linewidth=1)
        for percentile in (row["null_percentile_99"], row["shuffled_percentile_99"]):
            if percentile is not None:
                line(percentile, color=MUTED, linestyle=":", linewidth=1)
    axis.set(xlabel="content share", ylabel="strongest kappa (self, previous, local)")
    axis.legend(frameon=False, fontsize=8)
    return figure


def evidence(statistics: dict[str, Interval]) -> list[tuple[DefinedInterval, DefinedInterval]]:
    """Returns a head's content share and its strongest kappa; empty if either is undefined."""
    content = statistics["content"]
    kappas = [statistics[f"kappa_{name}"] for name in ("self", "prev", "local")]
    known = cast("list[DefinedInterval]", [row for row in kappas if row["low"] is not None])
    if not known or content["low"] is None:
        return []
    return [(cast("DefinedInterval", content), max(known, key=lambda row: row["value"]))]


def reach(rows: Sequence[DefinedInterval]) -> list[list[float]]:
    """Returns the arms of error bars; at least 0, as a percentile interval need not contain the value itself."""
    return [[max(0, row["value"] - row["low"]) for row in rows], [max(0, row["high"] - row["value"]) for row in rows]]


def sensitivity_figure(sensitivity: Sensitivity) -> Figure:
    """Draws the number of heads per label with one threshold, or the local window, changed."""
    panels: dict[str, list[tuple[str, list[int]]]] = {}
    for row in sensitivity["thresholds"]:
        panels.setdefault(row["threshold"], []).append((f"{row['value']:.2f}", row["labels"]))
    panels["window"] = [(str(row["window"]), row["labels"]) for row in sensitivity["window"]]
    figure, axes = plt.subplots(1, len(panels), figsize=scaled(1.9 * len(panels), 2.8), sharey=True)
    for axis, (name, columns) in zip(axes, panels.items(), strict=True):
        counts = np.array([labels for _, labels in columns])
        bottom = np.zeros(len(columns))
        for k, colour in enumerate(LABEL_COLOURS.values()):
            axis.bar(range(len(columns)), counts[:, k], bottom=bottom, color=colour, width=0.9)
            bottom += counts[:, k]
        axis.set_xticks(range(len(columns)), [value for value, _ in columns], fontsize=SMALLEST)
        axis.set_xlabel(name)
    axes[0].set_ylabel("heads")
    return figure


def map_of_heads(coordinates: NDArray, heads: list[Head], clusters: list[int], shown: float) -> Figure:
    """Draws the distances in two dimensions, by classical scaling; colour is the class, the number the cluster."""
    figure, axis = plt.subplots(figsize=scaled(6.4, 4.6))
    axis.scatter(*coordinates.T, s=90, color=[LABEL_COLOURS[head["label"]] for head in heads], alpha=0.8)
    for (x, y), cluster in zip(coordinates, clusters, strict=True):
        axis.text(x, y, str(cluster), ha="center", va="center", fontsize=SMALLEST, color=INK)
    axis.set(xlabel="first coordinate", ylabel=f"second; both show {shown:.0%} of the distances", aspect="equal")
    return figure


def head_figures(
    gallery: Gallery,
    report: HeadsReport,
    ablation: AblationReport | None,
    clusters: ClustersReport,
    arrays: Mapping[str, NDArray],
) -> None:
    """Adds the figures of the chapters on heads and on their clusters."""
    heads, table = report["heads"], head_table(report["heads"])
    names, labels = [head["name"] for head in heads], [head["label"] for head in heads]
    gallery.add(
        "plane.svg",
        plane_figure(report, ablation),
        "Heads by what explains their attention; the larger the disc, the more its head costs to remove; the colour is "
        "the class",
        data=table,
    )
    shares = pd.DataFrame([{"class": label, **row} for label, row in report["labels"].items()])
    gallery.add("classes.svg", class_pie(report["labels"]), "Share of each class of heads, with intervals", data=shares)
    gallery.add(
        "grid.svg",
        class_grid(heads),
        "Class of every head and its stability over sentences; pale where below 80 %",
        data=table[["name", "label", "stability"]],
    )
    gallery.add(
        "evidence.svg",
        evidence_figure(report),
        "What the classes rest on: intervals, thresholds (dashed), 99th percentiles of the nulls (dotted)",
        data=table,
    )
    sensitivity = report["sensitivity"]
    rows = [(row["threshold"], row["value"], row["labels"]) for row in sensitivity["thresholds"]]
    rows += [("window", row["window"], row["labels"]) for row in sensitivity["window"]]
    changed = pd.DataFrame(
        [{"changed": name, "to": to, **dict(zip(LABEL_COLOURS, labels, strict=True))} for name, to, labels in rows]
    )
    gallery.add(
        "sensitivity.svg",
        sensitivity_figure(report["sensitivity"]),
        "Heads by class under other thresholds",
        data=changed,
    )
    noise = clusters["noise"]["mean_absolute_difference"]
    clustered = cluster_map(arrays["distance"], arrays["linkage"], names, labels, noise)
    gallery.add(
        "clusters.png",
        clustered,
        "Similarity of every pair of heads, with their tree and their classes",
        data=pd.DataFrame(1 - arrays["distance"], columns=names).assign(head=names),
    )
    members = [head["cluster"] for head in clusters["heads"]]
    distance_map = map_of_heads(arrays["coordinates"], heads, members, clusters["coordinates_show"])
    points = pd.DataFrame(arrays["coordinates"], columns=["x", "y"]).assign(head=names, cluster=members)
    gallery.add(
        "map.svg", distance_map, "Heads in two dimensions by their distances; the number is the cluster", data=points
    )


def head_table(heads: list[Head]) -> pd.DataFrame:
    """Tabulates each head's class and statistics with their intervals, one row per head."""
    return pd.DataFrame(
        [
            {name: head[name] for name in ("name", "label", "tag", "stability")} | interval_columns(head["statistics"])
            for head in heads
        ]
    )


def cluster_map(
    distance_HH: NDArray, linkage_matrix: NDArray, names: list[str], labels: list[str], noise: float | None
) -> Figure:
    """Draws the similarity of every pair of heads with their tree; the strip has the classes' colours, the dashed line
    is the noise floor."""
    similarity, own = pd.DataFrame(1 - distance_HH, names, names), np.eye(len(names), dtype=bool)
    largest = 1 - distance_HH[~own].min()  # the diagonal, always 1, would leave the others one dark shade
    colours = pd.Series([LABEL_COLOURS[label] for label in labels], names, name="class")
    shown = every(names, 6.6)
    step = shown[1] - shown[0] if len(shown) > 1 else 1
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn places the parts itself
        grid = sns.clustermap(
            similarity, row_linkage=linkage_matrix, col_linkage=linkage_matrix, row_colors=colours, cmap="viridis",
            mask=own, vmin=0, vmax=largest, figsize=scaled(9.2, 9.6), dendrogram_ratio=(0.1, 0.2), xticklabels=step,
            yticklabels=step, cbar_pos=(0.02, 0.84, 0.02, 0.12), cbar_kws={"label": "similarity,\n1 − distance"},
        )  # fmt: skip
    grid.ax_heatmap.tick_params(labelsize=SMALLEST)
    if noise is not None:
        grid.ax_col_dendrogram.axhline(noise, color=SECOND, linestyle="--", linewidth=1)
        grid.ax_col_dendrogram.text(1, noise, "noise floor", color=SECOND, ha="right", va="bottom", fontsize=8,
                                    transform=grid.ax_col_dendrogram.get_yaxis_transform())  # fmt: skip
    return grid.figure
