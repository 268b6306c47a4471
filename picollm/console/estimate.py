"""Estimates how long a run will take, from this machine's earlier runs or else from a calibration of one second.

    python -m picollm.console.estimate        # calibrates; prints JSON

The time of an earlier run of a rule is in Snakemake's file in logs/benchmarks/, and its amount of work in work.json: a
longer training is not mistaken for the previous one. Without an earlier run, the seconds of the shipped configuration
on the REFERENCE machine are scaled by the two speeds that matter, of a matrix product and of plain Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from picollm.model.costs import flops_per_token

if TYPE_CHECKING:
    from picollm.model.transformer import ModelConfig

BENCHMARKS = Path("logs/benchmarks")
WORK = BENCHMARKS / "work.json"
VOCABULARY = 50257
ALIKE = 4  # an earlier run is used if its work differs from this run's by at most this factor
TIMEOUT = 30  # seconds for the calibration; on a cold disk most of them are imports

# One run of the shipped configuration, two cores of an AMD EPYC (Zen 4, AVX512-BF16), 2026-11-26, commit c332df3.
REFERENCE = {"product_gflops": 175.0, "python_seconds": 0.036}
# Seconds of each rule on that machine. Their sum is measured; its division into constant time, plain Python and matrix
# products is a guess.
SECONDS = {
    "prepare_corpus": (0, 5.5, 0),
    "tokenize_pack": (0, 1.2, 0),
    "pretrain": (0, 15, 169.9),
    "extract_attention": (0, 4, 1.4),
    "classify_heads": (0, 8, 5.6),
    "cluster_heads": (0, 5.8, 0),
    "score_mechanisms": (0, 6, 24.8),
    "ablate_heads": (0, 6, 46.3),
    "probe_heads": (0, 6, 6.1),
    "state_findings": (0, 1.9, 0),
    "trt_compile": (0, 26.5, 0),
    "trt_benchmark": (30, 30, 18.5),
    "nsys_capture": (0, 12, 11.2),
    "draw_figures": (0, 8.3, 0),
    "final_report": (0, 1.7, 0),
}
MODEL_BOUND = ("extract_attention", "classify_heads", "score_mechanisms", "ablate_heads", "probe_heads", "nsys_capture")
# FLOP of the shipped configuration: of its training, and of one row through its model, to which other rules scale.
TRAINING, ROW = 9.84e12, 5.02e9


def work(config: Mapping[str, Mapping], rows: int | None) -> dict[str, float | None]:
    """Returns the work of rules whose time depends on the configuration, relative to the shipped one; None: not known.

    `rows`: number of rows of the training split, for a length in epochs.
    """
    model, recipe, context = config["model"], config["pretrain"], config["tokens"]["context"]
    shape = cast("ModelConfig", SimpleNamespace(vocab_size=VOCABULARY, context=context, **model))  # without torch
    head = recipe["head_common"] + recipe["head_sampled"] if recipe["head_sampled"] else None
    steps: int | None = recipe["length"]
    if recipe["unit"] == "epochs":
        steps = rows and recipe["length"] * (rows // recipe["batch_rows"])
    if model["checkpoint"]:
        steps = 0
    training = None if steps is None else steps * recipe["batch_rows"] * context * flops_per_token(shape, head)
    row = context * flops_per_token(shape)
    return {"pretrain": training and training / TRAINING, **dict.fromkeys(MODEL_BOUND, row / ROW)}


def earlier(root: Path) -> dict[str, tuple[float, float]]:
    """Reads {rule: (seconds, work)} of the last run of each rule on this machine."""
    try:
        done = json.loads((root / WORK).read_text())
    except (OSError, ValueError):
        return {}
    runs = {}
    for rule, amount in done.items():
        try:
            seconds = (root / BENCHMARKS / f"{rule}.tsv").read_text().splitlines()[1].split("\t")[0]
            runs[rule] = (float(seconds), amount)
        except (OSError, ValueError, IndexError):
            continue
    return runs


def note(root: Path, rule: str, amount: float | None) -> None:
    """Records how much work the rule's last run was. A folder that can't be written costs only the next estimate."""
    try:
        done = json.loads((root / WORK).read_text())
    except (OSError, ValueError):
        done = {}
    if amount is not None:
        with suppress(OSError):
            (root / BENCHMARKS).mkdir(parents=True, exist_ok=True)
            (root / WORK).write_text(json.dumps(done | {rule: amount}))


def estimate(
    rules: Iterable[str], root: Path, amounts: Mapping[str, float | None], *, calibrate: bool = True
) -> tuple[dict[str, float], str]:
    """Returns {rule: seconds} for the rules that can be estimated, and a description of the sources."""
    before, speeds, sources = earlier(root), None, []
    seconds: dict[str, float] = {}
    for rule in rules:
        amount = amounts.get(rule, 1.0)
        if amount is None:
            continue
        if rule in before and amount / ALIKE <= before[rule][1] <= amount * ALIKE and amount:
            seconds[rule] = before[rule][0] * amount / before[rule][1]
            sources.append("this machine's earlier runs")
        elif rule in SECONDS and calibrate:
            speeds = speeds or calibration()
            if not speeds:
                return {}, "no estimate: the calibration failed"
            fixed, plain, products = SECONDS[rule]
            plain *= speeds["python_seconds"] / REFERENCE["python_seconds"]
            products *= REFERENCE["product_gflops"] / speeds["product_gflops"] * amount
            seconds[rule] = fixed + plain + products
            sources.append(f"a calibration: {speeds['product_gflops']:.0f} GFLOP/s in float32")
    return seconds, " and ".join(dict.fromkeys(sources))


def calibration() -> dict[str, float] | None:
    """Measures this machine's speeds in a separate process, because it needs torch; returns None if that fails."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def main() -> None:
    import torch

    torch.set_num_threads(2)
    a, b, rates = torch.ones(1024, 448), torch.ones(448, 2048), []
    begin = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * 1024 * 448 * 2048 / (time.perf_counter() - start) / 1e9)
    plain = []
    for _ in range(3):
        start = time.perf_counter()
        sum(i % 7 for i in range(1_000_000))
        plain.append(time.perf_counter() - start)
    print(json.dumps({"product_gflops": sorted(rates)[len(rates) // 2], "python_seconds": min(plain)}))


if __name__ == "__main__":
    main()
