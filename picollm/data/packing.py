"""Tokenizes articles and packs them into rows: Arrow IPC shards and the manifest that verifies them.

The token stream of a split is every article followed by the id that precedes a text, GPT-2's <|endoftext|>. Row r holds
tokens [r*T, r*T + T], T + 1 of them, so that inputs and targets of one row need no other row; the remainder at the end
is dropped and counted.

data/tokens/SPLIT-NNNNN.arrow      one record batch, one column `input_ids`: FixedSizeList<uint16>[T+1]
data/tokens/SPLIT-doc-ends.arrow   one column `doc_ends`: uint64, the stream's length after each article
data/tokens/manifest.json          written last

The shards are uncompressed Arrow IPC files. Their bytes depend only on the text, T and the shard size, not on the
number of workers or slices.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa

from picollm.data.articles import ArticleFile
from picollm.data.tokenizer import FINGERPRINT
from picollm.data.tokenizers import Tokenizer, gpt2
from picollm.errors import PicollmError
from picollm.files import atomic_path, sha256, write_json
from picollm.manifest import Entry, clear, describe
from picollm.progress import progress

FORMAT = 3


class File(Entry):
    """A file of rows next to the manifest."""

    rows: int


class Packed(TypedDict):
    tokens: int
    rows: int
    dropped_tokens: int
    shards: list[File]
    doc_ends: File


class Split(Packed):
    source_sha256: str
    articles: int
    words: int
    bytes: int


class TokensManifest(TypedDict):
    """Contents of data/tokens/manifest.json."""

    format: int
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    end: int  # the id after each article
    context: int
    shard_rows: int
    splits: dict[str, Split]


def encode(texts: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """Encodes texts as uint16 ids, the tokenizer's start after each; a text that spells GPT-2's gets ordinary ids."""
    end = np.array([tokenizer.start], np.uint16)
    ids = (part for text in texts for part in (encode_one(text, tokenizer), end))
    return np.concatenate([np.empty(0, np.uint16), *ids])


def encode_one(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes one text. Raises PicollmError for white space too long for tiktoken's regular expression."""
    try:
        return tokenizer.ids(text).astype(np.uint16)
    except ValueError:
        longest = max(len(run[0]) for run in re.finditer(r"\s+", text))
        raise PicollmError(f"a run of {longest:,} white-space characters can't be tokenized: shorten it") from None


def token_stream(path: Path, workers: int, groups: range, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yields uint16 ids of a corpus file's row groups, in order.

    It uses processes: two threads of tiktoken slow each other down, although they release the interpreter's lock.
    """
    bar = partial(progress, total=len(groups), desc=f"tokenize {path.stem}", unit=" MB")
    if workers == 1 or len(groups) < 2:
        open_source(path, tokenizer)
        yield from bar(map(encode_group, groups))
        return
    # Forked, because a new interpreter would run the rule's script again.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), end_with_parent, (path, tokenizer))
    try:
        yield from bar(pool.map(encode_group, groups))
    finally:
        pool.shutdown(cancel_futures=True)


own_source: ArticleFile  # set in each process that encodes
own_tokenizer: Tokenizer


def open_source(path: Path, tokenizer: Tokenizer) -> None:
    """Opens the corpus once in a process that encodes, because an open file can't be pickled with each task."""
    global own_source, own_tokenizer
    own_source, own_tokenizer = ArticleFile(path), tokenizer


def encode_group(group: int) -> np.ndarray:
    texts = own_source.texts(group)
    try:
        return encode(texts, own_tokenizer)
    except PicollmError:
        for title, text in zip(own_source.column(group, "title"), texts, strict=True):
            try:
                encode_one(text, own_tokenizer)
            except PicollmError as error:
                raise PicollmError(f"article {title!r} of {own_source.path}: {error}") from None
        raise


def end_with_parent(path: Path, tokenizer: Tokenizer) -> None:
    """Exits when the parent dies; otherwise a worker would wait for work forever and keep the run's lock."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "only a worker runs this"
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    open_source(path, tokenizer)


def rows(stream: Iterable[np.ndarray], context: int, shard_rows: int) -> Iterator[np.ndarray]:
    """Cuts a stream of ids into blocks [at most shard_rows, context + 1]; neighbouring rows share one token."""
    buffer, size, wanted = [], 0, shard_rows * context + 1
    for ids in stream:
        buffer.append(ids)
        size += len(ids)
        while size >= wanted:
            flat = np.concatenate(buffer)
            yield windows(flat[:wanted], context)
            buffer, size = [flat[wanted - 1 :]], size - wanted + 1
    flat = np.concatenate(buffer) if buffer else np.empty(0, np.uint16)
    if len(flat) > context:
        yield windows(flat, context)


def windows(flat: np.ndarray, context: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(flat, context + 1)[::context]


def arrow(values: np.ndarray) -> pa.Array:
    """Wraps the same memory; `pa.array` would first import pandas, which takes a quarter of a second."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def write_column(path: Path, name: str, column: pa.Array, about: Mapping[str, object]) -> File:
    """Writes an Arrow IPC file of one column, also described by its metadata; returns its entry for the manifest."""
    metadata = {"format": FORMAT, "tokenizer": FINGERPRINT, **about}
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False)], metadata={key: str(value) for key, value in metadata.items()}
    )
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))
    return {"rows": len(column), **describe(path)}


