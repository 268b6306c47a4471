"""Clusters heads that attend alike: the distance matrix, its dendrogram, and the clusters with their evidence."""

from picollm.attention.clusters import cluster_heads, metrics, write_arrays
from picollm.attention.maps import load_categories
from picollm.files import read_json, write_json
from picollm.pipeline.job import job

with job() as rule:
    heads = read_json(rule.inputs.heads)["heads"]
    report, arrays = cluster_heads(load_categories(rule.inputs.maps), heads, rule.cfg["clusters"])
    write_arrays(rule.outputs.arrays, arrays)
    write_json(rule.outputs.report, report)
    numbers = metrics(report)
    write_json(rule.outputs.metrics, numbers)
    stable = f"{numbers['clusters']} clusters, {numbers['stable_clusters']} of them stable"
    rule.report_result(stable if numbers["clusters"] else "no clusters")
