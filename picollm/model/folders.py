"""Detects the kind of model in a folder from its files, without torch: the Snakefile asks, and must not wait for it."""

from __future__ import annotations

from pathlib import Path

from picollm.errors import PicollmError
from picollm.files import read_json

INDEX = "model.safetensors.index.json"
PROOF = "weights_sha256"  # in the config.json that the pipeline writes


def is_foreign_folder(folder: Path) -> bool:
    """Returns True if the path means a transformers model to examine unchanged: its folder, or a name on the hub.

    False for what this project writes: its own layout, and StableLM's without a tokenizer (`picollm export`).
    """
    if not folder.is_dir():
        return True
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if PROOF in values:
        return "model_type" in values
    bare = values.get("model_type") == "stablelm" and not (folder / "tokenizer.json").is_file()
    ours = "d_model" in values or "training_context" in values or bare
    return not ours and ("model_type" in values or "architectures" in values)


def weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors files of a folder: one, or the shards that its index names.

    Raises PicollmError if there is none, or if a shard is missing.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))]
        lost = [file.name for file in files if not file.is_file()]
        if lost:
            raise PicollmError(
                f"{folder} lacks {len(lost)} of its {len(files)} weight files, the first is {lost[0]}: copy the "
                "complete folder"
            )
        return files
    old = [path.name for path in sorted(folder.glob("*.bin"))]
    if old:
        raise PicollmError(
            f"{folder}: its weights are in {old[0]}, a pickle, which is never read: convert them "
            "(AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True))"
        )
    raise PicollmError(
        f"{folder} has no model.safetensors and no index of a sharded one: save the model with "
        "save_pretrained(FOLDER, safe_serialization=True)"
    )
