"""Measures cold start and memory of one backend, in a process that does nothing else.

    python -m picollm.engine.cold_start --backend NAME --engine data/engine/manifest.json --model data/model ...

Prints one line of JSON: seconds to load, milliseconds of the first answer, and in MiB the growth from the resident
memory before the load to the peak up to that answer (for a GPU, the growth in used memory from before to after).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from picollm.engine.backends.backend import LoadContext
from picollm.engine.backends.registry import load_backend
from picollm.errors import PicollmError, one_line
from picollm.files import read_json
from picollm.model.device import set_up_to_time
from picollm.model.foreign_folder import open_folder

TIMEOUT = 900  # seconds; torch.compile of a large model takes minutes on a slow machine


def cold_start(name: str, ctx: LoadContext, model_folder: Path, batch: int) -> dict:
    """Measures a cold start in a new process. Raises PicollmError with its last line if it fails."""
    command = [
        sys.executable, "-m", __name__, "--backend", name, "--engine", str(ctx.folder / "manifest.json"),
        "--model", str(model_folder), "--device", ctx.device.type, "--threads", str(ctx.threads),
        "--batch", str(batch),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise PicollmError(f"{name} gave no first answer within {TIMEOUT} s in a fresh process") from None
    if done.returncode:
        last_line = (done.stderr.strip() or "no output").splitlines()[-1]
        raise PicollmError(f"{name} in a fresh process: exit code {done.returncode}: {last_line[:300]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_mib(field: str) -> float | None:
    """Reads `VmRSS` (now) or `VmHWM` (peak since `forget_peak`) of this process; None if the system has no /proc."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(text.partition(f"{field}:")[2].split()[0]) / 1024


def forget_peak() -> None:
    """Resets the peak: imports and loading the checkpoint must not hide a backend's use (man 5 proc, clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def gpu_used_mib(device: torch.device) -> float | None:
    """Returns the used memory of the whole GPU: torch does not count TensorRT's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def growth(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else round(after - before, 1)


def measure(name: str, ctx: LoadContext, batch: int) -> dict:
    vocabulary, context = ctx.model.config.vocab_size, ctx.model.config.context
    ids = np.random.default_rng(0).integers(vocabulary, size=(batch, context))
    forget_peak()
    resident, gpu = resident_mib("VmRSS"), gpu_used_mib(ctx.device)
    loaded = load_backend(name, ctx)
    if not loaded.runs:
        raise PicollmError(loaded.status)
    start = time.perf_counter()
    loaded.run(ids, np.array([context - 1]))
    return {
        "batch": batch,
        "load_seconds": loaded.load_seconds,
        "first_ms": round((time.perf_counter() - start) * 1e3, 2),
        "memory_mib": growth(resident, resident_mib("VmHWM")),
        "gpu_memory_mib": growth(gpu, gpu_used_mib(ctx.device)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("backend", "engine", "model", "device"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    device = set_up_to_time(arguments.device, arguments.threads)
    engine = Path(arguments.engine)
    # The process that started this one has already verified the files.
    ctx = LoadContext(open_folder(Path(arguments.model)), read_json(engine), engine.parent, device, arguments.threads)
    print(json.dumps(measure(arguments.backend, ctx, arguments.batch)))


if __name__ == "__main__":
    try:
        main()
    except PicollmError as error:
        sys.exit(f"picollm: {one_line(error)}")
