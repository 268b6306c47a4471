"""Files of text in each form that is read: UTF-8, JSON lines, parquet; each also compressed (.gz, .zst).

text        articles begin at WikiText's headings; a file without any is one article
JSON lines  {"text": ...} a line, one document each; `title` too, other keys are ignored
parquet     a column `text`: one document a row, or the lines of WikiText as the hub has them, one a row
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

Files = dict[str, Callable[[], BinaryIO]]  # {name: what opens it}
COMPRESSED = (".gz", ".zst")
KINDS = {".txt": "text", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
FORMS = (
    "wiki.{train,valid,test}.{tokens,raw}, UTF-8 text (*.txt), JSON lines (*.jsonl) or parquet (*.parquet) with a "
    "field `text`, each also .gz or .zst"
)
POINTER = b"version https://git-lfs"
SAMPLE = 2000  # rows by which lines are told from documents


@dataclass
class Remarks:
    """What a person should know of files that were read otherwise than they may think."""

    headless: set[str] = field(default_factory=set)  # one article each
    marked: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        if self.headless:
            yield f"no heading (a line ' = Title = ' between blank lines) in {some(self.headless)}: one article a file"
        if self.marked:
            yield f"{MARKER} was taken as the end of an article in {some(self.marked)}"
        if self.left_out:
            yield f"left out, as it is no text, JSON lines or parquet by its name: {some(self.left_out)}"


def some(names: set[str]) -> str:
    """The first of the names, and how many more."""
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def plain_name(name: str) -> PurePosixPath:
    """Without the compression's suffix."""
    path = PurePosixPath(name)
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def kind_of(name: str) -> str | None:
    return KINDS.get(plain_name(name).suffix.lower())


def read_articles(name: str, open_file: Callable[[], BinaryIO], remarks: Remarks) -> Iterator[Article]:
    """The articles of one file. Raises PicollmError naming file, row or byte, where it can't be read."""
    kind = kind_of(name)
    if kind == "json":
        yield from documents(name, json_rows(name, open_file))
    elif kind == "parquet":
        yield from parquet_articles({name: open_file})
    else:
        yield from text_articles(name, open_file, remarks)


def unpacked(name: str, open_file: Callable[[], BinaryIO]) -> BinaryIO:
    """The file opened, and decompressed on the way. Raises PicollmError where git LFS left a pointer in its place."""
    file = cast(io.BufferedReader, open_file())
    if file.peek(len(POINTER)).startswith(POINTER):
        raise PicollmError(f"{name} is a pointer of git LFS, not the text: run `git lfs pull` first")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    return io.BufferedReader(pa.CompressedInputStream(file, "zstd")) if suffix == ".zst" else file


def raw_lines(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[bytes]:
    """Raises PicollmError where the file is empty, or is damaged."""
    empty = True
    try:
        with unpacked(name, open_file) as file:
            for line in file:
                empty = False
                yield line
    except (*DAMAGE, pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None):  # the disk's, not the archive's
            raise
        raise PicollmError(f"{name} can't be unpacked ({one_line(error)}): fetch it again") from None
    if empty:
        raise PicollmError(f"{name} is empty: put the text there or change corpus.path")


def text_lines(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[str]:
    """Lines of UTF-8 without their ends. Raises PicollmError where the file is empty or has another encoding."""
    position = 0
    for line in raw_lines(name, open_file):
        start = len(codecs.BOM_UTF8) if position == 0 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            yield line[start:].decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            at = position + start + error.start
            raise PicollmError(f"{name} is not UTF-8 at byte {at} ({error.reason}): convert it first") from None
        position += len(line)


def text_articles(name: str, open_file: Callable[[], BinaryIO], remarks: Remarks) -> Iterator[Article]:
    """Text before the first heading is called after the file; a file without any heading or marker is one article."""
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
    """Rows (text, title) as articles; a row without a title is called after the file and its number.

    Raises PicollmError, with the row, where a text is no text.
    """
    stem = plain_name(name).stem
    for number, (text, title) in enumerate(rows, 1):
        if not isinstance(text, str):
            found = "null" if text is None else f"{type(text).__name__}, not text"
            raise PicollmError(f"{name}, row {number}: `text` is {found}: mend or remove the row")
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
            raise PicollmError(f"{name}, line {number} is not JSON ({error}): one object a line is read") from None
        if not isinstance(row, dict) or "text" not in row:
            raise PicollmError(f'{name}, line {number} has no "text": one object with that key a line is read')
        yield row["text"], row.get("title")


def parquet_articles(parts: Files) -> Iterator[Article]:
    """Of parts that belong together: lines of WikiText where the first one's rows look like them, else documents."""
    rows = chain.from_iterable(map(parquet_rows, parts, parts.values()))
    if are_lines([text for text, _ in islice(rows, SAMPLE)]):
        yield from split_articles(lines_of(parts))
    else:
        for name, open_file in parts.items():
            yield from documents(name, parquet_rows(name, open_file))


def are_lines(texts: list[object]) -> bool:
    """Whether rows are the lines of WikiText: none has a line break inside, some are blank, some are headings."""
    lines = [text.rstrip("\n") for text in texts if isinstance(text, str)]
    return "" in map(str.strip, lines) and any(map(HEADING.match, lines)) and not any("\n" in line for line in lines)


def lines_of(parts: Files) -> Iterator[str]:
    for name, open_file in parts.items():
        for number, (text, _) in enumerate(parquet_rows(name, open_file), 1):
            if text is None:
                raise PicollmError(f"{name}, row {number}: `text` is null: mend or remove the row")
            yield str(text).rstrip("\n")


def parquet_rows(name: str, open_file: Callable[[], BinaryIO]) -> Iterator[tuple[object, object]]:
    """(text, title) of each row. Raises PicollmError where the file is damaged or has no column of text."""
    try:
        with unpacked(name, open_file) as file:
            table = pq.ParquetFile(
                io.BytesIO(file.read()) if plain_name(name).name != PurePosixPath(name).name else file
            )
            columns = [column for column in ("text", "title") if column in table.schema_arrow.names]
            if "text" not in columns:
                raise PicollmError(f"{name} has no column text, only {', '.join(table.schema_arrow.names)}: {FORMS}")
            refuse_other_types(name, table.schema_arrow.field("text").type)
            for batch in table.iter_batches(columns=columns):
                found = batch.to_pydict()
                yield from zip(found["text"], found.get("title", [None] * len(batch)), strict=True)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, *DAMAGE) as error:
        raise PicollmError(f"{name} is damaged ({one_line(error)}): fetch it again") from None


def refuse_other_types(name: str, type_: pa.DataType) -> None:
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(check(value) for check in text):
        raise PicollmError(f"{name}: the column `text` holds {type_}, not text: convert it first")
