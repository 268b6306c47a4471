"""Many trainings, one per job: seeds, and a grid of parameters.

REQUIRED INPUTS: the packed tokens; for the grid presets/sweep.csv, a column SECTION__KEY for each parameter.
OUTPUTS: study/variants/KEY~VALUE,....json, study/seeds-NUMBER.json, study/sweep.csv. None is a stage of DVC.
"""


rule train_variant:
    """One training of config.yaml with the values in its name: its loss, and its heads' classes."""
    input:
        tokens="data/tokens/manifest.json",
        sentences=CONFIG["attention"]["sentences"],
    output:
        report="study/variants/{variant}.json",
    log:
        "logs/train_variant-{variant}.log",
    benchmark:
        "logs/benchmarks/train_variant-{variant}.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("train_variant")
    resources:
        **needs("train_variant"),
    params:
        cfg=variant,
        code=fingerprint("train_variant"),
    script:
        "../workflow_scripts/train_variant.py"


rule compare_seeds:
    """The trainings of several seeds compared: effects of the recipe, and chance."""
    input:
        variants=seeds_of,
        tokens="data/tokens/manifest.json",
    output:
        report="study/seeds-{number}.json",
    log:
        "logs/compare_seeds-{number}.log",
    benchmark:
        "logs/benchmarks/compare_seeds-{number}.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("compare_seeds"),
    params:
        cfg=sections(*SEED_SECTIONS),
        code=fingerprint("compare_seeds"),
    script:
        "../workflow_scripts/compare_seeds.py"


rule sweep:
    """The grid of presets/sweep.csv as one table: parameters, loss, classes."""
    input:
        variants=grid,
        table="presets/sweep.csv",
    output:
        table="study/sweep.csv",
    log:
        "logs/sweep.log",
    benchmark:
        "logs/benchmarks/sweep.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("sweep"),
    params:
        cfg={},
        code=fingerprint("sweep"),
    script:
        "../workflow_scripts/sweep.py"
