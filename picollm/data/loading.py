"""Read packed rows back: memory-mapped, proven against the manifest, in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from picollm.data.files import read_json
from picollm.data.manifest import prove
from picollm.data.packing import FORMAT
from picollm.data.tokenizer import FINGERPRINT
from picollm.errors import PicollmError


def open_manifest(path: str | Path) -> dict:
    """Raises PicollmError where the manifest is of another format or tokenizer."""
    manifest = read_json(path)
    if manifest.get("format") != FORMAT or manifest.get("tokenizer_sha256") != FINGERPRINT:
        raise PicollmError(f"{path} is of another format or tokenizer: run tokenize_pack again")
    return manifest


def open_split(manifest_path: str | Path, split: str) -> np.ndarray:
    """All rows of a split, [rows, context + 1] uint16; one shard is a zero-copy view of the mapped file.

    Every shard is hashed first (about 1 GB/s): training on a damaged one would be found out much later, or never.
    """
    manifest = open_manifest(manifest_path)
    views = []
    for shard in manifest["splits"][split]["shards"]:
        path = prove(manifest_path, shard, "tokenize_pack")
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        flat = batch.column("input_ids").flatten().to_numpy(zero_copy_only=True)
        views.append(flat.reshape(-1, manifest["context"] + 1))
    return views[0] if len(views) == 1 else np.concatenate(views)


def batches(rows: np.ndarray, batch_rows: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches [batch_rows, context + 1] int64: a fresh seeded permutation each epoch, its last part dropped."""
    if len(rows) < batch_rows:
        raise PicollmError(
            f"the training split has {len(rows)} rows, fewer than pretrain.batch_rows = {batch_rows}: "
            "lower it, or take more text"
        )
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows) - batch_rows + 1, batch_rows):
            yield rows[order[start : start + batch_rows]].astype(np.int64)
        epoch += 1
