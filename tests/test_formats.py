"""Text in all common forms: read as intended, or refused with file and row."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal

from picollm.data.articles import SPLITS, Article, write_articles
from picollm.data.corpora import Corpus
from picollm.data.packing import tokenize_pack
from picollm.errors import PicollmError
from picollm.inputs import corpus_files

TEXTS = ["One mill .", "Two\nlines .", "Three .", "Four .", "Five ."]
WORDS = ["one", "two", "three", "four", "five"]


def local(path, held_out_articles=1):
    return Corpus("local", str(path), "", "main", 1.0, held_out_articles)


def everything(path):
    """Returns the articles of a corpus without splits, in order."""
    corpus = local(path, held_out_articles=0)
    return list(corpus.articles("train")), list(corpus.remarks.lines())


def write(path, form, texts, titles=None, **columns):
    rows = [{"text": text} | ({"title": titles[i]} if titles else {}) for i, text in enumerate(texts)]
    rows = [row | {name: i for name in columns} for i, row in enumerate(rows)]
    if form.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        data = path.read_bytes()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form.endswith(".gz"):
        data = gzip.compress(data)
    if form.endswith(".zst"):
        with pa.output_stream(path, compression="zstd") as file:
            file.write(data)
        return
    path.write_bytes(data)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "ndjson", "parquet.gz", "jsonl.gz", "jsonl.zst", "parquet.zst"])
def test_one_document_a_row(tmp_path, form):
    write(tmp_path / f"stories.{form}", form, [*TEXTS, " \n"], label=0)
    found, said = everything(tmp_path)
    assert found == [Article(f"stories {i}", f"{text}\n") for i, text in enumerate(TEXTS, 1)] and not said
    write(tmp_path / f"stories.{form}", form, TEXTS, titles=WORDS)
    assert [article.title for article in everything(tmp_path / f"stories.{form}")[0]] == WORDS


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_text_may_be_compressed_and_damage_gives_a_one_line_error(tmp_path, suffix):
    text = b" = A = \n\n One . \n\n = B = \n\n Two . \n\n" * 200
    path = tmp_path / f"a.txt.{suffix}"
    if suffix == "gz":
        path.write_bytes(gzip.compress(text))
    else:
        with pa.output_stream(path, compression="zstd") as file:
            file.write(text)
    assert [article.title for article in everything(tmp_path)[0]] == ["A", "B"] * 200
    path.write_bytes(path.read_bytes()[:-9])
    assert f"a.txt.{suffix} can't be unpacked" in refusal(everything, tmp_path)
    path.write_bytes(b"no archive" * 10)
    assert f"a.txt.{suffix} can't be unpacked" in refusal(everything, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": null}', "row 2: `text` is null"),
        ('{"text": 7}', "row 2: `text` is int, not text"),
        ('{"body": "x"}', 'line 2 has no "text"'),
        ('["x"]', 'line 2 has no "text"'),
        ('{"text": "x"', "line 2 is not JSON"),
    ],
)
def test_a_bad_row_of_json_lines_is_named(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
    text = refusal(everything, tmp_path)
    assert "a.jsonl" in text and words in text


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["good", None], "row 2: `text` is null"),
        ([1, 2], "the column `text` holds int64, not text"),
        ([b"x", b"y"], "the column `text` holds binary, not text"),
    ],
)
def test_a_bad_column_of_parquet_is_named(tmp_path, column, words):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    text = refusal(everything, tmp_path)
    assert "a.parquet" in text and words in text


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("Train.TXT", "val.txt", "test.txt"),
        ("train.jsonl", "dev.jsonl", "test.jsonl"),
        ("train.txt.gz", "validation.txt.gz", "test.txt.gz"),
        ("train/a.txt", "validation/a.txt", "test/a.txt"),
    ],
)
def test_names_of_splits_are_splits(tmp_path, names):
    for split, name in zip(SPLITS, names, strict=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = f" = {split} = \n\n Text of {split} . \n"
        if "jsonl" in name:
            path.write_text(json.dumps({"text": text, "title": split}) + "\n")
        else:
            path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    (tmp_path / "notes.txt").write_text("not of any split")
    corpus = local(tmp_path)
    assert {split: [article.title for article in corpus.articles(split)] for split in SPLITS} == {
        split: [split] for split in SPLITS
    }
    assert any("left out" in line and "notes.txt" in line for line in corpus.remarks.lines())
    (tmp_path / names[2]).unlink()
    assert "no test split" in refusal(local(tmp_path).articles, "test")


def test_one_list_of_files_for_reading_and_for_the_tools(tmp_path):
    """Upper case, folders and links to folders are read, once each; files left by git and operating systems are not."""
    folder, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for place in (folder / ".git/objects", folder / "deep", elsewhere):
        place.mkdir(parents=True)
    for path in (folder / "a.txt", folder / "B.TXT", folder / "deep/c.txt", elsewhere / "d.txt"):
        path.write_text(f" = {path.stem} = \n\n Text . \n")
    for path in (folder / ".DS_Store", folder / ".git/objects/00", folder / "deep/._c.txt", folder / "README.md"):
        path.write_text("no text")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "deep/round").symlink_to(folder)
    found, said = everything(folder)
    assert sorted(article.title for article in found) == ["B", "a", "c", "d"]
    (line,) = said
    assert line.startswith("left out") and "README.md" in line and ".git" not in line
    listed = corpus_files({"source": "local", "path": str(folder), "hub": ""})
    assert [os.path.relpath(path, folder) for path in listed] == [
        "B.TXT", "README.md", "a.txt", "deep/c.txt", "linked/d.txt",
    ]  # fmt: skip


def test_thirty_files_without_a_heading_give_a_one_line_error(tmp_path, caplog):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"Story {i} .")
    corpus = local(tmp_path)
    for split in SPLITS:
        list(corpus.articles(split))
    (line,) = corpus.remarks.lines()
    assert "one article per file: " in line and "00.txt" in line and line.endswith("and 27 more") and not caplog.text


def test_a_marker_between_stories_separates_them(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One .\n<|endoftext|>\nTwo .\nof two .\n<|endoftext|>Three .<|endoftext|>\n")
    found, said = everything(path)
    assert [article.text for article in found] == ["One .\n", "Two .\nof two .\n", "Three .\n"]
    assert len(said) == 1 and "taken as the end of an article" in said[0]


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.txt", "a.parquet", "a.jsonl"):
        (tmp_path / name).write_text(pointer)
        assert "run `git lfs pull`" in refusal(everything, tmp_path / name)


def test_white_space_that_can_not_be_tokenized_is_named(tmp_path):
    write_articles(tmp_path / "train.parquet", [Article("Fine", "x\n"), Article("Wide", "x" + " " * 1_200_000 + "y\n")])
    with pytest.raises(PicollmError, match="article 'Wide' of .*train.parquet: a run of 1,200,000 white-space"):
        tokenize_pack({"train": tmp_path / "train.parquet"}, tmp_path / "tokens/manifest.json", context=8, shard_rows=8)
