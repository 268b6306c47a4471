"""The report's chapters, in order: each writes its scalars to reports/metrics/CHAPTER.json."""

CHAPTERS = (
    "data", "training", "heads", "clusters", "mechanisms", "ablation", "probes", "findings", "benchmark", "profile",
)  # fmt: skip
