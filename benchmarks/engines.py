"""Benchmarks the engines at the original's size (35.3 M parameters, 384 tokens) on a briefly trained checkpoint.

    pip install -c constraints.txt -e '.[int8]'
    python benchmarks/engines.py --folder /tmp/engines            # 15 minutes on two cores; the folder is reused
    python benchmarks/engines.py --folder /tmp/engines --backends eager-fp32,eager-bf16,openvino-bf16 --rounds 15

The accuracy gate is meaningless on untrained weights, whose logits are flat, so the model is first trained for some
minutes on the embedded sample with the study preset's recipe. The rest is `picollm optimize`: build, gate, interleaved
rounds. The protocol is in picollm/engine/timing.py, results are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tqdm import tqdm
from training import load

from picollm.config import check
from picollm.data.articles import SPLITS, write_articles
from picollm.data.corpora import Corpus
from picollm.data.loading import open_split
from picollm.data.packing import tokenize_pack
from picollm.engine.grid import BACKENDS
from picollm.engine.optimize import optimize
from picollm.engine.table import lines
from picollm.model.device import set_up
from picollm.model.training import Trainer
from picollm.model.weights import save_model
from picollm.presets import preset

RECIPE = "cpu-study"
KEPT = (
    "optimizer",
    "lr",
    "muon_lr",
    "weight_decay",
    "muon_weight_decay",
    "head_common",
    "head_sampled",
    "autocast",
    "compile",
)
BUILT_FOR_CPU = tuple(name for name in BACKENDS if name.startswith(("aoti", "onnxruntime", "openvino")))


def prepare(folder: Path, steps: int) -> None:
    """Creates folder/tokens and folder/model unless they exist."""
    if (folder / "model/config.json").exists():
        return
    study = preset(RECIPE)
    corpus = Corpus(**study["corpus"])
    sources = {split: folder / f"{split}.parquet" for split in SPLITS}
    for split, path in sources.items():
        write_articles(path, corpus.articles(split))
    shape, recipe, compute = load("original", length=steps, **{key: study["pretrain"][key] for key in KEPT})
    tokenize_pack(sources, folder / "tokens/manifest.json", context=shape.context, shard_rows=65536)
    trainer = Trainer(shape, recipe, open_split(folder / "tokens/manifest.json", "train"), set_up(**compute))
    trainer.model.train()
    for _ in tqdm(range(steps), desc="training", unit=" steps"):
        trainer.advance()
    trainer.read()
    print(
        f"trained {trainer.step} steps of {trainer.curve[0]['tokens']:,} tokens: loss {trainer.curve[-1]['loss']:.2f}"
    )
    save_model(trainer.model.eval(), folder / "model/model.safetensors", folder / "model/config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="training steps of 8 x 384 tokens")
    parser.add_argument("--backends", default=",".join(["eager-fp32", "eager-bf16", *BUILT_FOR_CPU]))
    parser.add_argument("--outputs", default="last,full")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="the grid of `make bench-full` at this size: 40 minutes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare(arguments.folder, arguments.steps)
    config = preset("default")
    batches = [int(size) for size in arguments.batches.split(",")]
    config["tokens"]["context"] = 384
    config["engine"] |= {
        "backends": arguments.backends.split(","), "outputs": arguments.outputs.split(","), "max_batch": max(batches)
    }  # fmt: skip
    config["benchmark"] |= {"batches": batches, "rounds": arguments.rounds, "gate_rows": 24}
    if arguments.full:
        config["engine"]["grid"] = "full"
    folder = arguments.folder
    report = optimize(folder / "model", folder / "tokens/manifest.json", folder / "optimized", check(config))
    print(*lines(report), "", sep="\n")
    for name, row in report["backends"].items():
        if row["artefact"]:
            print(
                f"{name:20} {row['artefact']['bytes'] / 1e6:8.1f} MB, built in {row['artefact']['build_seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
