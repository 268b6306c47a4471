"""Which heads attend alike: the distance matrix, its dendrogram, and the clusters with their evidence."""

from typing import TYPE_CHECKING

from picollm.attention.families import families_of, metrics, write_arrays
from picollm.attention.maps import load_categories
from picollm.data.files import read_json, write_json
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    heads = read_json(snakemake.input.heads)["heads"]
    report, arrays = families_of(load_categories(snakemake.input.maps), heads, snakemake.params.cfg["clusters"])
    write_arrays(snakemake.output.arrays, arrays)
    write_json(snakemake.output.report, report)
    numbers = metrics(report)
    write_json(snakemake.output.metrics, numbers)
    found(f"{numbers['clusters']} families, {numbers['stable_clusters']} of them stable")
