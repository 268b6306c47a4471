"""Reads text files in each supported format: UTF-8, JSON lines, parquet; each also compressed (.gz, .zst).

text        articles begin at WikiText's headings; a file without headings is one article
JSON lines  one document {"text": ...} per line; `title` is optional, other keys are ignored
parquet     a column `text`: one document per row, or one line of WikiText per row, as on the hub
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from picollm.data.archives import DAMAGE
from picollm.data.articles import HEADING, MARKER, Article, split_articles
from picollm.errors import PicollmError, one_line

Files = dict[str, Callable[[], BinaryIO]]  # {name: function that opens it}
COMPRESSED = (".gz", ".zst")
KINDS = {".txt": "text", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
FORMS = (
    "wiki.{train,valid,test}.{tokens,raw}, UTF-8 text (*.txt), JSON lines (*.jsonl) or parquet (*.parquet) with a "
    "field `text`, each also .gz or .zst"
)
POINTER = b"version https://git-lfs"
SAMPLE = 2000  # rows used to distinguish lines from documents


@dataclass
class Remarks:
    """Notes for the user about files that may not have been read as expected."""

    headless: set[str] = field(default_factory=set)  # files without a heading: one article each
    marked: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        if self.headless:
            yield f"no heading (a line ' = Title = ' between blank lines), one article per file: {some(self.headless)}"
        if self.marked:
            yield f"{MARKER} was taken as the end of an article in {some(self.marked)}"
        if self.left_out:
            yield f"left out, because the name is not that of text, JSON lines or parquet: {some(self.left_out)}"


def some(names: set[str]) -> str:
    """Lists the first few names and the number of the others."""
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def plain_name(name: str) -> PurePosixPath:
    """Strips the suffix of the compression."""
    path = PurePosixPath(name)
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def kind_of(name: str) -> str | None:
    return KINDS.get(plain_name(name).suffix.lower())


def read_articles(name: str, open_file: Callable[[], BinaryIO], remarks: Remarks) -> Iterator[Article]:
    """Yields the articles of one file. Raises PicollmError naming the file, row or byte that can't be read."""
    kind = kind_of(name)
    if kind == "json":
        yield from documents(name, json_rows(name, open_file))
    elif kind == "parquet":
        yield from parquet_articles({name: open_file})
    else:
        yield from text_articles(name, open_file, remarks)


def unpacked(name: str, open_file: Callable[[], BinaryIO]) -> BinaryIO:
    """Opens the file, decompressing as it is read. Raises PicollmError if it is a pointer of git LFS."""
    file = cast(io.BufferedReader, open_file())
    if file.peek(len(POINTER)).startswith(POINTER):
        raise PicollmError(f"{name} is a pointer of git LFS, not the text: run `git lfs pull` first")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    return io.BufferedReader(pa.CompressedInputStream(file, "zstd")) if suffix == ".zst" else file


