"""Causal effects of the heads.

REQUIRED INPUTS: the trained model and its snapshots, the packed tokens, data/attention/, reports/heads.json and
reports/clusters.json.
OUTPUTS: reports/mechanisms.json, reports/emergence.json, reports/ablation.json, reports/probes.json; study/.
"""


rule score_mechanisms:
    """Previous-token, duplicate and induction scores on repeated random tokens, and their emergence in training."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        snapshots="data/model/snapshots/manifest.json",
        tokens="data/tokens/manifest.json",
        tokenizer=TOKENIZER_FILES,
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        heads="reports/heads.json",
    output:
        report="reports/mechanisms.json",
        emergence="reports/emergence.json",
        metrics="reports/metrics/mechanisms.json",
    log:
        "logs/score_mechanisms.log",
    benchmark:
        "logs/benchmarks/score_mechanisms.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("score_mechanisms"),
    params:
        cfg=sections("mechanisms", "compute"),
        code=fingerprint("score_mechanisms"),
    script:
        "../workflow_scripts/score_mechanisms.py"


rule ablate_slice:
    """One share of the windows on which heads are ablated, if mechanisms.slices is more than one job."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
        tokenizer=TOKENIZER_FILES,
    output:
        part=temp(ABLATED),
    log:
        "logs/ablate_slice-{slice}.log",
    benchmark:
        "logs/benchmarks/ablate_slice-{slice}.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("ablate_slice")
    resources:
        **needs("ablate_slice"),
    params:
        cfg=sections("mechanisms", "compute"),
        code=fingerprint("ablate_heads"),
    script:
        "../workflow_scripts/ablate_heads.py"


rule ablate_heads:
    """The rise in loss without each head."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
        tokenizer=TOKENIZER_FILES,
        slices=shares(ABLATED, "mechanisms"),
    output:
        report="reports/ablation.json",
        metrics="reports/metrics/ablation.json",
    log:
        "logs/ablate_heads.log",
    benchmark:
        "logs/benchmarks/ablate_heads.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("ablate_heads")
    resources:
        **needs("ablate_heads"),
    params:
        cfg=sections("mechanisms", "compute"),
        code=fingerprint("ablate_heads"),
    script:
        "../workflow_scripts/ablate_heads.py"


rule probe_heads:
    """Coreference by attention; agreement, negation and questions by minimal pairs."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
        tokenizer=TOKENIZER_FILES,
    output:
        report="reports/probes.json",
        metrics="reports/metrics/probes.json",
    log:
        "logs/probe_heads.log",
    benchmark:
        "logs/benchmarks/probe_heads.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("probe_heads"),
    params:
        cfg=sections("mechanisms", "attention", "compute"),
        code=fingerprint("probe_heads"),
    script:
        "../workflow_scripts/probe_heads.py"


rule full_study:
    """The target of `make study`: every kind of ablation, groups, categories, minimal pairs, pairs of heads."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
        tokenizer=TOKENIZER_FILES,
        maps=[f"data/attention/{category}.npz" for category in CATEGORIES],
        heads="reports/heads.json",
        clusters="reports/clusters.json",
        template="picollm/report/study.md.j2",
    output:
        report="study/study.json",
        page="study/study.md",
    log:
        "logs/full_study.log",
    benchmark:
        "logs/benchmarks/full_study.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("full_study")
    resources:
        **needs("full_study"),
    params:
        cfg=sections("mechanisms", "compute"),
        code=fingerprint("full_study"),
    script:
        "../workflow_scripts/full_study.py"
