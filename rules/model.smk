"""Pre-training.

REQUIRED INPUTS: data/tokens/manifest.json and its shards.
OUTPUTS: the model and its snapshots under data/model/, the loss curve and its summary under reports/.
"""


rule pretrain:
    """Trains the model from a seed; nothing else runs at the same time."""
    input:
        tokens="data/tokens/manifest.json",
        checkpoint=MODEL_FILES,
    output:
        weights="data/model/model.safetensors",
        last="data/model/last.safetensors",
        config="data/model/config.json",
        snapshots="data/model/snapshots/manifest.json",
        report="reports/training.json",
        curve=report(
            "reports/training.csv",
            caption="captions/training.rst",
            category="Training",
        ),
        metrics="reports/metrics/training.json",
    log:
        "logs/pretrain.log",
    benchmark:
        "logs/benchmarks/pretrain.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("pretrain")
    resources:
        **needs("pretrain"),
    params:
        cfg=sections("model", "pretrain", "compute"),
        code=fingerprint("pretrain"),
    script:
        "../workflow_scripts/pretrain.py"
