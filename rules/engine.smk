"""Engine, benchmark, profile. These are measurements: nothing else runs at the same time.

REQUIRED INPUTS: the trained model, packed tokens.
OUTPUTS: data/engine/, reports/benchmark.json and .csv, data/profile/, reports/profile.json.
"""


rule trt_compile:
    """Every configured backend's artefact: TensorRT's for this machine's GPU, or ahead of time for configured GPUs."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
    output:
        manifest="data/engine/manifest.json",
    log:
        "logs/trt_compile.log",
    benchmark:
        "logs/benchmarks/trt_compile.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("trt_compile")  # compilers choose kernels by timing them
    resources:
        **needs("trt_compile"),
    params:
        cfg=sections("engine", "compute"),
        code=fingerprint("trt_compile"),
    script:
        "../workflow_scripts/trt_compile.py"


rule trt_benchmark:
    """Accuracy gate, then interleaved latencies of every backend that this machine can run."""
    input:
        weights="data/model/model.safetensors",
        config="data/model/config.json",
        engine="data/engine/manifest.json",
        tokens="data/tokens/manifest.json",
    output:
        report="reports/benchmark.json",
        samples=report(
            "reports/benchmark.csv", caption="captions/benchmark.rst", category="Speed"
        ),
        metrics="reports/metrics/benchmark.json",
    log:
        "logs/trt_benchmark.log",
    benchmark:
        "logs/benchmarks/trt_benchmark.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("trt_benchmark")
    resources:
        **needs("trt_benchmark"),
    params:
        cfg=sections("engine", "benchmark", "compute"),
        code=fingerprint("trt_benchmark"),
    script:
        "../workflow_scripts/trt_benchmark.py"


rule nsys_capture:
    """A profile of the training loop, by nsys if it is installed, otherwise by torch.profiler."""
    input:
        config="data/model/config.json",
        tokens="data/tokens/manifest.json",
    output:
        manifest="data/profile/manifest.json",
        report="reports/profile.json",
        metrics="reports/metrics/profile.json",
    log:
        "logs/nsys_capture.log",
    benchmark:
        "logs/benchmarks/nsys_capture.tsv"
    conda:
        "envs/picollm.yaml"
    threads: cpus("nsys_capture")
    resources:
        **needs("nsys_capture"),
    params:
        cfg=sections("profile", "pretrain", "compute"),
        code=fingerprint("nsys_capture"),
    script:
        "../workflow_scripts/nsys_capture.py"
