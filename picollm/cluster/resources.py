"""Computes the resources of each rule from the config's sizes: threads, memory, time, disk, GPUs.

    resources: **needs("pretrain")

On one machine they have no effect, except for those that `--resources` limits. A cluster schedules jobs by them and
ends jobs that take more; the n-th attempt of a failed job gets n times its memory and time. Numbers are upper bounds:
twice what was measured or counted (docs/scaling.md), never below a minimum. A profile's `set-resources` overrides them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from picollm.console.estimate import SECONDS, VOCABULARY, work

Config = Mapping[str, Mapping[str, Any]]
MARGIN = 2
LEAST_MINUTES, LEAST_MB = 10, 1000
SLOWER = 4  # factor by which a core of a cluster's node, which others may use too, is slower than the cores of SECONDS
GPU_SPEEDUP = 20  # minimum for training, relative to the two cores of SECONDS
BYTES_PER_TOKEN = 4.4  # English in GPT-2's tokens: 4.3 in the sample, 4.6 in WikiText-103
# Bytes of the corpora that have no local file; the grammar's is a guess.
CORPUS_BYTES = {"enwiki-sample": 3.2e6, "wikitext-103": 540e6, "grammar": 20e6}
# Peak resident MB of a rule's processes in the smoke and the shipped configuration, independent of the size of the
# text: mostly the libraries.
BASE_MB = {
    "prepare_corpus": 600, "tokenize_pack": 900, "pretrain": 1000, "extract_attention": 700, "classify_heads": 900,
    "cluster_heads": 700, "score_mechanisms": 1000, "ablate_heads": 1200, "probe_heads": 900, "full_study": 1500,
    "state_findings": 400, "trt_compile": 2500, "trt_benchmark": 2000, "nsys_capture": 1500, "draw_figures": 700,
    "final_report": 500, "train_variant": 1000, "compare_seeds": 700, "sweep": 400,
}  # fmt: skip
# A rule that does a part of another rule's work requests the same resources.
SHARE_OF = {
    "tokenize_slice": "tokenize_pack", "extract_category": "extract_attention", "ablate_slice": "ablate_heads"
}  # fmt: skip
RUNS_THE_MODEL = (
    "pretrain", "extract_attention", "classify_heads", "score_mechanisms", "ablate_heads", "probe_heads", "full_study",
    "trt_compile", "trt_benchmark", "nsys_capture", "train_variant",
)  # fmt: skip
ONE_THREAD = ("extract_attention", "classify_heads", "score_mechanisms", "probe_heads")  # attention.extraction.THREADS
PER_CORPUS = ("prepare_corpus", "tokenize_pack")


@dataclass(frozen=True)
class Size:
    """The sizes that decide how much a rule needs."""

    corpus: float  # bytes of text
    parameters: float
    activations: float  # bytes for one process's part of a training step
    work: Mapping[str, float | None]  # relative to the shipped configuration

    @property
    def tokens(self) -> float:
        return self.corpus / BYTES_PER_TOKEN


def size_of(config: Config, corpus_files: Sequence[str] = ()) -> Size:
    """Computes the sizes from the config; the size of a local text is that of its files."""
    corpus, model, recipe = config["corpus"], config["model"], config["pretrain"]
    text = sum(map(os.path.getsize, corpus_files)) if corpus["source"] == "local" else CORPUS_BYTES[corpus["source"]]
    text *= corpus["fraction"]
    context, width = config["tokens"]["context"], model["d_model"]
    blocks = model["n_layers"] * width * (4 * width + 3 * model["d_ff"])
    head = recipe["head_common"] + recipe["head_sampled"] if recipe["head_sampled"] else VOCABULARY
    rows = ceil(recipe["batch_rows"] / recipe["processes"] / recipe["accumulate"])
    # Per token, a block keeps about 16 times its width and 4 times d_ff in float32, the head three times its logits.
    kept = model["n_layers"] * (16 * width + 4 * model["d_ff"]) * 4 + head * 12
    return Size(
        corpus=text,
        parameters=blocks + (1 if model["tied"] else 2) * width * VOCABULARY,
        activations=rows * context * kept,
        work=work(config, int(text / BYTES_PER_TOKEN / context)),
    )


def threads_of(rule: str, config: Config) -> int:
    """Returns the CPUs of a rule on a cluster: each training process has `compute.threads`."""
    rule = SHARE_OF.get(rule, rule)
    if rule in ONE_THREAD:
        return 1
    own = config["compute"]["threads"]
    return own * config["pretrain"]["processes"] if rule == "pretrain" else own


def memory_mb(rule: str, config: Config, size: Size) -> int:
    """Returns the memory of a rule. A streaming rule holds a few row groups and a shard, for any size of the text."""
    needed = BASE_MB[rule] * 1e6
    if rule in PER_CORPUS:
        needed += threads_of(rule, config) * 300e6
    elif rule == "pretrain":  # weights, gradients, two optimizer states, the best weights, and copies of these
        needed = config["pretrain"]["processes"] * (needed + 24 * size.parameters + size.activations)
    elif rule in RUNS_THE_MODEL:
        needed += 12 * size.parameters + size.activations
    return max(LEAST_MB, ceil(MARGIN * needed / 1e6))


def minutes(rule: str, config: Config, size: Size) -> int:
    """Scales the seconds that the shipped configuration took (picollm.console.estimate) to this configuration."""
    likewise = "pretrain" if rule == "train_variant" else rule
    fixed, plain, products = SECONDS.get(likewise, (0, 600, 0))
    if rule in PER_CORPUS:
        plain *= size.corpus / CORPUS_BYTES["enwiki-sample"]
    seconds = fixed + SLOWER * (plain + products * (size.work.get(likewise) or 1.0))
    if likewise == "pretrain" and config["compute"]["device"] == "cuda":
        seconds /= GPU_SPEEDUP
    return max(LEAST_MINUTES, ceil(MARGIN * seconds / 60))


def disk_mb(rule: str, size: Size) -> int:
    """Returns the disk space of a rule's output: text as parquet, two bytes per token, model and checkpoints."""
    written = {
        "prepare_corpus": size.corpus,
        "tokenize_pack": 2 * size.tokens,
        "pretrain": 4 * 20 * size.parameters,
    }.get(rule, 4 * size.parameters)
    return max(LEAST_MB, ceil(MARGIN * written / 1e6))


def more_each_time(amount: int) -> Callable:
    """Multiplies by the attempt: it is not always known what a failed job needed more of, so it gets more of both."""

    def attempted(wildcards: Any, attempt: int) -> int:
        return amount * attempt

    return attempted


def resources(rule: str, config: Config, size: Size) -> dict[str, Any]:
    """Returns Snakemake's `resources` of a rule; `runtime` is in minutes. Requests GPUs if compute.device is cuda."""
    rule, gpus = SHARE_OF.get(rule, rule), 0
    if config["compute"]["device"] == "cuda" and rule in RUNS_THE_MODEL:
        gpus = config["pretrain"]["processes"] if rule == "pretrain" else 1
    return {
        "mem_mb": more_each_time(memory_mb(rule, config, size)),
        "runtime": more_each_time(minutes(rule, config, size)),
        "disk_mb": disk_mb(rule, size),
        "gpu": gpus,
    }
