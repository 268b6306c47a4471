"""draw_figures: every chapter's data -> the report's pictures, and the manifest that names them with their captions."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picollm.attention.maps import load_categories
from picollm.data.files import read_json
from picollm.pipeline.job import job
from picollm.report import attention_figures as attention
from picollm.report import measurement_figures as measurement
from picollm.report.gallery import Gallery
from picollm.report.mechanism_figures import mechanism_figures

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, inputs, gallery = snakemake.params.cfg["report"], snakemake.input, Gallery(Path(snakemake.output.manifest))
    training, report, clusters, ablation, emergence, probes, benchmark, profile = (
        read_json(inputs[name])
        for name in ("training", "heads", "clusters", "ablation", "emergence", "probes", "benchmark", "profile")
    )
    heads = report["heads"]
    with open(inputs.curve, encoding="utf-8") as file:
        curve = list(csv.DictReader(file))
    if curve:  # there is none of an imported model
        gallery.add("training.svg", measurement.loss_curve(curve, training), "Loss over tokens")
    attention.head_figures(gallery, report, clusters, np.load(inputs.arrays))
    mechanism_figures(gallery, ablation, emergence, probes, [head["label"] for head in heads])
    gallery.add("benchmark.svg", measurement.latency_bars(benchmark["results"]), "Latency by backend and batch")
    gallery.add("profile.svg", measurement.step_timeline(profile), "The first profiled training steps")

    by_layer = [[f"{h['name']} {attention.LETTERS[h['label']]}" for h in heads if h["layer"] == layer]
                for layer in range(report["n_layers"])]  # fmt: skip
    for category in load_categories(inputs.maps):
        by_length = sorted(range(len(category.ids)), key=lambda sentence: len(category.ids[sentence]))
        first = max(0, (len(by_length) - cfg["examples"]) // 2)  # of middle length: neither trivial nor crowded
        for number, sentence in enumerate(by_length[first : first + cfg["examples"]]):
            weights, text, tokens = category.maps[sentence], category.texts[sentence], category.tokens[sentence]
            title = f"{category.title}, example {number + 1}, “{text}”"  # a browser has more fonts than the figures
            stem = f"{category.category}-{number}"
            gallery.add(f"{stem}-maps.png", attention.heat_maps(weights, text, by_layer),
                        f"{title}: attention of every head, relative to uniform", group=category.title)  # fmt: skip
            gallery.add(f"{stem}-flow.svg", attention.flow_figure(weights, tokens),
                        f"{title}: strongest above-chance edges, mean over heads", group=category.title)  # fmt: skip
    gallery.finish()
    found(f"{len(gallery.entries)} figures")
