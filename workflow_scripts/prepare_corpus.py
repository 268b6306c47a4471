"""prepare_corpus: the configured corpus -> one parquet file per split, one row per article."""

import logging
from typing import TYPE_CHECKING

from picollm.data.corpora import Source, write_articles
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake):
    source = Source(**snakemake.params.cfg["corpus"])
    for split in ("train", "validation"):
        counts = write_articles(snakemake.output[split], source.articles(split))
        logging.info("%s: %s", split, ", ".join(f"{count:,} {unit}" for unit, count in counts.items()))
