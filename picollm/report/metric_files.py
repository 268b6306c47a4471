"""Names the files reports/metrics/NAME.json, in order. (The page's chapters: CHAPTERS in picollm/report/page.py.)"""

METRIC_FILES = (
    "data", "training", "heads", "clusters", "mechanisms", "ablation", "probes", "findings", "benchmark", "profile",
)  # fmt: skip
