"""prepare_corpus: the configured corpus -> one parquet file per split, one row per article."""

import logging
from typing import TYPE_CHECKING

from picollm.data.articles import SPLITS, write_articles
from picollm.data.corpora import Corpus
from picollm.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as found:
    corpus = Corpus(**snakemake.params.cfg["corpus"])
    for split in SPLITS:
        counts = write_articles(snakemake.output[split], corpus.articles(split))
        logging.info("%s: %s", split, ", ".join(f"{count:,} {unit}" for unit, count in counts.items()))
        if split == "train":
            found(f"{counts['articles']:,} training articles, {counts['words']:,} words")
    for remark in corpus.remarks.lines():
        logging.warning("%s", remark)
