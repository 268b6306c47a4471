"""Times attention extraction against TransformerLens, and the cost of the statistics and the clusters.

    python benchmarks/attention.py                                # about five minutes on two cores

extraction   the shipped sentences through a model of the original's size, one by one: this project writes the .npz
             files, TransformerLens 3 only fills its cache (run_with_cache); the same weights, interleaved, one thread
             and two; the largest difference between their patterns.
study        classification with 2,000 bootstraps and 3 untrained models, its statistics alone on the same files, and
             the clusters, at the default's size and at the original's, each in its own process: seconds and peak
             memory.

Median, minimum and maximum. Requires `pip install -e '.[dev]' -c constraints.txt` (for TransformerLens).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from picollm.attention.clusters import cluster_heads
from picollm.attention.extraction import extract_attention
from picollm.attention.heads import classify_heads
from picollm.attention.maps import load_categories
from picollm.attention.sentences import CATEGORIES, any_sentences
from picollm.data.tokenizer import VOCAB_SIZE
from picollm.model.transformer import ModelConfig, Transformer
from picollm.model.weights import save_model
from picollm.presets import preset

ROOT = Path(__file__).parents[1]
PRESETS = {"original": "wikitext-103", "default": "default"}
SENTENCES = ROOT / "picollm/attention/sentences.yaml"
CPU = torch.device("cpu")


def make(size: str) -> tuple[Transformer, dict]:
    """Builds a model with scores as sharp as a trained one's, and returns it with its preset."""
    config = preset(PRESETS[size])
    torch.manual_seed(1)
    model = Transformer(ModelConfig.from_config(config, VOCAB_SIZE)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(3)
    return model, config


def paths_in(folder: str) -> dict[str, Path]:
    return {name: Path(folder) / f"{name}.npz" for name in CATEGORIES}


def extraction(rounds: int) -> None:
    loader: dict = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)[1], loader)
    model, _ = make("original")
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model.safetensors", Path(folder) / "config.json")
        lens = loader["hooked"](folder)
        paths = paths_in(folder)

        def ours() -> float:
            start = time.perf_counter()
            extract_attention(model, any_sentences(SENTENCES), paths, CPU)
            return time.perf_counter() - start

        ours()
        categories = load_categories(list(paths.values()))
        ids = [torch.tensor([sequence]) for category in categories for sequence in category.ids]
        maps = [torch.from_numpy(weights) for category in categories for weights in category.maps]

        @torch.no_grad()
        def theirs() -> float:
            start = time.perf_counter()
            for sequence in ids:
                lens.run_with_cache(sequence)
            return time.perf_counter() - start

        worst = 0.0
        for sequence, weights in zip(ids, maps, strict=True):
            with torch.no_grad():
                _, cache = lens.run_with_cache(sequence)
            pattern = torch.stack([cache["pattern", layer][0] for layer in range(len(weights))])
            worst = max(worst, (pattern - weights).abs().max().item())
        print(f"{len(ids)} sentences of {min(map(lengths, ids))} to {max(map(lengths, ids))} tokens, original's size")
        print("| threads | picollm, files written, s | run_with_cache alone, s | ratio |\n|---|---|---|---|")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = [(ours(), theirs()) for _ in range(rounds)]
            mine, other = zip(*times, strict=True)
            ratio = spread([b / a for a, b in times], 2)
            print(f"| {threads} | {spread(mine, 2)} | {spread(other, 2)} | {ratio} |", flush=True)
        print(f"largest difference between weights: {worst:.1e}")


def lengths(ids: torch.Tensor) -> int:
    return ids.shape[1] - 1


def child(size: str) -> None:
    """Does the three rules' work in its own process, and prints times and peak memory."""
    torch.set_num_threads(1)
    model, config = make(size)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = paths_in(folder)
        start = time.perf_counter()
        extract_attention(model, any_sentences(SENTENCES), paths, CPU)
        seconds["extract_attention"] = time.perf_counter() - start
        start = time.perf_counter()
        report = classify_heads(load_categories(list(paths.values())), model, config["heads"], CPU)
        seconds["classify_heads"] = time.perf_counter() - start
        start = time.perf_counter()
        classify_heads(load_categories(list(paths.values())), None, config["heads"], CPU)
        seconds["statistics"] = time.perf_counter() - start
        start = time.perf_counter()
        cluster_heads(load_categories(list(paths.values())), report["heads"], config["clusters"])
        seconds["cluster_heads"] = time.perf_counter() - start
    mib = (
        int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    )  # unlike ru_maxrss, excludes the parent's
    print(json.dumps({"seconds": seconds, "mib": mib}))


def study(rounds: int) -> None:
    columns = (
        "size",
        "extraction, s",
        "classification, s",
        "its statistics alone, s",
        "families, s",
        "rules together, s",
    )
    print(f"\n| {' | '.join(columns)} | peak memory, MiB |\n|{'---|' * (len(columns) + 1)}")
    for size in PRESETS:
        runs = []
        for _ in range(rounds):
            command = [sys.executable, __file__, "--child", size]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, cwd=ROOT)
            runs.append(json.loads(done.stdout))
        columns = [spread([run["seconds"][rule] for run in runs], 1) for rule in runs[0]["seconds"]]
        together = spread([sum(run["seconds"].values()) - run["seconds"]["statistics"] for run in runs], 1)
        memory = spread([run["mib"] for run in runs], 0)
        print(f"| {size} | {' | '.join(columns)} | {together} | {memory} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=list(PRESETS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    extraction(arguments.rounds)
    study(arguments.rounds)


if __name__ == "__main__":
    main()
