"""Packed tokens: rows are the stream, nothing of the shards shows, and a damaged shard is never trained on."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from refusals import refusal

from picollm.data.corpora import Article, write_articles
from picollm.data.loading import batches, open_manifest, open_split
from picollm.data.packing import rows, tokenize_pack
from picollm.data.tokenizer import END_OF_TEXT, FINGERPRINT, SHA256, VOCAB_SIZE, encoding

CONTEXT = 16
ARTICLES = {
    "train": [
        Article(f"T{i}", f" = T{i} = \n\n Article {i} has {i * i} facts . Größe <|endoftext|> \n") for i in range(12)
    ],
    "validation": [Article("V", " = V = \n\n " + "A held out article . " * 9 + "\n")],
}


def stream(split):
    """The oracle: all ids of a split by hand."""
    ids = []
    for article in ARTICLES[split]:
        ids += [*encoding().encode(article.text, disallowed_special=()), END_OF_TEXT]
    return ids


def pack(folder, shard_rows=1000, context=CONTEXT, articles=None):
    sources = {}
    for split, found in (articles or ARTICLES).items():
        sources[split] = folder / f"{split}.parquet"
        write_articles(sources[split], found)
    return tokenize_pack(sources, folder / "tokens" / "manifest.json", context=context, shard_rows=shard_rows)


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
def test_rows_are_the_token_stream_and_shards_do_not_show(tmp_path, split, shard_rows):
    manifest = pack(tmp_path, shard_rows)
    ids, found = stream(split), open_split(tmp_path / "tokens" / "manifest.json", split)
    n_rows = (len(ids) - 1) // CONTEXT
    assert found.dtype == np.uint16
    assert found.tolist() == [ids[r * CONTEXT : r * CONTEXT + CONTEXT + 1] for r in range(n_rows)]
    counts = manifest["splits"][split]
    assert [shard["rows"] for shard in counts["shards"][:-1]] == [shard_rows] * ((n_rows - 1) // shard_rows)
    assert (counts["rows"], counts["tokens"]) == (n_rows, len(ids))
    assert counts["dropped_tokens"] == len(ids) - (n_rows * CONTEXT + 1) < CONTEXT
    text = "".join(article.text for article in ARTICLES[split])
    assert (counts["words"], counts["bytes"]) == (len(text.split()), len(text.encode()))
    assert counts["articles"] == len(ARTICLES[split])


def test_strides_overlap_by_one(packed):
    found = open_split(packed, "train")
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


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        pack(tmp_path / name, shard_rows=3)
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name / "tokens").iterdir()} for name in ("a", "b"))
    assert a == b and "manifest.json" in a and "train-00001.arrow" in a


def test_a_shard_is_readable_by_pyarrow_alone(packed):
    shard = packed.parent / "train-00001.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16(), CONTEXT + 1)
    assert table.schema.metadata[b"tokenizer"].decode() == FINGERPRINT
    assert table.schema.metadata[b"context"] == str(CONTEXT).encode()
    assert table.column("input_ids").to_pylist() == open_split(packed, "train")[3:6].tolist()


def test_an_earlier_runs_shards_are_removed(tmp_path, packed):
    assert (packed.parent / "train-00002.arrow").exists()
    manifest = pack(tmp_path, shard_rows=1000)
    named = {shard["file"] for split in manifest["splits"].values() for shard in split["shards"]}
    assert {path.name for path in packed.parent.iterdir()} == named | {"manifest.json"}
    assert named == {"train-00000.arrow", "validation-00000.arrow"}


def test_a_failed_run_leaves_no_manifest(tmp_path, packed):
    text = refusal(lambda: pack(tmp_path, articles=ARTICLES | {"validation": [Article("V", "Too short .")]}))
    assert "validation.parquet" in text and f"one row of {CONTEXT + 1}" in text and "tokens.context" in text
    assert not packed.exists()


@pytest.mark.parametrize("fault", ["bit", "truncated", "missing", "swapped"])
def test_a_shard_that_is_not_the_manifests_is_refused_by_name(packed, fault):
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
    assert (other if fault == "swapped" else shard).name in text and "run tokenize_pack again" in text
    assert ("missing" if fault == "missing" else "damaged") in text
    assert len(open_split(packed, "validation")) > 0, "the other split is whole"


@pytest.mark.parametrize("edit", [{"tokenizer_sha256": "0" * 64}, {"format": 2}])
def test_a_foreign_manifest_is_refused(packed, edit):
    packed.write_text(json.dumps(json.loads(packed.read_text()) | edit))
    assert f"{packed} is of another format or tokenizer" in refusal(lambda: open_manifest(packed))
    assert "run tokenize_pack again" in refusal(lambda: open_split(packed, "train"))


def test_a_missing_or_damaged_manifest_is_one_line(packed):
    packed.write_text(packed.read_text()[:-40])
    assert "is damaged" in refusal(lambda: open_manifest(packed))
    packed.unlink()
    assert "is missing" in refusal(lambda: open_manifest(packed))


def epochs(n_rows, batch_rows, seed, count):
    """The first `count` epochs as lists of row numbers, from rows that carry their own number."""
    numbered = np.arange(n_rows, dtype=np.uint16)[:, None].repeat(3, 1)
    steps = n_rows // batch_rows
    taken = list(itertools.islice(batches(numbered, batch_rows, seed), count * steps))
    assert all(batch.shape == (batch_rows, 3) and batch.dtype == np.int64 for batch in taken)
    flat = np.concatenate(taken)[:, 0].tolist()
    return [flat[e * steps * batch_rows : (e + 1) * steps * batch_rows] for e in range(count)]


@pytest.mark.parametrize(("n_rows", "batch_rows"), [(24, 4), (26, 4), (5, 5), (7, 1)])
def test_each_epoch_is_another_permutation(n_rows, batch_rows):
    found = epochs(n_rows, batch_rows, 1, 3)
    for epoch in found:
        assert len(set(epoch)) == len(epoch) == n_rows // batch_rows * batch_rows
    assert found[0] != found[1] != found[2]


def test_the_order_is_the_seeds(packed):
    assert epochs(24, 4, 1, 2) == epochs(24, 4, 1, 2)
    assert epochs(24, 4, 1, 2) != epochs(24, 4, 2, 2)
    assert epochs(24, 4, 1, 2)[1] != epochs(24, 4, 2, 1)[0], "epochs of one seed are not the next seed's"


def test_fewer_rows_than_a_batch_are_refused():
    text = refusal(lambda: next(batches(np.zeros((3, 5), np.uint16), 4, 1)))
    assert "3 rows" in text and "pretrain.batch_rows = 4" in text
