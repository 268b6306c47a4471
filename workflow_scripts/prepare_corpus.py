"""Writes the configured corpus as one parquet file per split, one row per article."""

import logging

from picollm.data.articles import SPLITS, write_articles
from picollm.data.corpora import Corpus
from picollm.pipeline.job import job

with job() as rule:
    corpus = Corpus(**rule.cfg["corpus"])
    for split in SPLITS:
        counts = write_articles(rule.outputs[split], corpus.articles(split))
        logging.info("%s: %s", split, ", ".join(f"{count:,} {unit}" for unit, count in counts.items()))
        if split == "train":
            rule.report_result(f"{counts['articles']:,} training articles, {counts['words']:,} words")
    for remark in corpus.remarks.lines():
        logging.warning("%s", remark)
