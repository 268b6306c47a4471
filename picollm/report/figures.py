"""Writes reports/figures/: every chapter's data as pictures, and the manifest that lists them with their captions.

The sentences of the explorer are chosen in picollm.report.explorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from picollm.attention.maps import CategoryMaps
from picollm.files import read_json
from picollm.report import attention_figures as attention
from picollm.report import measurement_figures as measurement
from picollm.report import sentence_figures
from picollm.report.gallery import Gallery
from picollm.report.mechanism_figures import mechanism_figures
from picollm.report.style import LETTERS

if TYPE_CHECKING:
    from picollm.attention.heads import HeadsReport

REPORTS = ("training", "heads", "clusters", "mechanisms", "ablation", "emergence", "probes", "benchmark", "profile")


def draw_figures(
    manifest: Path, inputs: Mapping[str, str], categories: Sequence[CategoryMaps], examples: int
) -> list[dict]:
    """Draws every figure into the manifest's folder; returns the manifest's entries.

    `inputs` are the paths of the REPORTS, of training.csv as `curve` and of clusters.npz as `arrays`; `examples` is the
    number of sentences per category whose attention is drawn.
    """
    gallery = Gallery(manifest)
    report: dict[str, Any] = {name: read_json(inputs[name]) for name in REPORTS}
    curve = pd.read_csv(inputs["curve"])
    if len(curve):  # empty for an imported model
        gallery.add("training.svg", measurement.loss_curve(curve, report["training"]), "Loss over tokens", data=curve)
    attention.head_figures(gallery, report["heads"], report["ablation"], report["clusters"], np.load(inputs["arrays"]))
    labels = [head["label"] for head in report["heads"]["heads"]]
    mechanism_figures(gallery, report, labels)
    latency = measurement.latency_bars(report["benchmark"]["results"])
    table = measurement.latencies(report["benchmark"]["results"])
    gallery.add("benchmark.svg", latency, "Latency by backend and batch", data=table)
    if "timeline" in report["profile"]:  # missing for a model of another family
        timeline = pd.DataFrame(report["profile"]["timeline"])
        steps = measurement.step_timeline(report["profile"])
        gallery.add("profile.svg", steps, "The first profiled training steps", data=timeline)
        rungs = pd.DataFrame(report["profile"]["loading"])
        step = report["profile"]["steps"]["mean_ms"]
        drawn, rungs = measurement.loading_ladder(rungs, step), rungs.assign(share_of_a_step=rungs["median_ms"] / step)
        gallery.add("loading.svg", drawn, "How long a batch takes to load, by way of loading", data=rungs)
    for category in categories:
        add_examples(gallery, category, report["heads"], examples)
    gallery.finish()
    return gallery.entries


def add_examples(gallery: Gallery, category: CategoryMaps, heads: HeadsReport, examples: int) -> None:
    """Adds the maps and the flow of sentences of medium length, which are neither trivial nor crowded."""
    names = [
        [f"{head['name']} {LETTERS[head['label']]}" for head in heads["heads"] if head["layer"] == layer]
        for layer in range(heads["n_layers"])
    ]
    by_length = sorted(range(len(category.ids)), key=lambda sentence: len(category.ids[sentence]))
    first = max(0, (len(by_length) - examples) // 2)
    for number, sentence in enumerate(by_length[first : first + examples]):
        weights, text, tokens = category.maps[sentence], category.texts[sentence], category.tokens[sentence]
        title = f"{category.title}, example {number + 1}, “{text}”"  # a browser has more fonts than the figures
        stem = f"{category.category}-{number}"
        gallery.add(f"{stem}-maps.png", sentence_figures.heat_maps(weights, text, names),
                    f"{title}: attention of every head, relative to uniform", group=category.title,
                    data=sentence_figures.map_table(weights, tokens))  # fmt: skip
        gallery.add(f"{stem}-flow.svg", sentence_figures.flow_figure(weights, tokens),
                    f"{title}: strongest above-chance edges, mean over heads, and the rollout through all layers",
                    group=category.title, data=sentence_figures.flow_table(weights, tokens))  # fmt: skip
