"""Packed tokens: rows equal the stream independent of the shards, and a damaged shard is never trained on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from refusals import refusal

from picollm.data.articles import GROUP_BYTES, Article, write_articles
from picollm.data.loading import open_column, open_manifest, open_split
from picollm.data.packing import rows, tokenize_pack, write_slice
from picollm.data.tokenizer import END_OF_TEXT, FINGERPRINT, SHA256, VOCAB_SIZE, encoding

CONTEXT = 16
ARTICLES = {
    "train": [
        Article(f"T{i}", f" = T{i} = \n\n Article {i} has {i * i} facts . Größe <|endoftext|> \n") for i in range(12)
    ],
    "validation": [Article("V", " = V = \n\n " + "A held out article . " * 9 + "\n")],
}


def stream(split):
    """Computes all ids of a split by hand, as the reference."""
    ids = []
    for article in ARTICLES[split]:
        ids += [*encoding().encode(article.text, disallowed_special=()), END_OF_TEXT]
    return ids


def pack(folder, shard_rows=1000, context=CONTEXT, articles=None, **how):
    sources = {}
    for split, found in (articles or ARTICLES).items():
        sources[split] = folder / f"{split}.parquet"
        write_articles(sources[split], found)
    manifest = folder / "tokens" / "manifest.json"
    return tokenize_pack(sources, manifest, context=context, shard_rows=shard_rows, **how)


@pytest.fixture
def packed(tmp_path):
    pack(tmp_path, shard_rows=3)
    return tmp_path / "tokens" / "manifest.json"


def test_the_tokenizer_is_gpt2s():
    assert encoding().n_vocab == VOCAB_SIZE == END_OF_TEXT + 1
    assert encoding().encode("Hello world") == [15496, 995]
    assert encoding().decode_single_token_bytes(END_OF_TEXT) == b"<|endoftext|>"
    text = "Größe, 東京 \u0085 = 5 = \n\n\t  naïve 🙂 don't <unk>"
    assert encoding().decode(encoding().encode(text)) == text
    assert {encoding().encode_single_token(bytes([byte])) for byte in range(256)} == set(range(256))


def test_the_vocabulary_is_the_one_tiktoken_demands(monkeypatch):
    from tiktoken_ext import openai_public

    def hashes(vocab_bpe_file, encoder_json_file, vocab_bpe_hash, encoder_json_hash):
        return {"vocab.bpe": vocab_bpe_hash, "encoder.json": encoder_json_hash}

    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", hashes)
    theirs = openai_public.gpt2()
    assert theirs["mergeable_ranks"] == SHA256
    assert theirs["special_tokens"] == {"<|endoftext|>": END_OF_TEXT} and theirs["pat_str"] == encoding()._pat_str


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("shard_rows", [1, 3, 1000])
def test_rows_are_the_token_stream_whatever_the_shards(tmp_path, split, shard_rows):
    manifest = pack(tmp_path, shard_rows)
    ids, found = stream(split), open_split(tmp_path / "tokens" / "manifest.json", split)
    n_rows = (len(ids) - 1) // CONTEXT
    assert np.asarray(found).dtype == np.uint16
    assert np.asarray(found).tolist() == [ids[r * CONTEXT : r * CONTEXT + CONTEXT + 1] for r in range(n_rows)]
    counts = manifest["splits"][split]
    assert [shard["rows"] for shard in counts["shards"][:-1]] == [shard_rows] * ((n_rows - 1) // shard_rows)
    assert (counts["rows"], counts["tokens"]) == (n_rows, len(ids))
    assert counts["dropped_tokens"] == len(ids) - (n_rows * CONTEXT + 1) < CONTEXT
    text = "".join(article.text for article in ARTICLES[split])
    assert (counts["words"], counts["bytes"]) == (len(text.split()), len(text.encode()))
    assert counts["articles"] == len(ARTICLES[split])


def test_strides_overlap_by_one(packed):
    found = np.asarray(open_split(packed, "train"))
    assert len(found) > 6
    assert (found[1:, 0] == found[:-1, -1]).all()


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 10, 12, 13, 25, 60, 61, 62])
@pytest.mark.parametrize("piece", [1, 3, 7, 100])
def test_how_the_stream_arrives_does_not_matter(length, piece):
    ids = np.arange(length, dtype=np.uint16)
    pieces = [ids[start : start + piece] for start in range(0, length, piece)]
    found = [row for block in rows(pieces, 4, 2) for row in block.tolist()]
    assert found == [list(range(start, start + 5)) for start in range(0, length - 4, 4)]
    sizes = [len(block) for block in rows(pieces, 4, 2)]
    assert all(size == 2 for size in sizes[:-1]) and all(size in (1, 2) for size in sizes[-1:])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_document_ends_are_where_articles_end(packed, split):
    ends, about = open_column(packed.parent / f"{split}-doc-ends.arrow")
    assert ends.dtype == np.uint64 and about["split"] == split
    assert ends.tolist() == [i + 1 for i, token in enumerate(stream(split)) if token == END_OF_TEXT]
    assert len(ends) == len(ARTICLES[split])


# Several row groups, some with many articles, and one article larger than a group.
MANY = [Article(f"T{i}", f" = T{i} = \n\n" + f" Sentence {i} , of Größe {i * i} . \n" * n)
        for i, n in enumerate([2000, 1, 30_000, 500, 500, 40_000, 3, 60_000, 9])]  # fmt: skip


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "tokens").iterdir()}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    pack(folder, shard_rows=4000, context=32, articles=ARTICLES | {"train": MANY})
    assert sum(len(article.text.encode()) for article in MANY) > 3 * GROUP_BYTES
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_does_not_affect_the_bytes(many, tmp_path, workers):
    pack(tmp_path, shard_rows=4000, context=32, articles=ARTICLES | {"train": MANY}, workers=workers)
    assert bytes_of(tmp_path) == bytes_of(many)


@pytest.mark.heavy
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_the_number_of_slices_does_not_affect_the_bytes(many, tmp_path, count):
    paths = [tmp_path / f"{i}.npy" for i in range(count)]
    for i in reversed(range(count)):
        write_slice(many / "train.parquet", paths[i], i, count)
    pack(tmp_path, shard_rows=4000, context=32, articles=ARTICLES | {"train": MANY}, slices=paths)
    assert bytes_of(tmp_path) == bytes_of(many)
    missing = refusal(lambda: pack(tmp_path, context=32, articles=ARTICLES | {"train": MANY[:-1]}, slices=paths))
    assert "the slices are of another corpus" in missing and not (tmp_path / "tokens/manifest.json").exists()


PACK = """
import sys
from pathlib import Path
from picollm.data.packing import tokenize_pack
folder = Path(sys.argv[1])
sources = {split: folder / f"{split}.parquet" for split in ("train", "validation")}
tokenize_pack(sources, Path("tokens/manifest.json"), context=32, shard_rows=4000, workers=2)
"""


def start(folder, sources, **environment):
    """Packs in a separate process, in a separate folder."""
    folder.mkdir(exist_ok=True)
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment
    return subprocess.Popen([sys.executable, "-c", PACK, str(sources)], cwd=folder, env=variables)


@pytest.mark.heavy
def test_place_locale_and_hash_seed_do_not_affect_the_bytes(many, tmp_path):
    done = start(tmp_path / "ein Ort ü", many, LC_ALL="C", PYTHONHASHSEED="7", PYTHONUTF8="0", TZ="Asia/Tokyo")
    assert done.wait(120) == 0
    assert bytes_of(tmp_path / "ein Ort ü") == bytes_of(many)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.heavy
def test_a_kill_half_way_leaves_no_manifest_and_the_next_run_gives_the_same_bytes(many, tmp_path):
    started = start(tmp_path / "run", many)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("tokens/train-*.arrow")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    assert len(children) >= 2
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "its workers end too"
        time.sleep(0.01)
    assert not (tmp_path / "run/tokens/manifest.json").exists()
    assert start(tmp_path / "run", many).wait(120) == 0
    assert bytes_of(tmp_path / "run") == bytes_of(many)


@pytest.mark.skipif(os.geteuid() != 0, reason="a tmpfs needs root")
def test_a_full_disk_is_an_error_and_leaves_no_manifest(many, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            tokenize_pack({"train": many / "train.parquet"}, disk / "tokens/manifest.json", context=32, shard_rows=4000)
        assert not list(disk.rglob("manifest.json")) and not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_shard_is_readable_with_pyarrow_only(packed):
    shard = packed.parent / "train-00001.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16(), CONTEXT + 1)
    assert table.schema.metadata[b"tokenizer"].decode() == FINGERPRINT
    assert table.schema.metadata[b"context"] == str(CONTEXT).encode()
    assert table.schema.metadata[b"first_row"] == b"3" and table.schema.metadata[b"split"] == b"train"
    assert table.column("input_ids").to_pylist() == open_split(packed, "train")[3:6].tolist()


def test_an_earlier_runs_shards_are_removed(tmp_path, packed):
    assert (packed.parent / "train-00002.arrow").exists()
    manifest = pack(tmp_path, shard_rows=1000)
    assert {path.name for path in packed.parent.iterdir()} == {
        "manifest.json", "train-00000.arrow", "validation-00000.arrow", "train-doc-ends.arrow",
        "validation-doc-ends.arrow",
    }  # fmt: skip
    assert [len(split["shards"]) for split in manifest["splits"].values()] == [1, 1]


def test_a_failed_run_leaves_no_manifest(tmp_path, packed):
    text = refusal(lambda: pack(tmp_path, articles=ARTICLES | {"validation": [Article("V", "Too short .")]}))
    assert "the validation split has" in text and f"one row of {CONTEXT + 1}" in text and "tokens.context" in text
    assert not packed.exists()


@pytest.mark.parametrize("fault", ["bit", "truncated", "missing", "swapped"])
def test_a_shard_that_does_not_match_the_manifest_is_refused_by_name(packed, fault):
    shard, other = packed.parent / "train-00001.arrow", packed.parent / "train-00000.arrow"
    data = bytearray(shard.read_bytes())
    if fault == "bit":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif fault == "truncated":
        shard.write_bytes(data[:-8])
    elif fault == "missing":
        shard.unlink()
    else:
        shard.write_bytes(other.read_bytes())
        other.write_bytes(data)
    text = refusal(lambda: open_split(packed, "train"))
    assert (
        other if fault == "swapped" else shard
    ).name in text and "run `snakemake --cores all -R tokenize_pack`" in text
    assert ("missing" if fault == "missing" else "damaged") in text
    assert len(open_split(packed, "validation")) > 0, "the other split is whole"


@pytest.mark.parametrize("edit", [{"tokenizer_sha256": "0" * 64}, {"format": 1}])
def test_a_foreign_manifest_is_refused(packed, edit):
    packed.write_text(json.dumps(json.loads(packed.read_text()) | edit))
    assert f"{packed} is of another format or tokenizer" in refusal(lambda: open_manifest(packed))
    assert "run `snakemake --cores all -R tokenize_pack`" in refusal(lambda: open_split(packed, "train"))


def test_a_missing_or_damaged_manifest_gives_a_one_line_error(packed):
    packed.write_text(packed.read_text()[:-40])
    assert "is not valid JSON" in refusal(lambda: open_manifest(packed))
    packed.unlink()
    assert "is missing" in refusal(lambda: open_manifest(packed))
