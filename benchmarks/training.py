"""Measures training speed compared with common alternatives, start-up time, and memory, on random tokens.

    python benchmarks/training.py                                 # about 20 minutes on two cores
    python benchmarks/training.py --sizes default --rounds 3

speed     steps of each system, interleaved in rounds, each in its own process, which waits while the others run:
          this project's loop as set up by its preset, and the same with the C library's default of releasing memory;
          a plain eager loop over the same model (autocast, F.cross_entropy, AdamW); Hugging Face's Trainer with a
          Llama of the same size (likewise). For reference, the machine's own matrix product of the head's shape in
          the precision used, measured in every round.
start     from the start of a process to the end of its first step, without torch.compile.
memory    peak memory of a process, by rows per batch and by steps.

Median, minimum and maximum. Requires `pip install -e '.[benchmarks]' -c constraints.txt`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from picollm.data.tokenizer import VOCAB_SIZE
from picollm.model import device as compute_module
from picollm.model.costs import flops_per_token, gemm_rate, peak_memory_mib
from picollm.model.device import autocast, set_up
from picollm.model.training import Trainer, TrainingConfig
from picollm.model.transformer import ModelConfig, Transformer
from picollm.precision import fit, has_bf16
from picollm.presets import preset

ROOT = Path(__file__).parents[1]
SIZES = {"original": ("wikitext-103", 8), "default": ("default", None)}  # preset, rows per batch
STEPS = 3  # steps per block, after one uncounted step


def load(size: str, rows: int | None = None, **edits) -> tuple[ModelConfig, TrainingConfig, dict]:
    """Loads shape, recipe and compute section of a preset. Dropout is off, because Llama has none."""
    name, batch = SIZES[size]
    config = preset(name)
    batch = rows or batch or config["pretrain"]["batch_rows"]
    recipe = config["pretrain"] | {"length": 1_000_000, "unit": "steps", "batch_rows": batch} | edits
    shape = ModelConfig.from_config(config, VOCAB_SIZE, dropout=0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return shape, TrainingConfig(**fit(recipe, device)[0]), config["compute"]


def random_rows(shape: ModelConfig, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, (n, shape.context + 1)).astype(np.uint16)


def ours(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> Callable[[], list[dict]]:
    trainer = Trainer(shape, recipe, random_rows(shape, 64), device)
    trainer.model.train()

    def block() -> list[dict]:
        trainer.read_at = time.perf_counter()  # excludes the time of the others' rounds
        for _ in range(STEPS):
            trainer.advance()
        trainer.read()
        tokens = recipe.batch_rows * shape.context
        return [
            {"seconds": tokens / row["tokens_per_second"], "data_wait": row["data_wait"]}
            for row in trainer.curve[-STEPS:]
        ]

    return block


def plain(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> Callable[[], list[dict]]:
    """Builds the loop that a tutorial would show."""
    model = Transformer(shape).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    rows = torch.from_numpy(random_rows(shape, recipe.batch_rows).astype(np.int64)).to(device)

    def step() -> dict:
        start = time.perf_counter()
        with autocast(device, has_bf16(device.type)):
            logits = model(rows[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return {"seconds": time.perf_counter() - start}

    return lambda: [step() for _ in range(STEPS)]


def hugging_face(shape: ModelConfig, recipe: TrainingConfig, device: torch.device) -> Callable[[], list[dict]]:
    """Builds Hugging Face's Trainer, with its own loading, on a Llama with the same matrices."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
                    num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
                    max_position_embeddings=shape.rope_cache, tie_word_embeddings=shape.tied)
    )  # fmt: skip
    ids = random_rows(shape, 64)[:, :-1].astype(np.int64)
    data = [{"input_ids": row, "labels": row} for row in ids]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append({"seconds": time.perf_counter() - self.start})

    times: list[dict] = []

    def block() -> list[dict]:
        times.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=recipe.batch_rows, max_steps=STEPS + 1, bf16=has_bf16(device.type),
                use_cpu=device.type == "cpu", report_to=[], save_strategy="no", logging_strategy="no",
                disable_tqdm=True, learning_rate=recipe.lr,
            )  # fmt: skip
            Trainer(model, arguments, train_dataset=data, callbacks=[Clock()]).train()
        return times[1:]

    return block


GIVING = "picollm, freed memory given back"
SYSTEMS = {"picollm": ours, GIVING: ours, "plain eager loop": plain, "Hugging Face Trainer, Llama": hugging_face}


