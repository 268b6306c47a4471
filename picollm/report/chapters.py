"""Names the files reports/metrics/NAME.json, in order; the chapters of the page are in picollm/report/page.py."""

METRIC_CHAPTERS = (
    "data", "training", "heads", "clusters", "mechanisms", "ablation", "probes", "findings", "benchmark", "profile",
)  # fmt: skip
