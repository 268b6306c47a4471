"""Loads Hugging Face transformers models from folders; refuses the unsupported in one line, before loading.

Weights are read only from safetensors (a pickle may run any code), and no code of the folder is ever run. In memory
they are float32, whatever their stored type.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from picollm.data.hub import PATIENCE, refuse_silence
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import read_json, sha256, write_bytes, write_json
from picollm.model.folders import PROOF, is_foreign_folder, weight_files
from picollm.model.foreign import FAMILIES, Examined, ForeignModel
from picollm.model.huggingface import load_folder
from picollm.model.weights import load_model

COPIES = 2  # of the weights in memory: the model and an untrained one to compare with
WANTED = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]  # of a repository


def folder_of(name: str, revision: str | None = None) -> Path:
    """Returns a local folder, or fetches a name and revision from the hub. Raises PicollmError if it can't."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise PicollmError(f"{name} is a file: name the folder of a model")
    from huggingface_hub import constants, errors, snapshot_download

    wanted = {"repo_id": name, "revision": revision, "allow_patterns": WANTED}
    elsewhere = "or name a folder on this machine"
    try:
        refuse_silence(constants.ENDPOINT)
    except OSError:
        try:
            return Path(snapshot_download(**wanted, local_files_only=True))
        except (OSError, ValueError):
            raise PicollmError(
                f"{name} is not a folder here, and the hub ({constants.ENDPOINT}) can't be reached: check the network, "
                f"{elsewhere}"
            ) from None
    try:
        return Path(snapshot_download(**wanted, etag_timeout=PATIENCE))
    except errors.GatedRepoError:
        raise PicollmError(
            f"{name} is gated: accept its terms on its page at {constants.ENDPOINT} and log in (hf auth login), "
            f"{elsewhere}"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        at = f" at {revision}" if revision else ""
        raise PicollmError(f"{name}{at} is unknown on the hub, or private: check it, log in, {elsewhere}") from None
    except (OSError, ValueError) as error:
        raise PicollmError(
            f"{name} is not a folder here and can't be fetched ({one_line(error)[:200]}): {elsewhere[3:]}"
        ) from None


def load_foreign_model(folder: str | Path) -> ForeignModel:
    """Loads a folder's model. Raises PicollmError, with a remedy, for a model that can't be examined."""
    folder = Path(folder)
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise PicollmError("models of other families need transformers: pip install -e '.[models]'") from None
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if values is None:
        raise PicollmError(f"{folder} has no config.json: name the folder of a model")
    if "auto_map" in values and values.get("model_type") not in FAMILIES:
        raise PicollmError(f"{folder} needs its own code, which is never run; supported: {', '.join(FAMILIES)}")
    here = {"trust_remote_code": False, "local_files_only": True}
    try:
        settings = AutoConfig.from_pretrained(folder, **here)
        check_settings(folder, settings)
        check_memory(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, **here, use_safetensors=True, attn_implementation="eager", dtype=torch.float32
        )
    except PicollmError:
        raise
    except Exception as error:  # noqa: BLE001, transformers raises any type
        raise PicollmError(f"{folder} can't be loaded by transformers: {one_line(error)[:300]}") from None
    return ForeignModel(model)


def check_settings(name: Path, settings: Any) -> None:
    """Raises PicollmError for a model that is not a decoder of a supported family."""
    if getattr(settings, "is_encoder_decoder", False):
        raise PicollmError(f"{name} is an encoder-decoder ({settings.model_type}): only decoders are examined")
    if settings.model_type not in FAMILIES:
        kind = next((kind for kind in getattr(settings, "architectures", None) or [] if "Masked" in kind), None)
        encoder = f"{name} is an encoder ({kind}): only decoders are examined. " if kind else ""
        raise PicollmError(
            f"{encoder}{name} is of the family {settings.model_type!r}; supported: {', '.join(FAMILIES)}. Its maps can "
            "be analysed without the model: docs/heads.md"
        )


def parameters_in(folder: Path) -> int:
    """Counts the parameters from the headers of the safetensors files, without reading a weight."""
    total = 0
    for path in weight_files(folder):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise PicollmError(f"{path} is damaged: its header is longer than the file; copy it again")
            entries = json.loads(file.read(size))
        total += sum(math.prod(entry["shape"]) for key, entry in entries.items() if key != "__metadata__")
    return total


def check_memory(folder: Path) -> None:
    """Raises PicollmError, with the memory needed, if the weights would not fit."""
    parameters, free = parameters_in(folder), psutil.virtual_memory().available
    needed = 4 * parameters * COPIES
    if needed > free:
        raise PicollmError(
            f"{folder}: {parameters / 1e9:.1f} billion parameters take {needed / 2**30:.1f} GiB in float32, for the "
            f"model and an untrained one to compare with; {free / 2**30:.1f} GiB are free here: free some, or take a "
            "smaller model"
        )


def load_trained(weights: str | Path, config: str | Path) -> Examined:
    """Loads the model of a run, picollm's own or of another family, in evaluation mode on the CPU.

    Raises PicollmError if the file is damaged or does not fit.
    """
    folder = Path(config).parent
    if not is_foreign_folder(folder):
        return load_model(weights, config)
    if sha256(weights) != read_json(config)[PROOF]:
        raise PicollmError(f"{weights} is damaged (its sha256 is not that in {config}): {rerun('pretrain')}")
    return load_foreign_model(folder)


def open_folder(folder: Path) -> Examined:
    """Loads the model in a folder of any layout, with its weights as stored: for engines, and for use by hand."""
    return load_foreign_model(folder) if is_foreign_folder(folder) else load_folder(folder)


def save_foreign(model: ForeignModel, weights: Path, last: Path, config: Path) -> None:
    """Writes their folder layout, one float32 file, with the context of the run's tokens and the weights' sha256."""
    with TemporaryDirectory(dir=weights.parent) as name:
        model.model.save_pretrained(name, max_shard_size="1TB")
        data = (Path(name) / "model.safetensors").read_bytes()
        values = read_json(Path(name) / "config.json")
    for path in (weights, last):
        write_bytes(path, data)
    write_json(config, values | {"training_context": model.config.context, PROOF: sha256(weights)})
