"""Articles: where they are cut, which are held out, how each kind of folder is read, and what a bad one says."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal

from picollm.data import corpora
from picollm.data.corpora import Article, Source, enwiki_sample, held_out, read_articles, split_articles, write_articles

# WikiText's form, with lines like headings at a paragraph's start, inside it and at its end, and one as the last line.
TEXT = """ = Alpha = 

 The first paragraph of alpha . 
 = 5 = 
 and the rest of the same paragraph . 

 = = History = = 

 It was long ago . 

 = = = Details = = = 

 Nobody remembers . 

 = Beta ( letter ) = 

 Beta has two lines . 
 This is the second , x = 3 = y . 

 = C = 

 = 6 = 
 Short . 
 = 7 = 

 The last paragraph . 
 = 8 = 
"""  # noqa: W291
TITLES = ["Alpha", "Beta ( letter )", "C"]


def cut(text, title=""):
    return list(split_articles(text.splitlines(), title))


def source(kind="local", path=None, hub="", fraction=1.0, validation_articles=1):
    return Source(kind, None if path is None else str(path), hub, "main", fraction, validation_articles)


def numbered(n):
    return [Article(f"T{i}", f" = T{i} = \n\n Text {i} . \n") for i in range(n)]


def test_articles_are_cut_at_level_1_headings_only():
    assert [article.title for article in cut(TEXT)] == TITLES
    assert " = 5 = \n and the rest" in cut(TEXT)[0].text
    assert " = 6 = \n Short . \n = 7 = \n\n The" in cut(TEXT)[2].text


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        " preface \n\n" + TEXT,
        " No heading at all . \n",
        TEXT.replace(" = C = ", "= C ="),
        TEXT + "\n = Last = \n",
    ],
)
def test_the_articles_together_are_the_input(text):
    assert "".join(article.text for article in cut(text, "preface")) == text


def test_text_before_the_first_heading_is_an_article_of_the_given_title_and_blank_lines_are_none():
    assert [article.title for article in cut(" preface \n\n" + TEXT, "file")] == ["file", *TITLES]
    assert [article.title for article in cut("\n \n" + TEXT, "file")] == TITLES
    assert cut("\n \n\n", "file") == []


@pytest.mark.parametrize(
    "line", [" = = Section = = ", " = = = Part = = = ", " = = ", " =  = ", " = a = b = ", "a = b = "]
)
def test_lines_that_are_no_titles(line):
    assert [article.title for article in cut(f"\n{line}\n\n text \n", "file")] == ["file"]


@pytest.mark.parametrize(("n", "count"), [(106, 10), (10, 1), (10, 9), (7, 3), (2, 1)])
def test_held_out_articles_are_spread_disjoint_and_complete(n, count):
    articles = numbered(n)
    train, validation = (list(held_out(articles, split, count)) for split in ("train", "validation"))
    assert len(validation) == count and not set(train) & set(validation)
    assert sorted(train + validation) == sorted(articles)
    assert [a for a in articles if a in set(train)] == train, "in order"
    at = [articles.index(article) for article in validation]
    gaps = {b - a for a, b in zip(at, at[1:], strict=False)}
    assert gaps <= {n // count, math.ceil(n / count)}
    assert abs(at[0] - (n - 1 - at[-1])) <= 1, "as far from the first as from the last"


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_articles_to_hold_some_out(n):
    text = refusal(lambda: held_out(numbered(n), "train", 3))
    assert f"{n} articles" in text and "corpus.validation_articles = 3" in text


@pytest.mark.parametrize("fraction", [0.01, 0.2, 1 / 3, 0.5, 0.99, 1.0])
def test_fraction_keeps_the_first_articles_of_train_and_all_of_validation(tmp_path, fraction):
    for split, n in (("train", 7), ("valid", 4)):
        (tmp_path / f"wiki.{split}.raw").write_text("\n".join(a.text for a in numbered(n)), encoding="utf-8")
    kept = source(path=tmp_path, fraction=fraction)
    assert [a.title for a in kept.articles("train")] == [f"T{i}" for i in range(math.ceil(fraction * 7))]
    assert len(list(kept.articles("validation"))) == 4


def write_hub_parquet(folder, split, text):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["" if not line.strip() else line + "\n" for line in text.splitlines()]
    pq.write_table(pa.table({"text": lines}), folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("form", ["tokens", "raw", "parquet", "txt"])
def test_a_local_folder_in_each_form(tmp_path, form):
    texts = {"train": TEXT, "validation": TEXT.replace("Alpha", "Omega")}
    for split, text in texts.items():
        if form == "parquet":
            write_hub_parquet(tmp_path / "wikitext-103-raw-v1", split, text)
        elif form == "txt":
            (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
        else:
            (tmp_path / f"wiki.{corpora.SPLITS[split]}.{form}").write_text(text, encoding="utf-8")
    found = {split: list(source(path=tmp_path).articles(split)) for split in texts}
    if form == "txt":  # one corpus of all files; the middle one of six is held out
        assert found["validation"] == cut(texts["validation"])[:1]
        assert found["train"] == cut(texts["train"]) + cut(texts["validation"])[1:]
    else:
        assert found == {split: cut(text) for split, text in texts.items()}


def test_plain_text_files_are_articles_named_after_the_file_and_line_ends_do_not_matter(tmp_path):
    for name, text in (("b", b"One.\r\n\r\nTwo.\r\n"), ("a", b"Caf\xc3\xa9\xc2\x85.\n"), ("c", b"Last")):
        (tmp_path / f"{name}.txt").write_bytes(text)
    folder = source(path=tmp_path)
    assert list(folder.articles("validation")) == [Article("b", "One.\n\nTwo.\n")]
    assert list(folder.articles("train")) == [Article("a", "Café\x85.\n"), Article("c", "Last\n")]


def broken(tmp_path, kind):
    if kind == "missing":
        return tmp_path / "nowhere"
    if kind == "one split":
        (tmp_path / "wiki.valid.tokens").write_text(TEXT, encoding="utf-8")
    elif kind == "empty file":
        (tmp_path / "wiki.train.tokens").write_bytes(b"")
    elif kind == "latin-1":
        (tmp_path / "wiki.train.raw").write_bytes(TEXT.encode() + "Münze".encode("latin-1"))
    elif kind == "one article":
        (tmp_path / "a.txt").write_text("Only one.", encoding="utf-8")
    elif kind == "other column":
        pq.write_table(pa.table({"body": ["a"]}), tmp_path / "train-00000-of-00001.parquet")
    elif kind != "empty folder":
        write_hub_parquet(tmp_path, "train", TEXT * 50)
        path = tmp_path / "train-00000-of-00001.parquet"
        data = bytearray(path.read_bytes())
        if kind == "cut parquet":
            del data[-20:]
        else:
            data[4:60] = bytes(56)
        path.write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["nowhere: no such folder", "wiki.train.tokens"]),
        ("empty folder", ["nothing for the split train", "wiki.train.tokens"]),
        ("one split", ["nothing for the split train"]),
        ("empty file", ["wiki.train.tokens is empty"]),
        ("latin-1", ["wiki.train.raw is not UTF-8"]),
        ("one article", ["1 articles", "corpus.validation_articles = 1"]),
        ("cut parquet", ["train-00000-of-00001.parquet is damaged"]),
        ("overwritten parquet", ["train-00000-of-00001.parquet is damaged"]),
        ("other column", ["train-00000-of-00001.parquet", "text"]),
    ],
)
def test_a_bad_local_folder_is_one_line(tmp_path, kind, words):
    folder = broken(tmp_path, kind)
    text = refusal(lambda: list(source(path=folder).articles("train")))
    assert all(word in text for word in words)


HUB_CARD = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files:
  - split: train
    path: wikitext-103-raw-v1/train-*
  - split: validation
    path: wikitext-103-raw-v1/validation-*
---
"""


