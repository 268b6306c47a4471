"""How long a run will take: from this machine's earlier runs, else from a calibration of a second.

    python -m picollm.pipeline.estimate        # calibrates; prints JSON

An earlier run of a rule is its file of Snakemake's in logs/benchmarks/, beside the work that it did then: a longer
training is not mistaken for the last one. Without one, the seconds that the shipped configuration took on the machine
of REFERENCE are scaled by the two speeds that decide, of a matrix product and of plain Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from picollm.model.costs import flops_per_token

if TYPE_CHECKING:
    from picollm.model.transformer import ModelConfig

BENCHMARKS = Path("logs/benchmarks")
WORK = BENCHMARKS / "work.json"
VOCABULARY = 50257
ALIKE = 4  # an earlier run of so much more or less work still says something of this one
TIMEOUT = 30  # seconds for the calibration, most of which are imports on a cold disk

# One run of the shipped configuration, two cores of an AMD EPYC (Zen 4, AVX512-BF16), 2026-11-26, commit c332df3.
REFERENCE = {"product_gflops": 175.0, "python_seconds": 0.036}
# Seconds of each rule there. Their sum is measured; how it is shared between what no speed changes, plain Python and
# matrix products is guessed.
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
# FLOP of the shipped configuration: of its training, and of a row through its model, which the others' work goes with.
TRAINING, ROW = 9.84e12, 5.02e9


def work(config: Mapping[str, Mapping], rows: int | None) -> dict[str, float | None]:
    """Of the rules that the configuration makes long or short, relative to the shipped one; None: not known yet.

    rows: of the training split, for a length in epochs.
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
    """{rule: (seconds, work)} of the last run of each rule here."""
    try:
        done = json.loads((root / WORK).read_text())
    except (OSError, ValueError):
        return {}
    found = {}
    for rule, amount in done.items():
        try:
            seconds = (root / BENCHMARKS / f"{rule}.tsv").read_text().splitlines()[1].split("\t")[0]
            found[rule] = (float(seconds), amount)
        except (OSError, ValueError, IndexError):
            continue
    return found


def note(root: Path, rule: str, amount: float | None) -> None:
    """Remember how much work the rule's last run was."""
    try:
        done = json.loads((root / WORK).read_text())
    except (OSError, ValueError):
        done = {}
    if amount is not None:
        (root / WORK).write_text(json.dumps(done | {rule: amount}))


def estimate(
    rules: Iterable[str], root: Path, amounts: Mapping[str, float | None], *, calibrate: bool = True
) -> tuple[dict[str, float], str]:
    """{rule: seconds} of those that something is known of, and where that is from, in words."""
    before, speeds, sources = earlier(root), None, []
    found: dict[str, float] = {}
    for rule in rules:
        amount = amounts.get(rule, 1.0)
        if amount is None:
            continue
        if rule in before and amount / ALIKE <= before[rule][1] <= amount * ALIKE and amount:
            found[rule] = before[rule][0] * amount / before[rule][1]
            sources.append("this machine's earlier runs")
        elif rule in SECONDS and calibrate:
            speeds = speeds or calibration()
            if not speeds:
                return {}, "no estimate: the calibration failed"
            fixed, plain, products = SECONDS[rule]
            plain *= speeds["python_seconds"] / REFERENCE["python_seconds"]
            products *= REFERENCE["product_gflops"] / speeds["product_gflops"] * amount
            found[rule] = fixed + plain + products
            sources.append(f"a calibration: {speeds['product_gflops']:.0f} GFLOP/s in float32")
    return found, " and ".join(dict.fromkeys(sources))


def calibration() -> dict[str, float] | None:
    """This machine's speeds, measured in a process of its own, as torch is needed; None where that fails."""
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
