"""Checkpoints of a training run: everything the next step depends on, so that a killed run resumes unchanged.

checkpoints/KEY/step-NNNNNN.safetensors   weights, optimizers, best weights so far, curve; nothing is ever unpickled
checkpoints/KEY/step-NNNNNN.json          written last: the hash that verifies the file above, and the rest of the state
checkpoints/KEY/snapshots/                the weights at steps 0, 1, 2, 4, ...

KEY is a hash of everything that determines the result: configuration, data, code, torch. A run never sees the
checkpoints of another run. They are kept outside the declared outputs, which both drivers remove before a rule runs.

`save` copies the state, and a thread hashes and writes it while training continues.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from picollm.errors import PicollmError, one_line
from picollm.files import read_json, write_bytes, write_json
from picollm.manifest import describe, verified
from picollm.model.transformer import Transformer
from picollm.model.weights import weights

log = logging.getLogger(__name__)

KEEP = 2  # the newest, and one as a fallback
CURVE = "curve."  # prefix of the names of a curve's columns among the tensors


class Checkpoints:
    """Checkpoints of one run, identified by `identity` (JSON-ready: {"config": {...}, "data": ..., ...})."""

    def __init__(self, root: Path, identity: dict) -> None:
        self.root, self.identity = root, identity
        self.folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.stop = self.folder / "stop"  # its existence asks a run of several processes to save and end
        self.writing: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.saved_at = time.monotonic()

    def __enter__(self) -> Checkpoints:
        self.saved_at = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last checkpoint, except after a request to end at once; raises only what ended the run."""
        if self.writing and (kind is None or issubclass(kind, Exception)):
            self.writing.join()

    def age(self) -> float:
        """Returns the seconds since the last `save`, or since the run began."""
        return time.monotonic() - self.saved_at

    def save(self, step: int, tensors: dict[str, Tensor], state: dict) -> None:
        """Saves the state after `step` steps; a process killed at any moment leaves a complete checkpoint or none.

        The state may change as soon as this returns; the file exists after `wait`. Raises what the previous write
        raised.
        """
        curve = columns(state["curve"])
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in (tensors | curve).items()})
        mark = deepcopy({"step": step, "identity": self.identity, "state": state | {"curve": list(curve)}})
        self.wait()
        self.writing = threading.Thread(target=self.attempt, args=(step, data, mark), daemon=True)
        self.writing.start()
        self.saved_at = time.monotonic()

    def wait(self) -> None:
        """Waits until the state passed to `save` is written. Raises the error of the write."""
        if self.writing:
            self.writing.join()
        self.writing, failure, self.failure = None, self.failure, None
        if failure:
            raise failure

    def attempt(self, step: int, data: bytes, mark: dict) -> None:
        try:
            self.write(step, data, mark)
        except BaseException as error:  # raised later by `wait`, in the calling thread
            self.failure = error

    def write(self, step: int, data: bytes, mark: dict) -> None:
        file = self.folder / f"step-{step:06d}.safetensors"
        write_bytes(file, data)
        mark["tensors"] = describe(file)
        write_json(file.with_suffix(".json"), mark)
        for old in self.marks()[KEEP:]:
            old.unlink()
        kept = {mark.with_suffix(".safetensors") for mark in self.marks()}
        for orphan in set(self.folder.glob("step-*.safetensors")) - kept:  # also those that a kill left without a mark
            orphan.unlink()

    def marks(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def newest(self) -> tuple[dict[str, Tensor], dict] | None:
        """Returns tensors and state of the newest complete checkpoint; skips damaged ones with a warning."""
        for mark in self.marks():
            try:
                content = read_json(mark)
                tensors = load(verified(mark, content["tensors"], "pretrain").read_bytes())
                content["state"]["curve"] = rows(tensors, content["state"]["curve"])
            except (PicollmError, SafetensorError, KeyError) as error:
                log.warning("checkpoint %s is damaged and skipped: %s", mark, one_line(error))
                continue
            return tensors, content["state"]
        if not self.folder.exists():
            for reason in self.others():
                log.warning(reason)
        return None

    def others(self) -> Iterator[str]:
        """Yields the reasons why the checkpoints of other runs can't be used."""
        for folder in sorted(self.root.glob("*")):
            mark = max(folder.glob("step-*.json"), default=folder / "none")
            try:
                content = read_json(mark)
            except PicollmError:
                continue
            names = sorted(differences(content["identity"], self.identity))
            yield (
                f"{mark.parent} holds step {content['step']} of a run with different {', '.join(names)}: "
                "starting from scratch"
            )

    def snapshot(self, step: int, model: Transformer) -> None:
        """Writes the weights in bfloat16."""
        write_bytes(self.folder / "snapshots" / f"step-{step:06d}.safetensors", weights(model, torch.bfloat16))

    def snapshots(self) -> dict[int, Path]:
        return {int(path.stem[5:]): path for path in sorted(self.folder.glob("snapshots/step-*.safetensors"))}

    def remove(self) -> None:
        """Removes the folder, after the run's results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def columns(curve: Sequence[dict]) -> dict[str, Tensor]:
    """Converts a curve's rows of numbers to one tensor per column: integers stay integers, None becomes NaN."""
    values = {f"{CURVE}{name}": [row[name] for row in curve] for name in (curve[0] if curve else ())}
    return {
        name: torch.tensor(column, dtype=torch.int64)
        if all(isinstance(x, int) for x in column)
        else torch.tensor([math.nan if x is None else x for x in column], dtype=torch.float64)
        for name, column in values.items()
    }


def rows(tensors: dict[str, Tensor], names: Sequence[str]) -> list[dict]:
    """Rebuilds the curve from the tensors that `columns` made, and removes them from `tensors`."""
    values = [[None if math.isnan(x) else x for x in tensors.pop(name).tolist()] for name in names]
    keys = [name.removeprefix(CURVE) for name in names]
    return [dict(zip(keys, row, strict=True)) for row in zip(*values, strict=True)]


def differences(old: object, new: object, name: str = "") -> Iterator[str]:
    """Yields the dotted names of the values that differ between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name
