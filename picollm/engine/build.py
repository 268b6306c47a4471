"""Builds every named backend's artefacts into one folder, with a manifest of what each was built for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch

from picollm.data.loading import Rows, open_split
from picollm.engine.backends.backend import Backend, BuildContext
from picollm.engine.backends.registry import find_backend, why_skipped
from picollm.engine.export import GRAPHS
from picollm.engine.grid import Grid, grid
from picollm.engine.journal import Journal
from picollm.errors import PicollmError, one_line, rerun
from picollm.files import read_json, sha256, write_json
from picollm.hardware import describe_hardware
from picollm.manifest import Entry, clear, describe, verified
from picollm.model.device import set_up_to_time
from picollm.model.foreign_folder import open_folder

FORMAT = 2

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
OF_PIPELINE = Path("data/engine")  # other engines are built by `picollm optimize`


class BuiltBackend(TypedDict):
    precision: str
    reason: str | None  # reason why it was not built
    files: dict[str, str]
    graphs: dict[str, dict]
    made_for: dict


class EngineManifest(TypedDict):
    """Contents of data/engine/manifest.json."""

    format: int
    context: int
    max_batch: int
    checkpoint_sha256: str
    backends: dict[str, BuiltBackend]
    build_seconds: dict[str, float]
    hardware: dict
    files: list[Entry]


def compile_engines(checkpoint: Path, tokens: Path, folder: Path, config: Mapping[str, Mapping]) -> EngineManifest:
    """Builds the artefacts of the section `engine` for the model in `checkpoint`; returns the manifest.

    tokens: the manifest of packed tokens, of the model's context; int8 is calibrated on its training rows.
    """
    engine, device = config["engine"], set_up_to_time(**config["compute"])
    wanted = grid(engine)
    rows = calibration(open_split(tokens, "train"), engine["calibration_rows"], engine["seed"])
    model = open_folder(checkpoint)
    ctx = BuildContext(model, folder, device, wanted.max_batch, rows, engine["compute_capabilities"])
    return build(ctx, wanted, checkpoint_sha256=sha256(checkpoint / WEIGHTS))


def calibration(rows: Rows | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws training rows for int8 and fp8, [count, T] int64, without replacement; all of them if there are fewer."""
    chosen = np.random.default_rng(seed).choice(len(rows), min(count, len(rows)), replace=False)
    return np.ascontiguousarray(rows[np.sort(chosen)][:, :-1], dtype=np.int64)


def build(ctx: BuildContext, wanted: Grid, *, checkpoint_sha256: str, journal: Journal | None = None) -> EngineManifest:
    """Writes the artefacts and, last, manifest.json; returns the manifest.

    A backend that this machine can't build, or whose build fails, gets the reason, and the others continue; likewise
    one that ended an earlier process, according to the journal, which also lists what is already built.
    """
    journal = journal or Journal()
    manifest_path = ctx.folder / "manifest.json"
    ctx.folder.mkdir(parents=True, exist_ok=True)
    if not any(key.startswith("built ") for key in journal.entries):
        clear(manifest_path, *(f"{dot}{graph}.*" for graph in GRAPHS for dot in ("", ".")))
    backends = {name: build_once(find_backend(name), ctx, wanted, journal) for name in wanted.backends}
    manifest: EngineManifest = {
        "format": FORMAT,
        "context": ctx.model.config.context,
        "max_batch": ctx.max_batch,
        "checkpoint_sha256": checkpoint_sha256,
        "backends": backends,
        "build_seconds": ctx.seconds,
        "hardware": describe_hardware(device=ctx.device.type, threads=torch.get_num_threads()),
        "files": [describe(file) for graph in GRAPHS for file in sorted(ctx.folder.glob(f"{graph}.*"))],
    }
    write_json(manifest_path, manifest)
    return manifest


def build_once(backend: Backend, ctx: BuildContext, wanted: Grid, journal: Journal) -> BuiltBackend:
    """Calls `build_one`, unless the journal has the result."""
    name = backend.name
    if f"built {name}" not in journal.entries:
        if why := journal.ended.get(name):
            return cast(BuiltBackend, empty(backend) | {"reason": f"its build failed: {why}"})
        journal.mark(name, "while it was built")
        entry = build_one(backend, ctx, wanted)
        journal.mark()
        journal.add(f"built {name}", {"entry": entry, "seconds": dict(ctx.seconds)})
    ctx.seconds |= journal.entries[f"built {name}"]["seconds"]
    return journal.entries[f"built {name}"]["entry"]


def empty(backend: Backend) -> BuiltBackend:
    return {"precision": backend.precision, "reason": None, "files": {}, "graphs": {}, "made_for": {}}


def build_one(backend: Backend, ctx: BuildContext, wanted: Grid) -> BuiltBackend:
    """Returns the manifest's entry: `reason` is null if it was built or needs no artefact."""
    entry = empty(backend)
    if not backend.builds:
        return entry
    reason = backend.cannot_build(ctx.device) or why_skipped(backend, wanted, ctx.device)
    if reason:
        log.warning("%s is not built: %s", backend.name, reason)
        return {**entry, "reason": f"it was not built: {reason}"}
    try:
        build_graphs(backend, ctx, wanted.graphs, entry)
    except OSError:  # a full disk is not a fault of the backend
        raise
    except Exception as error:  # runtimes raise any type: unsupported operators, assertions, compilers' output
        log.warning("%s is not built: %s", backend.name, one_line(error)[:300])
        log.debug("%s", backend.name, exc_info=True)
        return {**entry, "files": {}, "graphs": {}, "reason": f"its build failed: {one_line(error)[:300]}"}
    return {**entry, "made_for": backend.made_for(ctx.device)}


def build_graphs(backend: Backend, ctx: BuildContext, graphs: Sequence[str], entry: BuiltBackend) -> None:
    for graph in graphs:
        start, shared = time.perf_counter(), sum(ctx.seconds.values())
        path, about = backend.build(ctx, graph)
        entry["files"][graph], entry["graphs"][graph] = path.name, about
        if path.name not in ctx.seconds:  # without the exports that it caused, which are timed separately
            own = time.perf_counter() - start - (sum(ctx.seconds.values()) - shared)
            ctx.seconds[path.name] = round(own, 2)
            # OpenVINO's weights are in a file next to its graph.
            files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
            size = sum(file.stat().st_size for file in files)
            log.info("%s: %.1f s, %.1f MB", path.name, own, size / 1e6)


def read_manifest(path: str | Path, *, weights: str | Path) -> dict:
    """Returns the manifest, after hashing every file it names and comparing the checkpoint.

    Raises PicollmError if a file is missing or damaged, or if the engine was built from other weights.
    """
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise PicollmError(f"{path} is of format {manifest.get('format')}, not {FORMAT}: {rerun('trt_compile')}")
    if manifest["checkpoint_sha256"] != sha256(weights):
        again = rerun("trt_compile") if Path(path).parent == OF_PIPELINE else "run `picollm optimize` with that model"
        raise PicollmError(f"{path} was built from other weights than {weights}: {again}")
    for entry in manifest["files"]:
        verified(path, entry, "trt_compile")
    return manifest


def artefact(manifest: dict, backend: str) -> dict | None:
    """Returns files, bytes and build seconds of a backend's artefact for logits; None if it has none.

    The seconds include the ONNX export that it was built from; an export shared by backends counts for each.
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
