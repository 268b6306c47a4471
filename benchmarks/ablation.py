"""Ablation of every head, with shared prefixes, against 56 whole forwards.

    python benchmarks/ablation.py                                # about three minutes on two cores

ways         shared      picollm: the layers before a head's own run once, the loss without storing the logits
             whole       a forward of the whole model for each head with a hook that replaces its output, and
                         F.cross_entropy of all its logits: what people write
             whole-loss  the same with picollm's loss

The same model, windows and float32, interleaved; the largest difference between their losses. Tokens per second count
each head's pass over each token. Median, smallest and largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from picollm.data.tokenizer import VOCAB_SIZE
from picollm.mechanisms.intervention import baseline, each_head, mean_outputs
from picollm.model.transformer import ModelConfig, Transformer

ROOT = Path(__file__).parents[1]
SIZES = {"default": "config.yaml", "study": "presets/cpu-study.yaml", "original": "presets/wikitext-103.yaml"}
TOKENS = 512


def make(size: str) -> tuple[Transformer, Tensor]:
    config = yaml.safe_load((ROOT / SIZES[size]).read_text())
    shape = {key: value for key, value in config["model"].items() if key != "checkpoint"}
    context = config["tokens"]["context"]
    torch.manual_seed(1)
    model = Transformer(ModelConfig(vocab_size=VOCAB_SIZE, context=context, **shape)).eval()
    return model, torch.randint(0, VOCAB_SIZE, (max(1, TOKENS // context), context))


@torch.no_grad()
def whole(model: Transformer, ids: Tensor, means: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """[H, B, T - 1], a forward from the first layer for every head."""
    L, H, K = means.shape
    found = []
    for layer in range(L):
        for head in range(H):

            def replace(module, inputs, layer=layer, head=head):
                z = inputs[0].clone()
                z[..., head * K : (head + 1) * K] = means[layer, head]
                return (z,)

            hook = model.blocks[layer].attention.out.register_forward_pre_hook(replace)
            found.append(loss(ids))
            hook.remove()
    return torch.stack(found)


def ways(model: Transformer, ids: Tensor, means: Tensor) -> dict[str, Callable[[], Tensor]]:
    def plain(ids: Tensor) -> Tensor:
        logits = model(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)

    return {
        "shared": lambda: each_head(model, ids, "mean", means),
        "whole": lambda: whole(model, ids, means, plain),
        "whole-loss": lambda: whole(model, ids, means, partial(baseline, model)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["default", "study"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| size | way | seconds | tokens x heads a second | shared is ... times as fast | largest difference |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        model, ids = make(size)
        means = mean_outputs(model, [ids])
        found = ways(model, ids, means)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        results = {}
        for _ in range(arguments.rounds):
            for name, way in found.items():
                start = time.perf_counter()
                results[name] = way()
                seconds[name].append(time.perf_counter() - start)
        passes = means.shape[0] * means.shape[1] * ids[:, 1:].numel()
        for name, times in seconds.items():
            ratio = spread([b / a for a, b in zip(seconds["shared"], times, strict=True)], 2)
            worst = (results[name] - results["shared"]).abs().max().item()
            rate = f"{passes / statistics.median(times):,.0f}"
            print(f"| {size} | {name} | {spread(times, 2)} | {rate} | {ratio} | {worst:.1e} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


if __name__ == "__main__":
    main()
