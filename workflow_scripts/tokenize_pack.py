"""tokenize_pack: articles -> Arrow shards of token rows, and the manifest that proves them."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.data.files import write_json
from picollm.data.packing import tokenize_pack
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    sources = {split: Path(path) for split, path in snakemake.input.items()}
    manifest = tokenize_pack(sources, Path(snakemake.output.manifest), **snakemake.params.cfg["tokens"])
    metrics = {}
    for split, counts in manifest["splits"].items():
        metrics |= {f"{split}_{unit}": counts[unit] for unit in ("articles", "words", "bytes", "tokens", "rows")}
        logging.info("%s: %s tokens, %s rows", split, f"{counts['tokens']:,}", f"{counts['rows']:,}")
    write_json(snakemake.output.metrics, metrics)
