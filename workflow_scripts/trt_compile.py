"""trt_compile: the trained model -> every configured backend's artefacts, and what they are good for."""

from pathlib import Path
from typing import TYPE_CHECKING

from picollm.engine.build import compile_engines
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    inputs = snakemake.input
    folder = Path(snakemake.output.manifest).parent
    manifest = compile_engines(Path(inputs.weights).parent, Path(inputs.tokens), folder, snakemake.params.cfg)
    built = [name for name, backend in manifest["backends"].items() if backend["files"]]
    found(", ".join(built) or "no engine")
