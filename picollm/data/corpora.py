"""Three sources of text, one form: articles (title, text) in WikiText's style, level-1 headings included.

enwiki-sample   106 full English Wikipedia articles (CC BY-SA) that the package gensim carries; no network
wikitext-103    the hub's `Salesforce/wikitext`, or a local copy of that repository
local           a folder with wiki.{train,valid}.{tokens,raw}, with the hub's parquet files, or with UTF-8 .txt files
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from picollm.data.files import atomic_path
from picollm.errors import PicollmError

SPLITS = {"train": "train", "validation": "valid"}  # our names -> WikiText's file names
SCHEMA = pa.schema([pa.field("title", pa.string(), False), pa.field("text", pa.string(), False)])
ROW_GROUP = 256  # articles a parquet row group: bounds the memory of every reader


class Article(NamedTuple):
    title: str
    text: str


@dataclass(frozen=True)
class Source:
    """The `corpus` section of the config."""

    source: str
    path: str | None
    hub: str
    revision: str
    fraction: float
    validation_articles: int

    def articles(self, split: str) -> Iterator[Article]:
        """The articles of `train` or `validation`, in order. `fraction` keeps the first ceil(fraction x n) of train."""
        articles = self._all(split)
        if split == "train" and self.fraction < 1:
            total = sum(1 for _ in self._all(split))
            articles = (a for a, _ in zip(articles, range(math.ceil(self.fraction * total)), strict=False))
        return articles

    def _all(self, split: str) -> Iterator[Article]:
        if self.source == "enwiki-sample":
            return held_out(enwiki_sample(), split, self.validation_articles)
        if self.source == "wikitext-103":
            return split_articles(hub_lines(self.hub, self.revision, split))
        return self._local(Path(self.path or ""), split)

    def _local(self, folder: Path, split: str) -> Iterator[Article]:
        if not folder.is_dir():
            raise PicollmError(f"corpus.path = {self.path}: no such folder; it must hold {LOCAL_FORMS}")
        for suffix in ("tokens", "raw"):
            if (file := folder / f"wiki.{SPLITS[split]}.{suffix}").exists():
                return split_articles(text_lines(file))
        if files := sorted(folder.rglob(f"{split}-*.parquet")):
            return split_articles(parquet_lines(files))
        if files := sorted(folder.glob("*.txt")):
            articles = [article for file in files for article in split_articles(text_lines(file), file.stem)]
            return held_out(articles, split, self.validation_articles)
        raise PicollmError(f"corpus.path = {self.path}: nothing for the split {split}; it must hold {LOCAL_FORMS}")


LOCAL_FORMS = "wiki.train.tokens and wiki.valid.tokens (or .raw), train-*.parquet and validation-*.parquet, or *.txt"


def held_out(articles: list[Article], split: str, count: int) -> Iterator[Article]:
    """Validation: `count` articles spread evenly over the corpus; train: the others."""
    if len(articles) <= count:
        raise PicollmError(
            f"the corpus has {len(articles)} articles and corpus.validation_articles = {count}: "
            "none would be left for training; lower it or add text (articles start at a heading line ' = Title = ')"
        )
    chosen = {(2 * i + 1) * len(articles) // (2 * count) for i in range(count)}
    return (article for i, article in enumerate(articles) if (i in chosen) == (split == "validation"))


@cache
def enwiki_sample() -> list[Article]:
    """The embedded sample, from MediaWiki mark-up to WikiText's style. About 4 s."""
    from gensim.scripts.segment_wiki import segment_all_articles

    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    dump = files("gensim") / "test" / "test_data" / name
    articles = []
    for title, sections in segment_all_articles(str(dump), min_article_character=200, workers=2):
        lines = [f" = {title} = ", ""]
        for heading, body in sections:
            if heading != "Introduction":
                lines += [f" = = {heading.strip()} = = ", ""]
            body = re.sub(r"'{2,}", "", body)
            lines += [" ".join(line.split()) for line in body.splitlines() if line.strip(" *#:;|=-")] + [""]
        articles.append(Article(title, "\n".join(lines) + "\n"))
    return articles


