"""`picollm data`: it shows what the files contain, and names every contradiction."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from refusals import refusal
from test_packing import ARTICLES, CONTEXT, pack, stream

from picollm.data.inspection import inspect, verify
from picollm.data.packing import write_column
from picollm.data.tokenizer import encoding
from picollm.manifest import describe


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "data/corpus").mkdir(parents=True)
    pack(tmp_path / "data", shard_rows=3)
    for split in ARTICLES:
        (tmp_path / f"data/{split}.parquet").rename(tmp_path / f"data/corpus/{split}.parquet")
    return tmp_path / "data/tokens"


def test_a_manifest_its_folder_a_shard_document_ends_and_a_corpus_are_shown(tokens):
    about = inspect(tokens)
    assert about == inspect(tokens / "manifest.json")
    assert f"rows of {CONTEXT} + 1" in about and f"{len(stream('train')):,} tokens" in about
    shard = inspect(tokens / "train-00001.arrow")
    text = encoding().decode(stream("train")[3 * CONTEXT : 4 * CONTEXT + 1]).replace("\n", "⏎")
    assert "split train" in shard and "first_row 3" in shard and text[:90] in shard
    assert "the ends of 12 documents" in inspect(tokens / "train-doc-ends.arrow")
    corpus = inspect(tokens.parent / "corpus/train.parquet")
    assert "12 articles" in corpus and "T0:  = T0 = ⏎⏎ Article 0 has" in corpus


def test_what_cannot_be_shown_gives_a_one_line_error(tokens, tmp_path):
    assert "does not exist" in refusal(lambda: inspect(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    assert "can't be shown" in refusal(lambda: inspect(tmp_path / "notes.txt"))
    shard = tokens / "train-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:200])
    assert "is damaged" in refusal(lambda: inspect(shard))


def test_a_whole_artefact_has_no_problem(tokens):
    problems, told = verify(tokens / "manifest.json")
    assert problems == [] and f"{len(stream('train')):,} train" in told


FAULTS = ["damaged", "truncated", "swapped", "duplicated", "renamed", "foreign", "other corpus"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_file_is_named(tokens, fault):
    first, second = tokens / "train-00000.arrow", tokens / "train-00001.arrow"
    if fault == "damaged":
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 4
        first.write_bytes(data)
    elif fault == "truncated":
        first.write_bytes(first.read_bytes()[:-1])
    elif fault == "swapped":
        a, b = first.read_bytes(), second.read_bytes()
        first.write_bytes(b), second.write_bytes(a)
    elif fault == "duplicated":
        shutil.copy(first, second)
    elif fault == "renamed":
        first.rename(tokens / "train-00009.arrow")
    elif fault == "foreign":
        shutil.copy(first, tokens / "train-00009.arrow")
    else:
        shutil.copy(tokens.parent / "corpus/validation.parquet", tokens.parent / "corpus/train.parquet")
    problems, _ = verify(tokens / "manifest.json")
    named = {
        "swapped": [first.name, second.name], "duplicated": [second.name], "other corpus": ["train.parquet"],
        "renamed": ["train-00009.arrow", first.name], "foreign": ["train-00009.arrow"],
    }.get(fault, [first.name])  # fmt: skip
    assert len(problems) == len(named)
    assert all(name in problem for name, problem in zip(named, problems, strict=True)), problems


def rewrite(tokens, change, number=1):
    """Writes a shard with other content, and a manifest that matches it."""
    manifest = json.loads((tokens / "manifest.json").read_text())
    path = tokens / f"train-{number:05d}.arrow"
    values = pa.ipc.open_file(str(path)).get_batch(0).column(0).flatten().to_numpy().reshape(-1, CONTEXT + 1).copy()
    change(values)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.uint16()), CONTEXT + 1)
    entry = write_column(path, "input_ids", column, {"split": "train", "context": CONTEXT, "first_row": 3 * number})
    manifest["splits"]["train"]["shards"][number] = entry | {"rows": len(values)}
    (tokens / "manifest.json").write_text(json.dumps(manifest))


def put(row, column, token):
    def change(values):
        values[row, column] = token

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(1, 5, 50257), "not in the vocabulary"),
        (put(0, 0, 7), "does not begin with the last token"),
        (put(1, 5, 50256), "document ends are not at the rows"),
    ],
)
def test_rows_that_contradict_themselves_are_found_although_every_hash_is_right(tokens, change, words):
    rewrite(tokens, change)
    problems, _ = verify(tokens / "manifest.json")
    assert any(words in problem and problem.startswith("train: ") for problem in problems), problems


@pytest.mark.parametrize(("key", "words"), [("rows", "numbers of rows differ"), ("tokens", "do not add up")])
def test_counts_that_contradict_the_files_are_found(tokens, key, words):
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["splits"]["train"][key] += 1
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    assert any(words in problem for problem in verify(tokens / "manifest.json")[0])


def test_document_ends_that_are_not_one_for_each_article_are_found(tokens):
    manifest = json.loads((tokens / "manifest.json").read_text())
    path = tokens / "train-doc-ends.arrow"
    ends = pa.array(np.array([5, 9], np.uint64))
    manifest["splits"]["train"]["doc_ends"] = write_column(path, "doc_ends", ends, {"split": "train"})
    assert manifest["splits"]["train"]["doc_ends"] == {"rows": 2, **describe(path)}
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    assert any("not one document end for each article" in problem for problem in verify(tokens / "manifest.json")[0])


def test_a_whole_shard_is_not_called_damaged_by_verify(tokens):
    shard = tokens / "train-00000.arrow"
    text = refusal(lambda: verify(shard))
    assert "is not a manifest: give the folder" in text and "delete" not in text


def test_another_json_file_is_not_taken_for_a_manifest(tmp_path):
    (tmp_path / "heads.json").write_text('{"format": 3}')
    text = refusal(lambda: verify(tmp_path / "heads.json"))
    assert "is not a manifest of packed tokens" in text and "snakemake" not in text
