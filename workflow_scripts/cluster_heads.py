"""Which heads attend alike: the distance matrix, its dendrogram, and the clusters with their evidence."""

from typing import TYPE_CHECKING

import numpy as np

from picollm.attention.clustering import sentence_divergences
from picollm.attention.families import families, metrics
from picollm.attention.maps import flatten, load_categories
from picollm.data.files import atomic_path, read_json, write_json
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    cfg = snakemake.params.cfg["clusters"]
    maps, _, number = flatten(load_categories(snakemake.input.maps))
    report, arrays = families(
        sentence_divergences(maps, number),
        heads=read_json(snakemake.input.heads)["heads"],
        max_k=cfg["max_k"],
        bootstraps=cfg["bootstraps"],
        seed=cfg["seed"],
    )
    with atomic_path(snakemake.output.arrays) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    write_json(snakemake.output.report, report)
    write_json(snakemake.output.metrics, metrics(report))
