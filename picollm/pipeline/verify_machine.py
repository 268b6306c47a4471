"""Checks of `picollm verify` other than data: settings that break the pipeline, and properties of this machine.

The machine of a past run is in its receipt (picollm.pipeline.receipts). Nothing here imports torch or another heavy
package: versions come from the installed packages' metadata.
"""

from __future__ import annotations

import filecmp
import platform
import shutil
import subprocess
from pathlib import Path

import psutil

import picollm
from picollm.files import nearest_existing
from picollm.hardware import cxx_compiler, installed, usable_cores

LINKS = {"hardlink", "symlink"}
TENSORRT = ("tensorrt-rtx", "torch-tensorrt")


def bad_settings(root: Path, cache_types: list[str]) -> list[tuple[str, str]]:
    """Returns pairs (problem and why it matters, command that fixes it); `cache_types` is DVC's setting cache.type."""
    problems = []
    if links := sorted(LINKS & set(cache_types)):
        why = "outputs become links to read-only objects of the cache, and Snakemake refuses to overwrite them"
        remedy = "`dvc config --unset cache.type`, then `dvc checkout --relink`"
        problems.append((f"DVC's cache.type is {' or '.join(links)}: {why}", remedy))
    imported, here = Path(picollm.__file__).parent, root / "picollm"
    if imported != here and (differing := other_code(imported, here)):
        what = f"the imported picollm is {imported}, whose {differing} differs from this checkout's"
        problems.append(
            (what, "`python -m picollm.cli` here uses this checkout's, `pip install -e .` does so for good")
        )
    return problems


def other_code(imported: Path, here: Path) -> str | None:
    """Returns the first module whose content differs between the two packages, or None."""
    names = sorted({path.relative_to(top) for top in (imported, here) for path in top.rglob("*.py")})
    _, different, odd = filecmp.cmpfiles(imported, here, names, shallow=False)
    return str(min([*different, *odd])) if different or odd else None


def warnings(root: Path, cache: Path, data_bytes: int) -> list[str]:
    """Warns of untested versions, and of too little disk space for a second copy of the data."""
    lines = []
    pins = root / "constraints.txt"
    tested = dict(line.split("==") for line in pins.read_text().splitlines() if "==" in line) if pins.exists() else {}
    for package in ("snakemake", "dvc"):
        if tested.get(package, installed(package)) != installed(package):
            lines.append(f"{package} is {installed(package)}; constraints.txt pins {tested[package]}, which was tested")
    for name, folder in (("this repository", root), ("DVC's cache", nearest_existing(cache))):
        free = shutil.disk_usage(folder).free
        if free < data_bytes:
            lines.append(
                f"{free / 1e9:.1f} GB are free on the disk of {name}; data/ and reports/ hold {data_bytes / 1e9:.1f} GB"
            )
    return lines


def machine_facts() -> list[str]:
    """Describes what decides which parts of the pipeline can run here, and how fast."""
    versions = [f"{name} {installed(name) or 'is missing'}" for name in ("snakemake", "dvc", "torch")]
    engines = [f"{name} {installed(name)}" for name in TENSORRT if installed(name)]
    return [
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"{usable_cores()} CPU cores, {psutil.virtual_memory().total / 2**30:.1f} GiB memory",
        f"GPU: {graphics()}",
        f"TensorRT: {', '.join(engines) or 'not installed: the report will say that there is no engine'}",
        f"nsys: {shutil.which('nsys') or 'not installed: torch.profiler is used instead'}",
        f"C++ compiler: {cxx_compiler() or 'none: on a CPU torch.compile is off and training is slower'}",
    ]


def graphics() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except FileNotFoundError:
        return "none (nvidia-smi is not installed)"
    except (OSError, subprocess.SubprocessError):
        return "none that nvidia-smi can reach"
    return "; ".join(done.stdout.strip().splitlines()) or "none"