def write_split(
    stream: Iterable[np.ndarray], folder: Path, split: str, context: int, shard_rows: int, tokenizer: Tokenizer
) -> Packed:
    """Writes the shards and document ends of one split; returns their entry for the manifest."""
    doc_ends, tokens = [], 0

    def watched() -> Iterator[np.ndarray]:
        nonlocal tokens
        for ids in stream:
            doc_ends.append(np.flatnonzero(ids == tokenizer.start).astype(np.uint64) + np.uint64(tokens + 1))
            tokens += len(ids)
            yield ids

    shards = []
    for number, block in enumerate(rows(watched(), context, shard_rows)):
        column = pa.FixedSizeListArray.from_arrays(arrow(np.ascontiguousarray(block).reshape(-1)), context + 1)
        about = {
            "tokenizer": tokenizer.fingerprint, "split": split, "context": context, "first_row": number * shard_rows,
        }  # fmt: skip
        shards.append(write_column(folder / f"{split}-{number:05d}.arrow", "input_ids", column, about))
    n_rows = sum(shard["rows"] for shard in shards)
    if not n_rows:
        raise PicollmError(
            f"the {split} split has {tokens} tokens, fewer than one row of {context + 1}: "
            "add text or lower tokens.context"
        )
    ends = arrow(np.concatenate(doc_ends))
    return {
        "tokens": tokens,
        "rows": n_rows,
        "dropped_tokens": tokens - (n_rows * context + 1),
        "shards": shards,
        "doc_ends": write_column(
            folder / f"{split}-doc-ends.arrow", "doc_ends", ends, {"tokenizer": tokenizer.fingerprint, "split": split}
        ),
    }


def tokenize_pack(
    sources: dict[str, Path],
    manifest_path: Path,
    *,
    context: int,
    shard_rows: int,
    workers: int = 1,
    slices: list[Path] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TokensManifest:
    """Packs every split next to `manifest_path` and writes the manifest last. Removes other shards there first.

    With `slices`, files of `write_slice` in order, the training split is read from these instead of being tokenized.
    Raises PicollmError if a source is missing or damaged, a split is shorter than a row, or the tokenizer has more
    ids than 16 bits hold.
    """
    tokenizer = fitting(tokenizer)
    clear(manifest_path, "*.arrow")
    splits: dict[str, Split] = {}
    for split, path in sources.items():
        articles = ArticleFile(path)
        sliced = slices if split == "train" else None
        stream = read_slices(sliced) if sliced else token_stream(path, workers, range(articles.groups), tokenizer)
        packed = write_split(stream, manifest_path.parent, split, context, shard_rows, tokenizer)
        if packed["doc_ends"]["rows"] != articles.counts["articles"]:
            raise PicollmError(f"the slices are of another corpus than {path}: remove them and run again")
        splits[split] = cast(Split, {"source_sha256": sha256(path), **articles.counts, **packed})
    manifest: TokensManifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab_size": tokenizer.size,
        "end": tokenizer.start,
        "context": context,
        "shard_rows": shard_rows,
        "splits": splits,
    }
    write_json(manifest_path, manifest)
    return manifest


def fitting(tokenizer: Tokenizer | None) -> Tokenizer:
    """Returns the tokenizer, GPT-2's by default. Raises PicollmError if its ids don't fit into 16 bits."""
    tokenizer = tokenizer or gpt2()
    if tokenizer.size > 1 << 16:
        raise PicollmError(
            f"the checkpoint's tokenizer has {tokenizer.size:,} ids, tokens are packed in 16 bits (65,536): `picollm "
            "analyze --model FOLDER` accepts the model as it is"
        )
    return tokenizer


# --- Slices: the training split in several jobs


def write_slice(
    path: Path, target: Path, number: int, total: int, workers: int = 1, tokenizer: Tokenizer | None = None
) -> None:
    """Writes the ids of slice `number` of `total`, a contiguous share of the row groups, without a header."""
    count = ArticleFile(path).groups
    groups = range(number * count // total, (number + 1) * count // total)
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        for ids in token_stream(path, workers, groups, fitting(tokenizer)):
            file.write(ids.astype(np.uint16).tobytes())


def read_slices(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yields the token stream of the slices, memory-mapped, in pieces that bound the reader's memory."""
    for path in paths:
        if not path.stat().st_size:  # empty: there are more slices than row groups
            continue
        ids = np.memmap(path, np.uint16, "r")
        yield from (ids[start : start + (1 << 20)] for start in range(0, len(ids), 1 << 20))
