"""Tokenize articles and pack them into rows: Arrow IPC shards and the manifest that proves them.

The token stream of a split is every article followed by <|endoftext|>. Row r holds tokens [r*T, r*T + T], T + 1 of
them, so that inputs and targets of one row need no other row; what remains at the end is dropped and counted.
A shard is an uncompressed Arrow IPC file with one record batch and one column `input_ids`: FixedSizeList<uint16>[T+1].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from picollm.data.corpora import Article, read_articles
from picollm.data.files import atomic_path, sha256, write_json
from picollm.data.manifest import clear, describe
from picollm.data.tokenizer import END_OF_TEXT, FINGERPRINT, VOCAB_SIZE, encoding
from picollm.errors import PicollmError

FORMAT = 1


def token_stream(articles: Iterable[Article], counts: dict[str, int]) -> Iterator[np.ndarray]:
    """uint16 ids of one article after another, <|endoftext|> after each; adds to `counts` what went by."""
    encode = encoding().encode_to_numpy
    for article in articles:
        ids = encode(article.text, disallowed_special=()).astype(np.uint16)
        counts["articles"] += 1
        counts["words"] += len(article.text.split())
        counts["bytes"] += len(article.text.encode())
        counts["tokens"] += len(ids) + 1
        yield np.append(ids, np.uint16(END_OF_TEXT))


def rows(stream: Iterable[np.ndarray], context: int, shard_rows: int) -> Iterator[np.ndarray]:
    """Cut a stream of ids into blocks [at most shard_rows, context + 1]; neighbouring rows share one token."""
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


def write_shard(path: Path, block: np.ndarray) -> None:
    width = block.shape[1]
    values = pa.array(np.ascontiguousarray(block).reshape(-1), pa.uint16())
    column = pa.FixedSizeListArray.from_arrays(values, width)
    schema = pa.schema(
        [pa.field("input_ids", column.type, nullable=False)],
        metadata={"format": str(FORMAT), "tokenizer": FINGERPRINT, "context": str(width - 1)},
    )
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))


def pack_split(source: Path, folder: Path, split: str, context: int, shard_rows: int) -> dict:
    """Write data/tokens/SPLIT-NNNNN.arrow and return the split's entry of the manifest."""
    counts = dict.fromkeys(("articles", "words", "bytes", "tokens"), 0)
    shards = []
    articles = tqdm(read_articles(source), desc=f"tokenize {split}", unit=" articles", disable=None)
    for number, block in enumerate(rows(token_stream(articles, counts), context, shard_rows)):
        path = folder / f"{split}-{number:05d}.arrow"
        write_shard(path, block)
        shards.append({"rows": len(block), **describe(path)})
    if not shards:
        raise PicollmError(
            f"{source}: {counts['tokens']} tokens are fewer than one row of {context + 1}: "
            "add text or lower tokens.context"
        )
    n_rows = sum(shard["rows"] for shard in shards)
    dropped = counts["tokens"] - (n_rows * context + 1)
    return {"source_sha256": sha256(source), **counts, "rows": n_rows, "dropped_tokens": dropped, "shards": shards}


def tokenize_pack(sources: dict[str, Path], manifest_path: Path, *, context: int, shard_rows: int) -> dict:
    """Pack every split beside `manifest_path` and write the manifest last. Foreign shards there are removed first."""
    clear(manifest_path, "*.arrow")
    folder = manifest_path.parent
    splits = {split: pack_split(path, folder, split, context, shard_rows) for split, path in sources.items()}
    manifest = {
        "format": FORMAT,
        "tokenizer": "gpt2",
        "tokenizer_sha256": FINGERPRINT,
        "vocab_size": VOCAB_SIZE,
        "context": context,
        "shard_rows": shard_rows,
        "splits": splits,
    }
    write_json(manifest_path, manifest)
    return manifest