HEADING = re.compile(r"^ ?= ([^=\s](?:[^=]*[^=\s])?) = ?$")


def split_articles(lines: Iterable[str], title: str = "") -> Iterator[Article]:
    """Cut lines (without line ends) at level-1 headings: ` = Title = ` between two blank lines.

    Text before the first heading becomes an article called `title`.
    """
    current: list[str] = []
    pending: str | None = None  # a heading that waits for the blank line after it
    for line in lines:
        if pending is not None:
            if not line.strip():
                if any(text.strip() for text in current):
                    yield Article(title, "\n".join(current) + "\n")
                current, title = [pending], HEADING.match(pending)[1]
            else:
                current.append(pending)
            pending = None
        if HEADING.match(line) and (not current or not current[-1].strip()):
            pending = line
        else:
            current.append(line)
    current += [] if pending is None else [pending]
    if any(text.strip() for text in current):
        yield Article(title, "\n".join(current) + "\n")


def text_lines(path: Path) -> Iterator[str]:
    """Raises PicollmError where the file is empty or not UTF-8."""
    if path.stat().st_size == 0:
        raise PicollmError(f"{path} is empty: put the text there or change corpus.path")
    with open(path, encoding="utf-8", newline="\n") as file:
        try:
            for line in file:
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PicollmError(f"{path} is not UTF-8 ({error.reason}): convert it first") from None


def parquet_lines(paths: list[Path]) -> Iterator[str]:
    """The hub's layout: one column `text`, one line a row."""
    for path in paths:
        try:
            for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
                yield from (text.rstrip("\n") for text in batch.column("text").to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise PicollmError(f"{path} is damaged ({one_line(error)}): fetch it again") from None
        except KeyError:
            raise PicollmError(f"{path} has no column text: corpus.path must hold {LOCAL_FORMS}") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def hub_lines(hub: str, revision: str, split: str) -> Iterator[str]:
    """Stream WikiText-103 (raw) from the hub, or from a local folder with the hub repository's layout."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise PicollmError(
            "corpus.source = wikitext-103 needs the package datasets: pip install 'picollm[hub]'"
        ) from None
    options = {} if Path(hub).is_dir() else {"revision": revision}
    try:
        rows = load_dataset(hub, "wikitext-103-raw-v1", split=split, streaming=True, **options)
        yield from (row["text"].rstrip("\n") for row in rows)
    except (OSError, ValueError) as error:  # `datasets` wraps every network and layout error in one of these
        raise PicollmError(
            f"{hub} can't be read ({one_line(error)[:160]}): check the network, or download it elsewhere and set "
            "corpus.source: local and corpus.path, or corpus.source: enwiki-sample"
        ) from None


def write_articles(path: str | Path, articles: Iterable[Article]) -> dict[str, int]:
    """Write parquet, one row per article, in constant memory; the counts of articles, words and UTF-8 bytes."""
    counts = {"articles": 0, "words": 0, "bytes": 0}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        batch: list[Article] = []
        for article in articles:
            batch.append(article)
            counts["articles"] += 1
            counts["words"] += len(article.text.split())
            counts["bytes"] += len(article.text.encode())
            if len(batch) == ROW_GROUP:
                writer.write_batch(record_batch(batch))
                batch = []
        if batch:
            writer.write_batch(record_batch(batch))
        if not counts["words"]:
            raise PicollmError(f"no text for {Path(path).stem}: the corpus is empty")
    return counts


def record_batch(articles: list[Article]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([[a.title for a in articles], [a.text for a in articles]], schema=SCHEMA)


def read_articles(path: str | Path) -> Iterator[Article]:
    """Raises PicollmError where the file is missing or damaged."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=ROW_GROUP):
            yield from map(Article._make, zip(*(c.to_pylist() for c in batch.columns), strict=True))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: run the rule prepare_corpus") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PicollmError(f"{path} is damaged ({one_line(error)}): delete it and run prepare_corpus again") from None
