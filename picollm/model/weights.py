"""Reads and writes a trained model: `model.safetensors` (weights) and `config.json` (shape). Nothing is unpickled.

Snapshots of a run are bfloat16 weights `step-NNNNNN.safetensors` next to a manifest that is written last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from picollm.errors import PicollmError, rerun
from picollm.files import read_json, sha256, write_bytes, write_json
from picollm.manifest import clear, describe, verified
from picollm.model.folders import PROOF
from picollm.model.transformer import ModelConfig, Transformer


def weights(model: Transformer, dtype: torch.dtype) -> bytes:
    """Serialises the weights as safetensors. A tied head is stored once, under the embedding's name."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tied:
        del state["head.weight"]
    return save(state)


def save_model(model: Transformer, weights_path: str | Path, config_path: str | Path) -> None:
    """Writes float32 weights, then the shape with their sha256: safetensors itself does not detect a flipped bit."""
    save_weights(model, weights_path)
    write_json(config_path, model.config.to_dict() | {PROOF: sha256(weights_path)})


def save_weights(model: Transformer, path: str | Path) -> None:
    """Writes float32 weights only."""
    write_bytes(path, weights(model, torch.float32))


def save_snapshots(files: dict[int, Path], manifest_path: Path) -> None:
    """Copies a run's snapshots {step: file} next to their manifest, after removing those of the previous run."""
    clear(manifest_path, "step-*.safetensors")
    entries = []
    for step, source in files.items():
        file = manifest_path.parent / source.name
        write_bytes(file, source.read_bytes())
        entries.append({"step": step, **describe(file)})
    write_json(manifest_path, {"format": 1, "snapshots": entries})


def load_snapshots(manifest_path: str | Path, config_path: str | Path) -> Iterator[tuple[int, Transformer]]:
    """Yields (step, model) of every snapshot in order of steps, each verified against the manifest."""
    for entry in sorted(read_json(manifest_path)["snapshots"], key=lambda entry: entry["step"]):
        yield entry["step"], load_unproven(verified(Path(manifest_path), entry, "pretrain"), config_path)


def load_config(path: str | Path) -> ModelConfig:
    """Reads the shape. Raises PicollmError naming the missing and unknown fields."""
    values = read_json(path)
    values.pop(PROOF, None)
    names = {field.name for field in fields(ModelConfig)}
    if names != set(values):
        raise PicollmError(
            f"{path}: missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}: it is not of a "
            "model of this version: name another folder"
        )
    return ModelConfig(**values)


def load_model(weights_path: str | Path, config_path: str | Path) -> Transformer:
    """Loads the model in evaluation mode on the CPU. Raises PicollmError if the file is damaged or does not fit."""
    model = load_unproven(weights_path, config_path)
    proof = read_json(config_path).get(PROOF)  # a checkpoint from elsewhere may have none
    if proof and sha256(weights_path) != proof:
        raise PicollmError(f"{weights_path} is damaged (its sha256 is not that in {config_path}): {rerun('pretrain')}")
    return model


def load_unproven(weights_path: str | Path, config_path: str | Path) -> Transformer:
    """Does what `load_model` does, for a file whose hash is verified elsewhere than in the config."""
    model = Transformer(load_config(config_path))
    try:
        state = load_file(weights_path)
    except FileNotFoundError:
        raise PicollmError(f"{weights_path} is missing: {rerun('pretrain')}") from None
    except SafetensorError as error:
        raise PicollmError(f"{weights_path} is damaged ({error}): delete it and {rerun('pretrain')}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tied:
        del expected["head.weight"]
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != stored:
        name = sorted(n for n in expected.keys() | stored.keys() if expected.get(n) != stored.get(n))[0]
        raise PicollmError(
            f"{weights_path} does not fit {config_path}: {name} has shape {stored.get(name, 'none')}, "
            f"the config asks for {expected.get(name, 'none')}: copy both files from the same model"
        )
    model.load_state_dict(state, strict=False)  # a tied head is stored once; every other name was compared above
    return model.eval()
