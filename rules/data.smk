"""Text to packed tokens.

REQUIRED INPUTS: none for the embedded sample; corpus.path for a local corpus.
OUTPUTS: data/corpus/{train,validation,test}.parquet, data/tokens/manifest.json and the shards that it lists.
"""


rule prepare_corpus:
    """One row per article, from the corpus of config.yaml."""
    input:
        local=CORPUS_FILES,
    output:
        train="data/corpus/train.parquet",
        validation="data/corpus/validation.parquet",
        test="data/corpus/test.parquet",
    log:
        "logs/prepare_corpus.log",
    benchmark:
        "logs/benchmarks/prepare_corpus.tsv"
    conda:
        "envs/picollm.yaml"
    resources:
        **needs("prepare_corpus"),
    params:
        cfg=sections("corpus"),
        code=fingerprint("prepare_corpus"),
    script:
        "../workflow_scripts/prepare_corpus.py"


rule tokenize_slice:
    """One share of the training split's ids, if tokens.slices is more than one job."""
    input:
        train="data/corpus/train.parquet",
        tokenizer=TOKENIZER_FILES,
    output:
        ids=temp(SLICES),
    log:
        "logs/tokenize_slice-{slice}.log",
    benchmark:
        "logs/benchmarks/tokenize_slice-{slice}.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("tokenize_slice", here=1)
    resources:
        **needs("tokenize_slice"),
    params:
        cfg=sections("tokens"),
        code=fingerprint("tokenize_pack"),
    script:
        "../workflow_scripts/tokenize_pack.py"


rule tokenize_pack:
    """GPT-2 byte-pair ids, or those of a checkpoint's tokenizer, packed into rows of the model's context."""
    input:
        train="data/corpus/train.parquet",
        validation="data/corpus/validation.parquet",
        test="data/corpus/test.parquet",
        slices=shares(SLICES, "tokens"),
        tokenizer=TOKENIZER_FILES,
    output:
        manifest="data/tokens/manifest.json",
        metrics="reports/metrics/data.json",
    log:
        "logs/tokenize_pack.log",
    benchmark:
        "logs/benchmarks/tokenize_pack.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("tokenize_pack")
    resources:
        **needs("tokenize_pack"),
    params:
        cfg=sections("tokens"),
        code=fingerprint("tokenize_pack"),
    script:
        "../workflow_scripts/tokenize_pack.py"
