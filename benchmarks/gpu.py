"""Runs all speed measurements that need a GPU: `make gpu`.

    python3 benchmarks/gpu.py                                       # writes gpu/gpu.json and gpu/gpu.md
    python3 benchmarks/gpu.py --budget 540                          # what fits; the same command resumes from there
    python3 benchmarks/gpu.py --parts benchmark --backends tensorrt-b1-fp16,eager-fp16
    python3 benchmarks/gpu.py --size smoke                          # a quick test that also runs on a CPU

Requires torch, numpy, pyarrow, tiktoken, safetensors, tqdm, PyYAML and this checkout; no Snakemake, DVC or TensorRT.
torch-tensorrt (or TensorRT-RTX) and ModelOpt are included if they are installed.

Parts, in this order; a part that gpu.json has for the same sources, size, GPU and PyTorch is not repeated:

correctness   logits and gradients of the GPU compared with the CPU's, in float32; untrained weights, no gate
training      the original's size (preset wikitext-103): tokens per second, MFU relative to the data sheet, share of
              the GPU's own bf16 matrix product; the benchmark uses the trained weights
loading       the ladder of benchmarks/loading.py: the gains from pin_memory and workers
profile       a trace of the training loop by torch.profiler, and its analysis
benchmark     accuracy gate and latencies of every backend that can be built here, in a separate process that is
              restarted without a backend that ended it (picollm.engine.journal); each cell is saved immediately

The text is synthetic: a Markov chain over GPT-2's vocabulary, which a model can learn, so that its logits are not flat.
A part that fails is recorded with its error, and the others continue; the exit code is then not 0.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
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
from picollm.engine.grid import BACKENDS, FULL_BACKENDS, REFERENCE, Grid, runs_on_cpu
from picollm.engine.journal import LIMIT, Journal, child, supervise
from picollm.engine.table import lines
from picollm.engine.timing import Protocol
from picollm.files import read_json, sha256, write_json, write_text
from picollm.hardware import describe_gpu, describe_hardware
from picollm.model.costs import flops_per_token, gemm_rate, peak_memory_mib
from picollm.model.device import set_up_to_time
from picollm.model.huggingface import load_folder
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig, Transformer
from picollm.model.weights import save_model
from picollm.precision import fit
from picollm.presets import preset
from picollm.profiling import workload
from picollm.profiling.timeline import analyse, metrics, read_kineto

VOCABULARY = 50257  # GPT-2's
SIZES = {  # rows per step, training steps, batches, gate rows, rounds
    "original": (64, 600, (1, 8, 32), 64, 9),
    "smoke": (4, 6, (1, 2), 4, 3),
}
PARTS = ("correctness", "training", "loading", "profile", "benchmark")
# Dense bf16 TFLOP/s of NVIDIA's data sheets (Turing: fp16), by a part of the name; the first match counts.
DATA_SHEET = {
    "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L4": 121,
    "RTX 4090": 165, "RTX 3090": 71, "A10": 125, "T4": 65,
}  # fmt: skip
NO_ANSWER = 180.0  # seconds without a sign of progress after which a backend is abandoned
COUNTED = 60  # measured training steps: the last ones, after compilation and warm-up
LARGEST = 1_000_000  # maximum bytes of gpu.json


def markov_rows(n: int, width: int, seed: int) -> np.ndarray:
    """Draws rows [n, width] uint16 of a chain in which each token has 8 likely successors, Zipf-distributed overall."""
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
    """The original's shape, or a tiny one for `smoke`, and the original's recipe with all tokens on the device."""
    batch_rows, steps, *_ = SIZES[size]
    config = preset("wikitext-103")
    shape = ModelConfig.from_config(config, VOCABULARY, dropout=0.0)
    if size == "smoke":
        shape = replace(shape, context=32, d_model=56, n_layers=2, d_ff=64)
    recipe = config["pretrain"] | {"length": steps, "unit": "steps", "batch_rows": batch_rows, "loading": "resident"}
    return shape, TrainingConfig(**fit(recipe, device)[0])


def data_sheet(device: torch.device) -> float | None:
    """The GPU's dense FLOP/s, or None if it is not in the list."""
    name = describe_gpu()["name"] if device.type == "cuda" else ""
    return next((peak * 1e12 for known, peak in DATA_SHEET.items() if known in name), None)


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
        "mfu": None if (peak := data_sheet(device)) is None else median(speeds) * flops / peak,
        "share_of_gemm": median(speeds) * flops / gemm, "loss_path": trainer.objective.how,
        "peak_memory_mib": peak_memory_mib(device),
    }, trainer.model.eval()  # fmt: skip


