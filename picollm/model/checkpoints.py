"""Checkpoints of a training run: all that the next step depends on, so that a killed run goes on as if nothing was.

checkpoints/KEY/step-NNNNNN.safetensors   weights, optimizers, best weights so far; nothing is ever unpickled
checkpoints/KEY/step-NNNNNN.json          written last: what proves the file above, and the rest of the state
checkpoints/KEY/snapshots/                the weights at steps 0, 1, 2, 4, ...

KEY is a hash of everything that decides the result: configuration, data, code, torch. A run never sees the
checkpoints of another one. They lie outside the declared outputs, which both drivers remove before a rule runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from picollm.errors import PicollmError, one_line
from picollm.files import read_json, write_bytes, write_json
from picollm.manifest import describe, prove
from picollm.model.transformer import Transformer
from picollm.model.weights import weights

log = logging.getLogger(__name__)

KEEP = 2  # the newest, and one to fall back to


class Checkpoints:
    """Those of one run, which `identity` (JSON-ready: {"config": {...}, "data": ..., ...}) names."""

    def __init__(self, root: Path, identity: dict) -> None:
        self.root, self.identity = root, identity
        self.folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.stop = self.folder / "stop"  # a file that asks a run of several processes to save and end

    def save(self, step: int, tensors: dict[str, Tensor], state: dict) -> None:
        """After `step` steps; whatever moment it is killed at, this checkpoint is whole or is none."""
        file = self.folder / f"step-{step:06d}.safetensors"
        write_bytes(file, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
        mark = {"step": step, "identity": self.identity, "state": state, "tensors": describe(file)}
        write_json(file.with_suffix(".json"), mark)
        for old in self.marks()[KEEP:]:
            old.unlink()
        kept = {mark.with_suffix(".safetensors") for mark in self.marks()}
        for orphan in set(self.folder.glob("step-*.safetensors")) - kept:  # also what a kill left without its mark
            orphan.unlink()

    def marks(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.json"), reverse=True)

    def newest(self) -> tuple[dict[str, Tensor], dict] | None:
        """Tensors and state of the newest checkpoint that is whole; damaged ones are told and passed over."""
        for mark in self.marks():
            try:
                found = read_json(mark)
                tensors = load(prove(mark, found["tensors"], "pretrain").read_bytes())
            except (PicollmError, SafetensorError, KeyError) as error:
                log.warning("checkpoint %s is damaged and passed over: %s", mark, one_line(error))
                continue
            return tensors, found["state"]
        if not self.folder.exists():
            for told in self.others():
                log.warning(told)
        return None

    def others(self) -> Iterator[str]:
        """Why the checkpoints of another run don't serve this one."""
        for folder in sorted(self.root.glob("*")):
            mark = max(folder.glob("step-*.json"), default=folder / "none")
            try:
                found = read_json(mark)
            except PicollmError:
                continue
            names = sorted(differences(found["identity"], self.identity))
            yield f"{mark.parent} holds step {found['step']} of a run with other {', '.join(names)}: starting anew"

    def snapshot(self, step: int, model: Transformer) -> None:
        """The weights in bfloat16."""
        write_bytes(self.folder / "snapshots" / f"step-{step:06d}.safetensors", weights(model, torch.bfloat16))

    def snapshots(self) -> dict[int, Path]:
        return {int(path.stem[5:]): path for path in sorted(self.folder.glob("snapshots/step-*.safetensors"))}

    def remove(self) -> None:
        """After the run's results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def differences(old: object, new: object, name: str = "") -> Iterator[str]:
    """Dotted names of what differs between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name
