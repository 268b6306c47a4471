"""Everything about speed that wants a GPU, in one go: `make gpu`.

    python3 benchmarks/gpu.py                     # writes gpu/gpu.json and gpu/gpu.md
    python3 benchmarks/gpu.py --size smoke        # a minute, also on a CPU: does it run?

Needed are torch, numpy, pyarrow, tiktoken, safetensors, tqdm, PyYAML and this checkout; no Snakemake, DVC or TensorRT.
torch-tensorrt (or TensorRT-RTX) and ModelOpt take part if they are installed.

1. Training at the original's size (the preset wikitext-103): tokens per second, and the share of the machine's own
   bf16 matrix product; the weights are what the rest works on.
2. Correctness of every backend that can be built here, against eager fp32, then the benchmark table.
3. A trace of the training loop by torch.profiler, and its analysis.

The text is made up: a Markov chain over GPT-2's vocabulary, which a model can learn, so that its logits are not flat. A
part that fails is written down with its error, and the others go on; the exit code then is not 0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from picollm.engine.backends.backend import BuildContext, LoadContext
from picollm.engine.benchmark import Setting, benchmark
from picollm.engine.build import build
from picollm.engine.grid import BACKENDS, Grid, runs_on_cpu
from picollm.engine.table import lines
from picollm.engine.timing import Protocol
from picollm.files import sha256, write_json, write_text
from picollm.hardware import describe_hardware
from picollm.model.costs import flops_per_token, gemm_rate, peak_memory_mib
from picollm.model.device import set_up_to_time
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig, Transformer
from picollm.model.weights import save_model
from picollm.precision import fit
from picollm.presets import preset
from picollm.profiling import workload
from picollm.profiling.timeline import analyse, metrics, read_kineto

VOCABULARY = 50257  # GPT-2's
SIZES = {  # rows a step, training steps, batches, gate rows, rounds
    "original": (64, 600, (1, 8, 32), 64, 9),
    "smoke": (4, 6, (1, 2), 4, 3),
}
COUNTED = 60  # training steps that count: the last ones, after compilation and warm-up
LARGEST = 1_000_000  # bytes of gpu.json


def markov_rows(n: int, width: int, seed: int) -> np.ndarray:
    """Rows [n, width] uint16 of a chain in which each token has 8 likely successors, Zipf-distributed overall."""
    draw = np.random.default_rng(seed)
    chain = np.random.default_rng(0)
    rank = 1 / np.arange(1, VOCABULARY + 1)
    successors = chain.choice(VOCABULARY, size=(VOCABULARY, 8), p=rank / rank.sum())
    rows = np.empty((n, width), dtype=np.int64)
    rows[:, 0] = draw.integers(VOCABULARY, size=n)
    for at in range(1, width):
        rows[:, at] = successors[rows[:, at - 1], draw.integers(8, size=n)]
    return rows.astype(np.uint16)


def presets(size: str, device: torch.device) -> tuple[ModelConfig, TrainingConfig]:
    """The original's shape, or for `smoke` a tiny one, and a recipe of the original's with all tokens on the device."""
    batch_rows, steps, *_ = SIZES[size]
    config = preset("wikitext-103")
    model = {key: value for key, value in config["model"].items() if key != "checkpoint"} | {"dropout": 0.0}
    shape = ModelConfig(vocab_size=VOCABULARY, context=config["tokens"]["context"], **model)
    if size == "smoke":
        shape = replace(shape, context=32, d_model=56, n_layers=2, d_ff=64)
    recipe = config["pretrain"] | {"length": steps, "unit": "steps", "batch_rows": batch_rows, "loading": "resident"}
    return shape, TrainingConfig(**fit(recipe, device)[0])


def train(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> tuple[dict, Transformer]:
    trainer = Trainer(shape, recipe, markov_rows(20_000 if recipe.length > 100 else 200, shape.context + 1, 1), device)
    trainer.model.train()
    for _ in range(recipe.length):
        trainer.advance()
    trainer.read()
    speeds = [row["tokens_per_second"] for row in trainer.curve[-COUNTED:]]
    flops = flops_per_token(shape, recipe.head_rows)
    gemm = gemm_rate(recipe.batch_rows * shape.context, shape, device, recipe.head_dtype)
    return {
        "tokens_per_second": median(speeds), "slowest": min(speeds), "fastest": max(speeds),
        "steps": recipe.length, "batch_rows": recipe.batch_rows, "context": shape.context,
        "first_loss": trainer.curve[0]["loss"], "last_loss": trainer.curve[-1]["loss"],
        "flops_per_token": flops, "flops_per_second": median(speeds) * flops, "gemm_flops_per_second": gemm,
        "share_of_gemm": median(speeds) * flops / gemm, "loss_path": trainer.objective.how,
        "peak_memory_mib": peak_memory_mib(device),
    }, trainer.model.eval()  # fmt: skip


def measure(model: Transformer, size: str, device: torch.device, threads: int) -> dict:
    *_, batches, gate_rows, rounds = SIZES[size]
    names = [name for name in BACKENDS if not runs_on_cpu(name)]
    if device.type == "cpu":
        names = ["eager-fp32", "eager-bf16", "openvino-bf16", "onnxruntime-fp32"]
    grid = Grid(names, {"last": batches, "full": batches[:1], "loss": batches[:1]}, max(batches))
    rows = markov_rows(max(gate_rows, 2 * max(batches)), model.config.context + 1, 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(model, folder / "model.safetensors", folder / "config.json")
        ctx = BuildContext(model, folder / "engine", device, grid.max_batch, rows[:64, :-1].astype(np.int64), ["8.9"])
        manifest = build(ctx, grid, checkpoint_sha256=sha256(folder / "model.safetensors"))
        ctx = LoadContext(model, manifest, folder / "engine", device, threads)
        setting = Setting(grid, gate_rows, Protocol(rounds, 0.5, 1.0, seed=1), noise_limit=0.1, cold=True)
        return benchmark(ctx, rows, setting, folder)[0]


def trace(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "trace.json")
        rows = markov_rows(400, shape.context + 1, 1)
        workload.run(shape, recipe, rows, device, steps=20 if recipe.length > 100 else 3, warmup=5, trace=path)
        found: dict = {**analyse(read_kineto(path))}
    found["workload"] = {"batch_rows": recipe.batch_rows, "context": shape.context}
    found["metrics"] = metrics(found)
    del found["timeline"]
    return found


def attempt(part: Callable[[], dict]) -> dict:
    try:
        return part()
    except Exception as error:  # one part that fails must not cost the others: a GPU is rare
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def page(report: dict) -> str:
    """The report in Markdown."""
    hardware, training, profile = report["hardware"], report["training"], report["profile"]
    where = hardware["gpu"]["name"] if hardware["gpu"] else hardware["cpu"]["model"]
    versions = ", ".join(f"{name} {version}" for name, version in hardware["packages"].items())
    text = [f"# {where}", "", f"Commit {report['commit']}, size {report['size']}. {versions}.", "", "## Training", ""]
    if "error" in training:
        text.append(f"Failed: {training['error']}")
    else:
        each = f"{training['batch_rows']} x {training['context']} tokens a step"
        text += [
            f"{training['tokens_per_second']:,.0f} tokens/s at {each} (median of the last {COUNTED} steps; "
            f"{training['slowest']:,.0f} to {training['fastest']:,.0f}),",
            f"{training['flops_per_second'] / 1e12:.1f} TFLOP/s, {training['share_of_gemm']:.0%} of the machine's bf16 "
            f"matrix product; loss {training['first_loss']:.2f} to {training['last_loss']:.2f}; "
            f"{training['loss_path']}.",
        ]
    text += ["", "## Backends", "", "```"]
    found = report["benchmark"]
    text += [f"failed: {found['error']}"] if "error" in found else lines(found)
    text += ["```", "", "## Where a training step's time goes", ""]
    if "error" in profile:
        text.append(f"Failed: {profile['error']}")
    else:
        text += [f"- {name}: {value:.4g}" for name, value in profile["metrics"].items()]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="original")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu"), help="the folder to write into (%(default)s)")
    arguments = parser.parse_args()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the fresh processes for cold starts
    device = set_up_to_time(arguments.device, torch.get_num_threads())
    if arguments.size == "original" and device.type == "cpu":
        sys.exit("gpu: torch sees no GPU; --size smoke runs on a CPU, to see whether it works")
    shape, recipe = presets(arguments.size, device)
    model = Transformer(shape).to(device).eval()

    def training() -> dict:
        nonlocal model
        found, model = train(shape, recipe, device)
        return found

    threads = torch.get_num_threads()
    report = {"format": 1, "commit": commit(), "size": arguments.size, "shape": asdict(shape), "recipe": asdict(recipe)}
    report["hardware"] = describe_hardware(device=device.type, threads=threads)
    parts = {
        "training": training,
        "benchmark": lambda: measure(model, arguments.size, device, threads),
        "profile": lambda: trace(shape, recipe, device),
    }
    for name, part in parts.items():
        print(f"gpu: {name} ...", flush=True)
        report[name] = attempt(part)
        write_json(
            arguments.output / "gpu.json",
            report | {left: {"error": "not reached"} for left in parts if left not in report},
        )
    write_text(arguments.output / "gpu.md", page(report))
    print(page(report))
    size = (arguments.output / "gpu.json").stat().st_size
    if size > LARGEST:
        sys.exit(f"gpu: {arguments.output}/gpu.json has {size:,} bytes, more than {LARGEST:,}")
    if failed := [name for name in parts if "error" in report[name]]:
        sys.exit(f"gpu: failed: {', '.join(failed)}; {arguments.output}/gpu.md says why")


if __name__ == "__main__":
    main()