def correctness(shape: ModelConfig, device: torch.device) -> dict:
    """Largest differences between this device and the CPU, float32, untrained weights: logits, and gradients relative
    to the largest one of their tensor."""
    torch.manual_seed(0)
    models = {"cpu": Transformer(shape)}
    models["here"] = copy.deepcopy(models["cpu"]).to(device)
    rows = torch.from_numpy(markov_rows(2, shape.context + 1, 3).astype(np.int64))
    logits = {}
    for name, model in models.items():
        ids = rows.to(model.embedding.weight.device)
        logits[name] = model.eval()(ids[:, :-1]).detach().cpu()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    pairs = zip(models["cpu"].parameters(), models["here"].parameters(), strict=True)
    gradients = [((b.grad.cpu() - a.grad).abs().max() / a.grad.abs().max()).item() for a, b in pairs]
    return {
        "logits": (logits["here"] - logits["cpu"]).abs().max().item(),
        "largest_logit": logits["cpu"].abs().max().item(),
        "gradients": max(gradients), "weights": "untrained",
    }  # fmt: skip


def loading_ladder(size: str) -> dict:
    """Runs benchmarks/loading.py in its own process and returns its lines."""
    command = [sys.executable, str(ROOT / "benchmarks/loading.py"), "--rounds", "3" if size == "smoke" else "7"]
    command += ["--size", "default" if size == "smoke" else "original"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no output").splitlines()[-1])
    return {"lines": done.stdout.splitlines()}


def wanted_backends(device: torch.device, asked: list[str] | None) -> list[str]:
    if device.type == "cpu":
        return asked or ["eager-fp32", "eager-bf16", "openvino-bf16", "onnxruntime-fp32"]
    return asked or [name for name in FULL_BACKENDS if not runs_on_cpu(name)]


def measure(folder: Path, size: str, device: torch.device, threads: int, names: list[str], journal: Journal) -> dict:
    """Builds and benchmarks the model in `folder`, without repeating what the journal has."""
    *_, batches, gate_rows, rounds = SIZES[size]
    model = load_folder(folder)
    grid = Grid(tuple(names), {"last": batches, "full": batches[:1], "loss": batches[:1]}, max(batches))
    rows = markov_rows(max(gate_rows, 2 * max(batches)), model.config.context + 1, 2)
    engine = folder / "engine"
    if "built" not in journal.entries:
        ctx = BuildContext(model, engine, device, grid.max_batch, rows[:64, :-1].astype(np.int64), ["8.9"])
        build(ctx, grid, checkpoint_sha256=sha256(folder / "model.safetensors"), journal=journal)
        journal.add("built", True)
    ctx = LoadContext(model, read_json(engine / "manifest.json"), engine, device, threads)
    setting = Setting(grid, gate_rows, Protocol(rounds, 0.5, 1.0, seed=1), noise_limit=0.1, cold=True)
    return benchmark(ctx, rows, setting, folder, journal)[0]


def measure_apart(folder: Path, output: Path, arguments: argparse.Namespace, names: list[str], key: str) -> dict:
    """Runs `measure` in its own process."""
    work = output / "benchmark" / hashlib.sha256(f"{key} {names}".encode()).hexdigest()[:16]
    report = work / "report.json"
    command = [sys.executable, __file__, "--size", arguments.size, "--device", arguments.device,
               "--backends", ",".join(names), "--child", str(work), "--model", str(folder)]  # fmt: skip
    supervise(command, work, needed=REFERENCE, limit=LIMIT if arguments.size == "smoke" else NO_ANSWER)
    return read_json(report)


def trace(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "trace.json")
        rows = markov_rows(400, shape.context + 1, 1)
        workload.run(shape, recipe, rows, device, steps=20 if recipe.length > 100 else 3, warmup=5, trace=path)
        report: dict = {**analyse(read_kineto(path))}
    report["workload"] = {"batch_rows": recipe.batch_rows, "context": shape.context}
    report["metrics"] = metrics(report)
    del report["timeline"]
    return report


def attempt(part: Callable[[], dict]) -> dict:
    try:
        return part()
    except Exception as error:  # a failing part must not stop the others: GPU time is scarce
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def identity(size: str, device: torch.device) -> dict:
    """Returns what must be equal for two measurements to be comparable; gpu.json holds only one identity."""
    files = sorted([*ROOT.glob("picollm/**/*.py"), *ROOT.glob("presets/*.yaml"), Path(__file__)])
    gpu = describe_gpu() if device.type == "cuda" else None
    return {
        "format": 2, "size": size, "device": gpu["name"] if gpu else "cpu", "torch": torch.__version__,
        "sources": hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest(),
    }  # fmt: skip


def continued(path: Path, key: dict) -> dict:
    """Returns the finished parts; a file of another identity is moved aside, never mixed."""
    if not path.exists():
        return {}
    before = read_json(path)
    if {name: before.get(name) for name in key} == key:
        return {name: before[name] for name in PARTS if name in before and "error" not in before[name]}
    aside = path.with_name(f"gpu.{int(path.stat().st_mtime)}.json")
    path.rename(aside)
    print(f"gpu: {path} is for other sources, another size, PyTorch or GPU: moved to {aside}")
    return {}


def page(report: dict) -> str:
    """Formats the report as Markdown, including the parts that were not done."""
    hardware = report["hardware"]
    where = hardware["gpu"]["name"] if hardware["gpu"] else hardware["cpu"]["model"]
    versions = ", ".join(f"{name} {version}" for name, version in hardware["packages"].items())
    text = [f"# {where}", "", f"Commit {report['commit']}, size {report['size']}. {versions}."]
    for name in PARTS:
        part = report.get(name, {"error": "not done"})
        about = f" ({part['seconds']:g} s)" if "seconds" in part else ""
        text += ["", f"## {name.capitalize()}{about}", ""]
        text += [f"Failed: {part['error']}"] if "error" in part else SECTIONS[name](part)
    return "\n".join(text) + "\n"


def correctness_lines(part: dict) -> list[str]:
    return [
        f"Compared with the CPU in float32, untrained weights: logits differ by {part['logits']:.2g} at most (largest "
        f"logit {part['largest_logit']:.2g}), gradients by {part['gradients']:.2g} of their tensor's largest."
    ]


def training_lines(part: dict) -> list[str]:
    mfu = f"{part['mfu']:.1%} of the data sheet" if part["mfu"] else "no data sheet value known"
    return [
        f"{part['tokens_per_second']:,.0f} tokens/s at {part['batch_rows']} x {part['context']} tokens per step "
        f"(median of the last {COUNTED} steps; {part['slowest']:,.0f} to {part['fastest']:,.0f}),",
        f"{part['flops_per_second'] / 1e12:.1f} TFLOP/s: {mfu}, "
        f"{part['share_of_gemm']:.0%} of the machine's own bf16 matrix product; loss {part['first_loss']:.2f} to "
        f"{part['last_loss']:.2f}; {part['loss_path']}.",
    ]


def profile_lines(part: dict) -> list[str]:
    return [f"- {name}: {value:.4g}" for name, value in part["metrics"].items()]


def benchmark_lines(part: dict) -> list[str]:
    return [f"With {part['weights']} weights.", "", "```", *lines(part), "```"]


SECTIONS = {
    "correctness": correctness_lines,
    "training": training_lines,
    "loading": lambda part: ["```", *part["lines"], "```"],
    "profile": profile_lines,
    "benchmark": benchmark_lines,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="original")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu"), help="the folder to write into (%(default)s)")
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--backends", type=listed(BACKENDS), help="benchmarked backends; default: the full grid")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no part is started")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def listed(allowed: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(allowed)}")
        return chosen

    return names


