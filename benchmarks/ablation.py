"""Times ablation of every head with shared prefixes, compared with 56 full forward passes.

    python benchmarks/ablation.py                                # about four minutes on two cores

methods      shared      picollm: the layers before a head's own run once, the loss without storing the logits
             whole       a forward pass of the full model for each head with a hook that replaces its output, and
                         F.cross_entropy of all its logits: the usual implementation
             whole-kept  the same in a process that keeps freed memory, as picollm's do (picollm/model/device.py)
             whole-loss  whole-kept with picollm's loss
             loss alone  picollm's loss of the same number of tokens: the part that sharing layers can't save

All use the same model, windows and float32, interleaved, in two processes of which one works at a time. Reports the
largest difference between losses; tokens per second count each head's pass over each token. Median, minimum, maximum.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm.data.tokenizer import VOCAB_SIZE
from picollm.mechanisms.intervention import baseline, each_head, mean_outputs
from picollm.model.device import set_up
from picollm.model.loss import EVALUATION_TOKENS, token_losses
from picollm.model.transformer import ModelConfig, Transformer
from picollm.presets import preset

ROOT = Path(__file__).parents[1]
SIZES = {"default": "default", "study": "cpu-study", "original": "wikitext-103"}  # presets
TOKENS = 512


def make(size: str) -> tuple[Transformer, Tensor]:
    config = preset(SIZES[size])
    context = config["tokens"]["context"]
    torch.manual_seed(1)
    model = Transformer(ModelConfig.from_config(config, VOCAB_SIZE)).eval()
    return model, torch.randint(0, VOCAB_SIZE, (max(1, TOKENS // context), context))


@torch.no_grad()
def whole(model: Transformer, ids: Tensor, means: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Computes losses [H, B, T - 1] with a forward pass from the first layer for every head."""
    L, H, K = means.shape
    losses = []
    for layer in range(L):
        for head in range(H):

            def replace(module, inputs, layer=layer, head=head):
                z = inputs[0].clone()
                z[..., head * K : (head + 1) * K] = means[layer, head]
                return (z,)

            hook = model.blocks[layer].attention.out.register_forward_pre_hook(replace)
            losses.append(loss(ids))
            hook.remove()
    return torch.stack(losses)


def ways(model: Transformer, ids: Tensor, means: Tensor) -> dict[str, Callable[[], Tensor]]:
    def plain(ids: Tensor) -> Tensor:
        logits = model(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)

    hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
    heads, targets, weight = means.shape[0] * means.shape[1], ids[:, 1:].flatten(), model.head.weight[:VOCAB_SIZE]
    at_once = EVALUATION_TOKENS[ids.device.type]

    def loss_alone() -> Tensor:
        parts = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return torch.stack(
            [torch.cat([token_losses(x, weight, t) for x, t in parts]) for parts in [list(parts)] * heads]
        )

    whole_plain = partial(whole, model, ids, means, plain)
    return {
        "shared": lambda: each_head(model, ids, "mean", means),
        "whole": whole_plain,
        "whole-kept": whole_plain,
        "whole-loss": lambda: whole(model, ids, means, partial(baseline, model)),
        "loss alone": loss_alone,
    }


@torch.no_grad()
def serve(size: str, threads: int, keep: bool, line: Connection) -> None:
    """Process that runs a method on receiving its name, and answers with seconds and losses."""
    if keep:
        set_up("cpu", threads)
    torch.set_num_threads(threads)
    model, ids = make(size)
    means = mean_outputs(model, [ids])
    methods = ways(model, ids, means)
    while (name := line.recv()) is not None:
        start = time.perf_counter()
        losses = methods[name]()
        line.send((time.perf_counter() - start, losses.numpy()))


def measure(size: str, rounds: int, threads: int) -> None:
    context = multiprocessing.get_context("spawn")
    lines = {}
    for keep in (True, False):
        lines[keep], theirs = context.Pipe()
        context.Process(target=serve, args=(size, threads, keep, theirs), daemon=True).start()
    names = ("shared", "whole", "whole-kept", "whole-loss", "loss alone")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results = {}
    for number in range(rounds + 1):  # the first round is warm-up
        for name in names:
            line = lines[name != "whole"]
            line.send(name)
            took, results[name] = line.recv()
            if number:
                seconds[name].append(took)
    for line in lines.values():
        line.send(None)
    for name, times in seconds.items():
        ratio = spread([b / a for a, b in zip(seconds["shared"], times, strict=True)], 2)
        same = results[name].shape == results["shared"].shape
        worst = f"{abs(results[name] - results['shared']).max():.1e}" if same else ""
        rate = f"{results['shared'].size / statistics.median(times):,.0f}"
        print(f"| {size} | {name} | {spread(times, 2)} | {rate} | {ratio} | {worst} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["default", "study"])
    arguments = parser.parse_args()
    print("| size | method | seconds | tokens x heads per second | shared is ... times as fast | largest difference |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        measure(size, arguments.rounds, arguments.threads)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


if __name__ == "__main__":
    main()
