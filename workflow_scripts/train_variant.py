"""Trains a variant of config.yaml with the values in its name; writes its loss and its heads' classes."""

from pathlib import Path

from picollm.files import sha256, write_json
from picollm.model.checkpoints import Checkpoints
from picollm.pipeline.job import job
from picollm.seeds import variant

with job() as rule:
    tokens = rule.inputs.tokens
    store = Checkpoints(Path("checkpoints"), {**rule.cfg, "tokens": sha256(tokens), "code": rule.code})
    report = variant(rule.cfg, tokens, store)
    write_json(rule.outputs.report, report)
    store.remove()
    rule.report_result(f"validation loss {report['validation_loss']:.3f} nats")