@pytest.mark.slow  # needs the extra `hub`, which `make test-slow` installs
def test_the_hub_reader_on_a_local_copy_of_the_repository(tmp_path):
    (tmp_path / "README.md").write_text(HUB_CARD, encoding="utf-8")
    texts = {"train": TEXT, "validation": TEXT.replace("Alpha", "Omega")}
    for split, text in texts.items():
        write_hub_parquet(tmp_path / "wikitext-103-raw-v1", split, text)
    hub = source("wikitext-103", hub=str(tmp_path))
    for split, text in texts.items():
        assert list(hub.articles(split)) == cut(text)
    (tmp_path / "wikitext-103-raw-v1" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    assert "corpus.source: local" in refusal(lambda: list(hub.articles("train")))


@pytest.mark.slow  # needs the extra `hub`, which `make test-slow` installs
def test_a_hub_folder_of_another_layout_is_one_line(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    text = refusal(lambda: list(source("wikitext-103", hub=str(tmp_path)).articles("train")))
    assert text.startswith(f"{tmp_path} can't be read")


@pytest.mark.parametrize("n", [1, 255, 256, 600])
def test_articles_come_back_from_parquet_and_equal_input_gives_equal_bytes(tmp_path, n):
    articles = [*numbered(n - 1), Article("Größe", " = Größe = \n\n 東京 is big . \n")]
    counts = write_articles(tmp_path / "a.parquet", iter(articles))
    write_articles(tmp_path / "b.parquet", articles)
    assert list(read_articles(tmp_path / "a.parquet")) == articles
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    groups = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= corpora.ROW_GROUP
    text = "".join(article.text for article in articles)
    assert counts == {"articles": n, "words": len(text.split()), "bytes": len(text.encode())}


@pytest.mark.parametrize("articles", [[], [Article("blank", " \n\n")]])
def test_an_empty_corpus_is_refused_and_leaves_no_file(tmp_path, articles):
    assert "no text for train" in refusal(lambda: write_articles(tmp_path / "train.parquet", articles))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_parquet_file_of_ours_is_one_line(tmp_path):
    path = tmp_path / "train.parquet"
    assert "is missing: run the rule prepare_corpus" in refusal(lambda: list(read_articles(path)))
    write_articles(path, numbered(20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "train.parquet is damaged" in refusal(lambda: list(read_articles(path)))


def test_the_embedded_sample_is_106_real_articles():
    articles = enwiki_sample()
    assert len(articles) == len({article.title for article in articles}) == 106
    assert "Anarchism" in {article.title for article in articles}
    for title, text in articles:
        assert text.startswith(f" = {title} = \n\n") and len(text.split()) > 30
        assert [article.title for article in cut(text)] == [title], "nothing inside looks like another title"
        assert "''" not in text
    assert sum(len(article.text.split()) for article in articles) > 400_000
    split = {name: list(source("enwiki-sample", validation_articles=10).articles(name)) for name in corpora.SPLITS}
    assert len(split["validation"]) == 10 and len(split["train"]) == 96