def raw_lines(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[bytes]:
    """Yields the lines as bytes. Raises PicollmError if the file is empty or damaged."""
    empty = True
    try:
        with unpacked(name, open_file) as file:
            for line in file:
                empty = False
                yield line
    except (*DAMAGE, pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):  # an error of the disk, not of the archive
            raise
        raise PicollmError(f"{name} can't be unpacked ({one_line(error)}): fetch it again") from None
    if empty:
        raise PicollmError(f"{name} is empty: put the text there, or name another file or folder")


def text_lines(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[str]:
    """Yields UTF-8 lines without line ends. Raises PicollmError if the file is empty or has another encoding."""
    position = 0
    for line in raw_lines(name, open_file):
        start = len(codecs.BOM_UTF8) if position == 0 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            yield line[start:].decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            at = position + start + error.start
            raise PicollmError(f"{name} is not UTF-8 at byte {at} ({error.reason}): save it as UTF-8") from None
        position += len(line)


def text_articles(name: str, open_file: Callable[[], BinaryIO], remarks: Remarks) -> Iterator[Article]:
    """Yields articles; text before the first heading, or without heading and marker, is one named after the file."""
    title, headings = plain_name(name).stem, 0

    def watched() -> Iterator[str]:
        for line in text_lines(name, open_file):
            if MARKER in line:
                remarks.marked.add(name)
            yield line

    for article in split_articles(watched(), title):
        headings += article.text.startswith((f" = {article.title} =", f"= {article.title} ="))
        yield article
    if not headings and name not in remarks.marked:
        remarks.headless.add(name)


# --- One document a row


def documents(name: str, rows: Iterator[tuple[object, object]]) -> Iterator[Article]:
    """Turns rows (text, title) into articles; a row without a title is named after the file and its number.

    Raises PicollmError naming the row if its text is not a string.
    """
    stem = plain_name(name).stem
    for number, (text, title) in enumerate(rows, 1):
        if not isinstance(text, str):
            fault = "null" if text is None else f"{type(text).__name__}, not text"
            raise PicollmError(f"{name}, row {number}: `text` is {fault}: repair or remove the row")
        if text.strip():
            text = text.replace("\r\n", "\n").rstrip("\n") + "\n"
            yield Article(title if isinstance(title, str) and title.strip() else f"{stem} {number}", text)


def json_rows(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[tuple[object, object]]:
    for number, line in enumerate(text_lines(name, open_file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PicollmError(f"{name}, line {number} is not JSON ({error}): write one object per line") from None
        if not isinstance(row, dict) or "text" not in row:
            raise PicollmError(f'{name}, line {number} has no "text": write one object with that key per line')
        yield row["text"], row.get("title")


def parquet_articles(parts: Files) -> Iterator[Article]:
    """Reads parts of one text: as lines of WikiText if the first part's rows look like them, else as documents."""
    rows = chain.from_iterable(map(parquet_rows, parts, parts.values()))
    if are_lines([text for text, _ in islice(rows, SAMPLE)]):
        yield from split_articles(lines_of(parts))
    else:
        for name, open_file in parts.items():
            yield from documents(name, parquet_rows(name, open_file))


def are_lines(texts: list[object]) -> bool:
    """Returns True if rows are lines of WikiText: none has a line break inside, some are blank, some are headings."""
    lines = [text.rstrip("\n") for text in texts if isinstance(text, str)]
    return "" in map(str.strip, lines) and any(map(HEADING.match, lines)) and not any("\n" in line for line in lines)


def lines_of(parts: Files) -> Iterator[str]:
    for name, open_file in parts.items():
        for number, (text, _) in enumerate(parquet_rows(name, open_file), 1):
            if text is None:
                raise PicollmError(f"{name}, row {number}: `text` is null: repair or remove the row")
            yield str(text).rstrip("\n")


def parquet_rows(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[tuple[object, object]]:
    """Yields (text, title) of each row. Raises PicollmError if the file is damaged or has no column of text."""
    try:
        with unpacked(name, open_file) as file:
            table = pq.ParquetFile(
                io.BytesIO(file.read()) if plain_name(name).name != PurePosixPath(name).name else file
            )
            columns = [column for column in ("text", "title") if column in table.schema_arrow.names]
            if "text" not in columns:
                raise PicollmError(
                    f"{name} has no column `text`, only {', '.join(table.schema_arrow.names)}: rename the column that "
                    "holds the text to `text`"
                )
            refuse_other_types(name, table.schema_arrow.field("text").type)
            for batch in table.iter_batches(columns=columns):
                values = batch.to_pydict()
                yield from zip(values["text"], values.get("title", [None] * len(batch)), strict=True)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, *DAMAGE) as error:
        raise PicollmError(f"{name} is damaged ({one_line(error)}): fetch it again") from None


def refuse_other_types(name: str, type_: pa.DataType) -> None:
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(check(value) for check in text):
        raise PicollmError(f"{name}: the column `text` holds {type_}, not text: convert it to strings")
