"""Compiles the trained model for every configured backend; writes the artefacts and a manifest that describes them."""

from pathlib import Path

from picollm.engine.build import compile_engines
from picollm.pipeline.job import job

with job() as rule:
    inputs = rule.inputs
    folder = Path(rule.outputs.manifest).parent
    manifest = compile_engines(Path(inputs.weights).parent, Path(inputs.tokens), folder, rule.cfg)
    built = [name for name, backend in manifest["backends"].items() if backend["files"]]
    rule.report_result(", ".join(built) or "no engine")