def main() -> None:
    arguments, begun = parse(), time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the processes that this one starts
    device = set_up_to_time(arguments.device, torch.get_num_threads())
    if arguments.size == "original" and device.type == "cpu":
        sys.exit("gpu: torch sees no GPU; use --size smoke to test this on a CPU")
    threads, names = torch.get_num_threads(), wanted_backends(device, arguments.backends)
    if arguments.child:

        def work(journal: Journal) -> None:
            report = measure(arguments.model, arguments.size, device, threads, names, journal)
            write_json(arguments.child / "report.json", report)

        return child(work, arguments.child)
    key, path = identity(arguments.size, device), arguments.output / "gpu.json"
    shape, recipe = presets(arguments.size, device)
    done = continued(path, key)
    if done.get("benchmark", {}).get("asked") != names:
        done.pop("benchmark", None)  # its cells are still kept for the backends in common
    model = arguments.output / "model"

    def training() -> dict:
        part, trained = train(shape, recipe, device)
        save(trained, model, "trained")
        return part

    def benchmarked() -> dict:
        if not (model / "config.json").exists() or read_json(model / "about.json")["key"] != key:
            torch.manual_seed(0)
            save(Transformer(shape), model, "untrained")
        about = read_json(model / "about.json")
        part = measure_apart(model, arguments.output, arguments, names, f"{key} {about}")
        return part | {"weights": about["weights"], "asked": names}

    def save(trained: Transformer, folder: Path, weights: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(trained, folder / "model.safetensors", folder / "config.json")
        write_json(
            folder / "about.json", {"weights": weights, "key": key, "sha256": sha256(folder / "model.safetensors")}
        )

    parts = {
        "correctness": lambda: correctness(shape, device),
        "training": training,
        "loading": lambda: loading_ladder(arguments.size),
        "profile": lambda: trace(shape, recipe, device),
        "benchmark": benchmarked,
    }
    report = key | {"commit": commit(), "shape": asdict(shape), "recipe": asdict(recipe)}
    report["hardware"] = describe_hardware(device=device.type, threads=threads)
    report |= done
    for name in PARTS:
        if name in done or name not in arguments.parts:
            continue
        if time.monotonic() - begun > arguments.budget:
            print(f"gpu: the budget of {arguments.budget:g} s is used up; the same command resumes with {name}")
            break
        print(f"gpu: {name} ...", flush=True)
        start = time.monotonic()
        report[name] = attempt(parts[name]) | {"seconds": round(time.monotonic() - start, 1)}
        write_json(path, report)
        write_text(arguments.output / "gpu.md", page(report))
    print(page(report))
    size = path.stat().st_size if path.exists() else 0
    if size > LARGEST:
        sys.exit(f"gpu: {path} has {size:,} bytes, more than {LARGEST:,}")
    if failed := [name for name in PARTS if "error" in report.get(name, {})]:
        sys.exit(f"gpu: failed: {', '.join(failed)}; {arguments.output}/gpu.md says why")


if __name__ == "__main__":
    main()
