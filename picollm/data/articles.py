"""Articles: splits WikiText's lines into articles and stores them as parquet, one row per article (title, text).

An article's text is in WikiText's style and includes its level-1 heading ` = Title = `.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from picollm.errors import PicollmError, one_line, rerun
from picollm.files import atomic_path

SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema([pa.field("title", pa.string(), False), pa.field("text", pa.string(), False)])
GROUP_BYTES = 1 << 20  # text per parquet row group: the unit that a reader holds in memory and a worker receives
UNITS = ("articles", "words", "bytes")  # counts stored in the file's metadata


class Article(NamedTuple):
    title: str
    text: str


MARKER = "<|endoftext|>"  # written between documents by other corpora
HEADING = re.compile(r"^ ?= ([^=\s](?:[^=]*[^=\s])?) = ?$")


def split_articles(lines: Iterable[str], title: str = "") -> Iterator[Article]:
    """Cuts lines (without line ends) at level-1 headings, ` = Title = ` between two blank lines, and at MARKER.

    Text before the first heading and text after a marker become articles called `title`.
    """
    current: list[str] = []
    pending: str | None = None  # a heading whose following blank line has not been read yet
    first_title = title
    for line in chain(unmarked(lines), [None]):
        if line is None:
            current += [] if pending is None else [pending]
            if any(text.strip() for text in current):
                yield Article(title, "\n".join(current) + "\n")
            current, pending, title = [], None, first_title
            continue
        if pending is not None:
            if not line.strip():
                if any(text.strip() for text in current):
                    yield Article(title, "\n".join(current) + "\n")
                current, title = [pending], HEADING.sub(r"\1", pending)
            else:
                current.append(pending)
            pending = None
        if HEADING.match(line) and (not current or not current[-1].strip()):
            pending = line
        else:
            current.append(line)


def unmarked(lines: Iterable[str]) -> Iterator[str | None]:
    """Yields the lines with None in place of each marker; a line with only a marker yields no line."""
    for line in lines:
        first, *others = line.split(MARKER)
        if first.strip() or not others:
            yield first
        for part in others:
            yield None
            if part.strip():
                yield part


def write_articles(path: str | Path, articles: Iterable[Article]) -> dict[str, int]:
    """Writes parquet in constant memory; returns the counts of articles, words and UTF-8 bytes, also stored in it.

    Raises PicollmError if there is no text.
    """
    counts = dict.fromkeys(UNITS, 0)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        group, size = [], 0
        for article in articles:
            group.append(article)
            size += (length := len(article.text.encode()))
            counts["articles"] += 1
            counts["words"] += len(article.text.split())
            counts["bytes"] += length
            if size >= GROUP_BYTES:
                writer.write_batch(record_batch(group))
                group, size = [], 0
        if group:
            writer.write_batch(record_batch(group))
        if not counts["words"]:
            raise PicollmError(f"the split {Path(path).stem} has no words: check corpus.source and corpus.path")
        writer.add_key_value_metadata({unit: str(count) for unit, count in counts.items()})
    return counts


def record_batch(articles: list[Article]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([[a.title for a in articles], [a.text for a in articles]], schema=SCHEMA)


class ArticleFile:
    """Reads a file of `write_articles`. Every method raises PicollmError if the file is missing or damaged."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self.parquet = pq.ParquetFile(path)
            self.counts = {unit: int(self.parquet.metadata.metadata[unit.encode()]) for unit in UNITS}
        except FileNotFoundError:
            raise PicollmError(f"{path} is missing: {rerun('prepare_corpus')}") from None
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            if getattr(error, "errno", None):  # of the disk, not of the file
                raise
            raise self.damaged(error) from None

    def damaged(self, error: Exception) -> PicollmError:
        return PicollmError(f"{self.path} is damaged ({one_line(error)}): delete it and {rerun('prepare_corpus')}")

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return self.parquet.metadata.num_row_groups

    def texts(self, group: int) -> list[str]:
        """Reads the texts of one row group."""
        return self.column(group, "text")

    def column(self, group: int, name: str) -> list[str]:
        try:
            return self.parquet.read_row_group(group, columns=[name]).column(0).to_pylist()
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise self.damaged(error) from None

    def __iter__(self) -> Iterator[Article]:
        for group in range(self.groups):
            yield from map(Article, self.column(group, "title"), self.texts(group))
