"""Packs the articles' tokens into Arrow shards of rows; writes the manifest that verifies them.

tokenize_slice: the same code in several jobs, each for one share of the training articles -> its ids.
"""

import logging
from pathlib import Path

from picollm.data.articles import SPLITS, UNITS
from picollm.data.packing import tokenize_pack, write_slice
from picollm.data.tokenizers import tokenizer_of
from picollm.files import write_json
from picollm.pipeline.job import job

with job() as rule:
    cfg, inputs, output = dict(rule.cfg["tokens"]), rule.inputs, rule.outputs
    slices, tokenizer = cfg.pop("slices"), tokenizer_of(inputs.tokenizer)
    if rule.name == "tokenize_slice":
        number = int(rule.wildcards.slice)
        write_slice(Path(inputs.train), Path(output.ids), number, slices, rule.threads, tokenizer)
    else:
        sources = {split: Path(inputs[split]) for split in SPLITS}
        paths = [Path(path) for path in inputs.slices]
        manifest = tokenize_pack(
            sources, Path(output.manifest), **cfg, workers=rule.threads, slices=paths, tokenizer=tokenizer
        )
        metrics = {}
        for split, counts in manifest["splits"].items():
            metrics |= {f"{split}_{unit}": counts[unit] for unit in (*UNITS, "tokens", "rows")}
            logging.info("%s: %s tokens, %s rows", split, f"{counts['tokens']:,}", f"{counts['rows']:,}")
        write_json(output.metrics, metrics)
        rule.report_result(f"{metrics['train_tokens']:,} training tokens")
