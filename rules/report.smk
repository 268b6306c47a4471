"""Figures and the report.

REQUIRED INPUTS: every chapter's artefacts.
OUTPUTS: reports/figures/, reports/final.html.
"""


rule draw_figures:
    """Every figure of the report, from the chapters' data."""
    input:
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        curve="reports/training.csv",
        training="reports/training.json",
        heads="reports/heads.json",
        clusters="reports/clusters.json",
        arrays="data/clusters.npz",
        mechanisms="reports/mechanisms.json",
        ablation="reports/ablation.json",
        emergence="reports/emergence.json",
        probes="reports/probes.json",
        benchmark="reports/benchmark.json",
        profile="reports/profile.json",
    output:
        manifest="reports/figures/manifest.json",
    log:
        "logs/draw_figures.log",
    benchmark:
        "logs/benchmarks/draw_figures.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("draw_figures"),
    params:
        cfg=sections("report"),
        code=fingerprint("draw_figures"),
    script:
        "../workflow_scripts/draw_figures.py"


rule final_report:
    """One HTML file that needs no network."""
    input:
        figures="reports/figures/manifest.json",
        page=sorted(str(path) for path in Path("picollm/report/html").iterdir()),
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        data="data/tokens/manifest.json",
        seeds=SEED_FILES,
        training="reports/training.json",
        heads="reports/heads.json",
        clusters="reports/clusters.json",
        mechanisms="reports/mechanisms.json",
        emergence="reports/emergence.json",
        ablation="reports/ablation.json",
        probes="reports/probes.json",
        findings="reports/findings.json",
        engine="data/engine/manifest.json",
        benchmark="reports/benchmark.json",
        profile="reports/profile.json",
        metrics=[f"reports/metrics/{name}.json" for name in METRIC_FILES],
    output:
        report=report(
            "reports/final.html", caption="captions/report.rst", category="Report"
        ),
    log:
        "logs/final_report.log",
    benchmark:
        "logs/benchmarks/final_report.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("final_report"),
    params:
        cfg=sections("report", "corpus", *(SEED_SECTIONS if SEED_FILES else ())),
        code=fingerprint("final_report"),
    script:
        "../workflow_scripts/final_report.py"
