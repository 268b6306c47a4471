"""tokenize_pack: articles -> Arrow shards of token rows, and the manifest that proves them.

tokenize_slice, the same code in several jobs: one share of the training articles -> its ids.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.data.articles import SPLITS, UNITS
from picollm.data.files import write_json
from picollm.data.packing import tokenize_pack, write_slice
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    cfg, inputs, output = dict(snakemake.params.cfg["tokens"]), snakemake.input, snakemake.output
    slices = cfg.pop("slices")
    if snakemake.rule == "tokenize_slice":
        number = int(snakemake.wildcards.slice)
        write_slice(Path(inputs.train), Path(output.ids), number, slices, snakemake.threads)
    else:
        sources = {split: Path(inputs[split]) for split in SPLITS}
        paths = [Path(path) for path in inputs.slices]
        manifest = tokenize_pack(sources, Path(output.manifest), **cfg, workers=snakemake.threads, slices=paths)
        metrics = {}
        for split, counts in manifest["splits"].items():
            metrics |= {f"{split}_{unit}": counts[unit] for unit in (*UNITS, "tokens", "rows")}
            logging.info("%s: %s tokens, %s rows", split, f"{counts['tokens']:,}", f"{counts['rows']:,}")
        write_json(output.metrics, metrics)
        found(f"{metrics['train_tokens']:,} training tokens")
