"""Reads packed rows: memory-mapped, verified against the manifest, in a seeded order that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from picollm.data.packing import FORMAT, TokensManifest
from picollm.data.tokenizer import FINGERPRINT
from picollm.errors import PicollmError, rerun
from picollm.files import read_json
from picollm.manifest import verified


def open_manifest(path: str | Path) -> TokensManifest:
    """Reads a manifest. Raises PicollmError if it is of another kind, format or GPT-2 tokenizer."""
    manifest = read_json(path)
    if "splits" not in manifest:
        raise PicollmError(f"{path} is not a manifest of packed tokens: give their folder, or its manifest.json")
    other = manifest.get("tokenizer", "gpt2") == "gpt2" and manifest.get("tokenizer_sha256") != FINGERPRINT
    if manifest.get("format") != FORMAT or other:
        raise PicollmError(f"{path} is of another format or tokenizer: {rerun('tokenize_pack')}")
    return manifest


def open_column(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Opens a file of `write_column`: its flat values, a zero-copy view of the mapped file, and its metadata."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    column = batch.column(0)
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    about = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    return flat.to_numpy(zero_copy_only=True), about


class Rows:
    """Packed rows, [len, width] uint16, over the views of any number of shards.

    `rows[numbers]` and `rows[start:stop]` copy only these, [n, width]; `np.asarray(rows)` does not copy a single shard.
    """

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *map(len, shards)])
        self.width = shards[0].shape[1]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, numbers: slice | np.ndarray) -> np.ndarray:
        if isinstance(numbers, slice):
            numbers = np.arange(len(self))[numbers]
        if len(self.shards) == 1:
            return self.shards[0][numbers]
        rows = np.empty((len(numbers), self.width), self.shards[0].dtype)
        shard_of = np.searchsorted(self.starts, numbers, side="right") - 1
        for i in np.unique(shard_of):
            at = shard_of == i
            rows[at] = self.shards[i][numbers[at] - self.starts[i]]
        return rows

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self.shards[0] if len(self.shards) == 1 else np.concatenate(self.shards)
        return whole.astype(dtype or whole.dtype, copy=bool(copy))


def open_split(manifest_path: str | Path, split: str) -> Rows:
    """Opens all rows of a split, context + 1 tokens wide.

    Hashes every shard first (about 1 GB/s): training on a damaged one would be noticed much later, or never.
    """
    manifest = open_manifest(manifest_path)
    paths = [verified(manifest_path, shard, "tokenize_pack") for shard in manifest["splits"][split]["shards"]]
    return Rows([open_column(path)[0].reshape(-1, manifest["context"] + 1) for path in paths])


class Order:
    """Endless batches of row numbers [batch_rows]: a new seeded permutation each epoch, without an incomplete last one.

    Each of `ranks` processes gets its own part of every step, so that two ranks of 8 rows train on the same batches as
    one of 16. `state_dict` holds the position; after loading it, the next batch is the one that would have followed.
    """

    def __init__(self, n_rows: int, batch_rows: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Starts at the first epoch. Raises PicollmError if the rows don't fill one step."""
        if n_rows < batch_rows * ranks:
            raise PicollmError(
                f"the training split has {n_rows} rows, fewer than one step of pretrain.batch_rows = "
                f"{batch_rows * ranks}: lower it, or use more text"
            )
        self.n_rows, self.batch_rows, self.seed, self.rank, self.ranks = n_rows, batch_rows, seed, rank, ranks
        self.epoch = self.step = 0  # position of the next batch; steps count within the epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        size = self.batch_rows * self.ranks
        while True:
            permutation = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_rows)
            while self.step < self.n_rows // size:
                start = self.step * size + self.rank * self.batch_rows
                self.step += 1
                yield permutation[start : start + self.batch_rows]
            self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """JSON-ready state without the rank, so that other processes can resume with the same rows per step."""
        return {
            "n_rows": self.n_rows,
            "step_rows": self.batch_rows * self.ranks,
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores a position. Raises PicollmError if the state belongs to another order of rows."""
        own = self.state_dict()
        other = [key for key in ("n_rows", "step_rows", "seed") if state.get(key) != own[key]]
        if other:
            differences = ", ".join(f"{key} {state.get(key)}, not {own[key]}" for key in other)
            raise PicollmError(f"the saved position in the data is of another order ({differences}): restart training")
        self.epoch, self.step = state["epoch"], state["step"]
