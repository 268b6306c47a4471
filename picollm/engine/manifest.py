"""The engine folder's manifest: which files, built from which checkpoint, for which device, and the proof of each.

An engine is no portable artefact: it belongs to one checkpoint, one compute capability and one TensorRT version.
"""

from __future__ import annotations

from pathlib import Path

from picollm.data.files import read_json, sha256
from picollm.data.manifest import prove
from picollm.errors import PicollmError

FORMAT = 1


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
