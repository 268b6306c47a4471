"""Attention of the heads.

REQUIRED INPUTS: the trained model; the sentences of attention.sentences.
OUTPUTS: data/attention/CATEGORY.npz, reports/heads.json and .csv, reports/clusters.json, data/clusters.npz,
reports/findings.json.
"""


rule extract_category:
    """One category's maps, in a separate job if attention.apart is set."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        sentences=CONFIG["attention"]["sentences"],
        tokenizer=TOKENIZER_FILES,
    output:
        maps=temp(EXTRACTED),
    log:
        "logs/extract_category-{category}.log",
    benchmark:
        "logs/benchmarks/extract_category-{category}.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("extract_category"),
    params:
        cfg=sections("attention", "compute"),
        code=fingerprint("extract_attention"),
    script:
        "../workflow_scripts/extract_attention.py"


rule extract_attention:
    """Every head's attention on every sentence, one .npz per category."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        sentences=CONFIG["attention"]["sentences"],
        tokenizer=TOKENIZER_FILES,
        apart=expand(
            EXTRACTED, category=CATEGORIES if CONFIG["attention"]["apart"] else []
        ),
    output:
        **{category: f"data/attention/{category}.npz" for category in CATEGORIES},
    log:
        "logs/extract_attention.log",
    benchmark:
        "logs/benchmarks/extract_attention.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("extract_attention"),
    params:
        cfg=sections("attention", "compute"),
        code=fingerprint("extract_attention"),
    script:
        "../workflow_scripts/extract_attention.py"


rule classify_heads:
    """Chance-corrected statistics, labels with their stability, and the null models."""
    input:
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        weights="data/model/model.safetensors",
        config="data/model/config.json",
    output:
        report="reports/heads.json",
        table=report(
            "reports/heads.csv", caption="captions/heads.rst", category="Heads"
        ),
        metrics="reports/metrics/heads.json",
    log:
        "logs/classify_heads.log",
    benchmark:
        "logs/benchmarks/classify_heads.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("classify_heads"),
    params:
        cfg=sections("heads", "compute"),
        code=fingerprint("classify_heads"),
    script:
        "../workflow_scripts/classify_heads.py"


rule cluster_heads:
    """Distances between heads, their dendrogram, and the stability of its clusters."""
    input:
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        heads="reports/heads.json",
    output:
        report="reports/clusters.json",
        arrays="data/clusters.npz",
        metrics="reports/metrics/clusters.json",
    log:
        "logs/cluster_heads.log",
    benchmark:
        "logs/benchmarks/cluster_heads.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("cluster_heads"),
    params:
        cfg=sections("clusters"),
        code=fingerprint("cluster_heads"),
    script:
        "../workflow_scripts/cluster_heads.py"


rule state_findings:
    """The original's claims about its heads, each with a verdict and its numbers."""
    input:
        heads="reports/heads.json",
        clusters="reports/clusters.json",
        probes="reports/probes.json",
        emergence="reports/emergence.json",
        ablation="reports/ablation.json",
        training="reports/training.json",
    output:
        report=report(
            "reports/findings.json", caption="captions/findings.rst", category="Claims"
        ),
        metrics="reports/metrics/findings.json",
    log:
        "logs/state_findings.log",
    benchmark:
        "logs/benchmarks/state_findings.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("state_findings"),
    params:
        cfg=sections("heads"),
        code=fingerprint("state_findings"),
    script:
        "../workflow_scripts/state_findings.py"
