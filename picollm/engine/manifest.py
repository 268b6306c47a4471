"""The engine folder's manifest: which files, built from which checkpoint, for which device, and the proof of each.

An engine is no portable artefact: it belongs to one checkpoint, one device and one version of its runtime.
"""

from __future__ import annotations

from pathlib import Path

from picollm.data.files import read_json, sha256
from picollm.data.manifest import prove
from picollm.errors import PicollmError

FORMAT = 2


def read_manifest(path: str | Path, *, weights: str | Path) -> dict:
    """The manifest, after every file it names was hashed and the checkpoint compared.

    Raises PicollmError where a file is missing or damaged, or the engine was built from other weights.
    """
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise PicollmError(f"{path} is of format {manifest.get('format')}, not {FORMAT}: run trt_compile again")
    if manifest["checkpoint_sha256"] != sha256(weights):
        raise PicollmError(f"{path} was built from other weights than {weights}: run trt_compile again")
    for entry in manifest["files"]:
        prove(path, entry, "trt_compile")
    return manifest


def artefact(manifest: dict, backend: str) -> dict | None:
    """Files, bytes and build seconds of a backend's artefact for logits; None where it has none.

    The seconds include the ONNX export that it was built from; what backends share is counted for each.
    """
    built = manifest["backends"].get(backend, {"files": {}})
    main = built["files"].get("logits")
    if main is None:
        return None
    stem = main.rpartition(".")[0]
    names = {main, f"{stem}.bin"} if main.endswith(".xml") else {main}
    entries = [entry for entry in manifest["files"] if entry["file"] in names]
    seconds, made_from = manifest["build_seconds"], built["graphs"]["logits"].get("from")
    return {
        "files": [entry["file"] for entry in entries],
        "bytes": sum(entry["bytes"] for entry in entries),
        "build_seconds": round(seconds[main] + seconds.get(made_from, 0.0), 2),
    }