def serve(name: str, size: str) -> None:
    """Serves in its own process: a block of steps for every line of standard input."""
    shape, recipe, compute = load(size)
    if SYSTEMS[name] is ours:
        if name == GIVING:
            compute_module.keep_memory = lambda: None
        device = set_up(**compute)
    else:
        torch.set_num_threads(compute["threads"])  # but none of this project's other settings
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results, sys.stdout = sys.stdout, sys.stderr  # Trainer prints
    block = SYSTEMS[name](shape, recipe, device)
    for _ in sys.stdin:
        print(json.dumps({"steps": block(), "mib": peak_memory_mib(device)}), file=results, flush=True)


class Served:
    def __init__(self, name: str, size: str) -> None:
        command = [sys.executable, __file__, "--serve", name, size]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def block(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def speed(size: str, rounds: int) -> None:
    shape, recipe, compute = load(size)
    device = set_up(**compute)
    served = {name: Served(name, size) for name in SYSTEMS}
    tokens = recipe.batch_rows * shape.context
    for system in served.values():  # one at a time: imports, compiles, allocates
        system.block()
    rates_of: dict[str, list[float]] = {name: [] for name in served}
    gemm, waits, memory = [], [], {}
    for _ in range(rounds):
        for name, system in served.items():
            block = system.block()
            rates_of[name].append(tokens / statistics.median(step["seconds"] for step in block["steps"]))
            waits += [step["data_wait"] for step in block["steps"] if "data_wait" in step]
            memory[name] = block["mib"]
        gemm.append(gemm_rate(tokens, shape, device, recipe.head_dtype, seconds=2))
    for system in served.values():
        system.process.communicate()
    flops = flops_per_token(shape, recipe.head_rows)
    print(f"\n{size}: {shape.d_model} wide, {recipe.batch_rows} x {shape.context} tokens per step, {rounds} rounds")
    print("| system | tokens/s | picollm is ... times as fast | peak memory, MiB |\n|---|---|---|---|")
    for name, rates in rates_of.items():
        ratios = spread([a / b for a, b in zip(rates_of["picollm"], rates, strict=True)], 2)
        print(f"| {name} | {spread(rates, 0)} | {ratios if name != 'picollm' else ''} | {memory[name]:,.0f} |")
    shares = [rate * flops / peak for rate, peak in zip(rates_of["picollm"], gemm, strict=True)]
    print(f"{recipe.head_dtype} matrix product of the head's shape: {spread([peak / 1e9 for peak in gemm], 0)} GFLOP/s")
    print(f"picollm's arithmetic, {flops / 1e6:.1f} MFLOP per token, as a share of it: {spread(shares, 2)}")
    print(f"waiting for data, share of a step's time: {statistics.median(waits):.5f}", flush=True)


def child(size: str, rows: int | None, steps: int) -> None:
    """Runs some steps in its own process, then prints when it began and ended, and its peak memory."""
    begin = time.time()
    shape, recipe, compute = load(size, rows, compile="none")
    trainer = Trainer(shape, recipe, random_rows(shape, 64), set_up(**compute))
    trainer.model.train()
    for _ in range(steps):
        trainer.advance()
    print(json.dumps({"end": time.time(), "begin": begin, "mib": peak_memory_mib(trainer.device)}))


def spawn(size: str, rows: int | None, steps: int) -> dict:
    start = time.time()
    arguments = ["--child", json.dumps([size, rows, steps])]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, cwd=ROOT)
    result = json.loads(done.stdout)
    return result | {"seconds": result["end"] - start}


def start_up(rounds: int) -> None:
    seconds = [spawn("default", None, 1)["seconds"] for _ in range(rounds)]
    print(f"\nstart of a process to the end of its first step, default, eager: {spread(seconds, 1)} s")


def memory() -> None:
    print("\n| original's size, eager | peak memory, MiB |\n|---|---|")
    for rows, steps in ((2, 3), (4, 3), (8, 3), (16, 3), (4, 12), (4, 30)):
        print(f"| {rows} rows, {steps} steps | {spawn('original', rows, steps)['mib']:,.0f} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--parts", nargs="+", choices=("speed", "start", "memory"), default=["speed", "start", "memory"]
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    if arguments.child:
        child(*json.loads(arguments.child))
        return
    if "speed" in arguments.parts:
        for size in arguments.sizes:
            speed(size, arguments.rounds)
    if "start" in arguments.parts:
        start_up(arguments.rounds)
    if "memory" in arguments.parts:
        memory()


if __name__ == "__main__":
    main()
