"""Articles: how text is split into them, which are held out, how folders are read, and messages for bad ones."""

import logging
import math
import zipfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import refusal

from picollm.data import corpora
from picollm.data.articles import GROUP_BYTES, SPLITS, Article, ArticleFile, split_articles, write_articles
from picollm.data.corpora import Corpus, enwiki_sample, held_out

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


def source(kind="local", path=None, hub="", fraction=1.0, held_out_articles=1):
    return Corpus(kind, None if path is None else str(path), hub, "main", fraction, held_out_articles)


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
def test_these_lines_are_not_titles(line):
    assert [article.title for article in cut(f"\n{line}\n\n text \n", "file")] == ["file"]


@pytest.mark.parametrize(("n", "count"), [(106, 5), (10, 1), (9, 4), (7, 3), (3, 1)])
def test_held_out_articles_are_spread_disjoint_and_complete(n, count):
    articles = numbered(n)
    parts = {split: list(held_out(lambda: iter(articles), split, count)) for split in SPLITS}
    assert len(parts["validation"]) == len(parts["test"]) == count
    assert sorted(sum(parts.values(), [])) == sorted(articles)
    assert all(part == [a for a in articles if a in part] for part in parts.values()), "in order"
    at = [i for i, article in enumerate(articles) if article not in parts["train"]]
    gaps = {b - a for a, b in zip(at, at[1:], strict=False)}
    assert gaps <= {n // (2 * count), math.ceil(n / (2 * count))}
    assert abs(at[0] - (n - 1 - at[-1])) <= 1, "as far from the first as from the last"
    assert [articles[i] in parts["validation"] for i in at] == [True, False] * count


@pytest.mark.parametrize("n", [0, 1, 6])
def test_holding_out_from_too_few_articles_is_refused(n):
    text = refusal(lambda: held_out(lambda: iter(numbered(n)), "train", 3))
    assert f"{n} article" in text and "corpus.held_out_articles = 3" in text


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 1 / 3, 0.5, 0.99, 1.0])
def test_fraction_keeps_the_first_articles_of_train_and_all_others(tmp_path, fraction):
    for split, n in (("train", 30), ("valid", 4), ("test", 3)):
        (tmp_path / f"wiki.{split}.raw").write_text("\n".join(a.text for a in numbered(n)), encoding="utf-8")
    kept = source(path=tmp_path, fraction=fraction)
    count = {0.01: 1, 0.1: 3, 0.2: 6, 1 / 3: 10, 0.5: 15, 0.99: 30, 1.0: 30}[fraction]
    assert [a.title for a in kept.articles("train")] == [f"T{i}" for i in range(count)]
    assert [len(list(kept.articles(split))) for split in ("validation", "test")] == [4, 3]


def write_hub_parquet(folder, split, text):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["" if not line.strip() else line + "\n" for line in text.splitlines()]
    pq.write_table(pa.table({"text": lines}), folder / f"{split}-00000-of-00001.parquet")


def texts():
    return {"train": TEXT, "validation": TEXT.replace("Alpha", "Omega"), "test": TEXT.replace("Alpha", "Psi")}


def fill(folder, form):
    for split, text in texts().items():
        if form == "parquet":
            write_hub_parquet(folder / "wikitext-103-raw-v1", split, text)
            write_hub_parquet(folder / "wikitext-2-raw-v1", split, "another text\n")
        elif form == "txt":
            (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        else:
            (folder / f"wiki.{corpora.WIKITEXT_NAMES[split]}.{form}").write_text(text, encoding="utf-8")


def zipped(folder: Path) -> Path:
    """Packs the folder into an archive, inside another folder and with the files that an operating system adds."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"wikitext/{file.relative_to(folder)}")
            archive.writestr(f"__MACOSX/{file.parent.name}/._{file.name}", b"\0\1\2")
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("form", ["tokens", "raw", "parquet", "txt"])
def test_a_folder_or_archive_of_each_form_is_read(tmp_path, form, archive):
    (folder := tmp_path / "corpus").mkdir()
    fill(folder, form)
    path = zipped(folder) if archive else folder
    found = {split: list(source(path=path).articles(split)) for split in SPLITS}
    assert found == {split: cut(text) for split, text in texts().items()}


@pytest.mark.parametrize("name", ["corpus.txt", "wiki.train.tokens", "corpus.parquet"])
def test_a_single_file_is_a_corpus_of_its_own(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        write_hub_parquet(tmp_path, "train", TEXT)
        (tmp_path / "train-00000-of-00001.parquet").rename(path)
    elif name == "corpus.txt":
        path.write_text(TEXT, encoding="utf-8")
    else:
        path.write_text(TEXT, encoding="utf-8")
        assert "no validation split: add wiki.valid.tokens" in refusal(lambda: source(path=path).articles("validation"))
        return
    found = {split: list(source(path=path).articles(split)) for split in SPLITS}
    assert [found[split][0].title for split in ("validation", "train", "test")] == TITLES


def test_parts_of_a_split_are_read_in_order(tmp_path):
    halves = TEXT.split(" = C = ")
    for i, text in enumerate((halves[0], " = C = " + halves[1])):
        write_hub_parquet(tmp_path, "train", text)
        (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / f"train-0000{i}-of-00002.parquet")
    assert list(source(path=tmp_path).articles("train")) == cut(TEXT)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    assert "1 of the 2 parquet files of train" in refusal(lambda: source(path=tmp_path).articles("train"))


def test_plain_text_files_are_articles_named_after_the_file_and_line_ends_do_not_matter(tmp_path):
    for name, text in (("b", b"One.\r\n\r\nTwo.\r\n"), ("a", b"\xef\xbb\xbfCaf\xc3\xa9\xc2\x85.\n"), ("c", b"Last")):
        (tmp_path / f"{name}.txt").write_bytes(text)
    folder = source(path=tmp_path)
    assert list(folder.articles("train")) == [Article("b", "One.\n\nTwo.\n")]
    assert list(folder.articles("validation")) == [Article("a", "Café\x85.\n")]
    assert list(folder.articles("test")) == [Article("c", "Last\n")]
    (remark,) = folder.remarks.lines()
    assert "no heading" in remark and "a.txt" in remark and "one article per file" in remark and "c.txt" in remark


def test_a_file_with_headings_causes_no_remark(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    folder = source(path=tmp_path)
    list(folder.articles("train"))
    assert caplog.text == "" and not list(folder.remarks.lines())


def broken(tmp_path, kind):
    if kind == "missing":
        return tmp_path / "nowhere"
    if kind == "one split":
        (tmp_path / "wiki.valid.tokens").write_text(TEXT, encoding="utf-8")
    elif kind == "two versions":
        for name in ("wiki.train.tokens", "wiki.train.raw"):
            (tmp_path / name).write_text(TEXT, encoding="utf-8")
    elif kind == "two folders":
        for name in ("a", "b"):
            write_hub_parquet(tmp_path / name, "train", TEXT)
    elif kind == "empty file":
        (tmp_path / "wiki.train.tokens").write_bytes(b"")
    elif kind == "latin-1":
        (tmp_path / "wiki.train.raw").write_bytes(b" = A = \n\n Text \n" + "Münze".encode("latin-1"))
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
        ("missing", ["nowhere does not exist", "name another file or folder"]),
        ("empty folder", ["holds no file that can be read", "wiki.{train,valid,test}"]),
        ("one split", ["no train split", "wiki.train.tokens"]),
        ("two versions", ["several texts for train", "/wiki.train.raw, ", "/wiki.train.tokens)"]),
        ("two folders", ["several texts for train", "/a, ", "/b)"]),
        ("empty file", ["wiki.train.tokens is empty"]),
        ("latin-1", ["wiki.train.raw is not UTF-8 at byte 17"]),
        ("one article", ["1 article,", "corpus.held_out_articles = 1"]),
        ("cut parquet", ["train-00000-of-00001.parquet is damaged"]),
        ("overwritten parquet", ["train-00000-of-00001.parquet is damaged"]),
        ("other column", ["train-00000-of-00001.parquet", "text"]),
    ],
)
def test_a_bad_local_folder_gives_a_one_line_error(tmp_path, kind, words):
    folder = broken(tmp_path, kind)
    text = refusal(lambda: list(source(path=folder).articles("train")))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", ["corpus.zip is not a complete zip archive", "fetch it again"]),
        ("no zip", ["corpus.zip is not a complete zip archive"]),
        ("flipped", ["wiki.train.tokens can't be unpacked"]),
        ("traversal", ["names a file outside itself", "../evil.txt"]),
        ("absolute", ["names a file outside itself", "/etc/evil.txt"]),
        ("encrypted", ["wiki.train.tokens is encrypted"]),
        ("empty", ["holds no file that can be read"]),
    ],
)
def test_a_bad_archive_gives_a_one_line_error_and_nothing_is_unpacked(tmp_path, kind, words):
    path = tmp_path / "corpus.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind != "empty":
            archive.writestr("wiki.train.tokens", TEXT * 20)
        if kind == "traversal":
            archive.writestr("../evil.txt", "evil")
        if kind == "absolute":
            archive.writestr("/etc/evil.txt", "evil")
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[-30:]
    elif kind == "no zip":
        data = bytearray(b"text")
    elif kind == "flipped":
        data[60] ^= 0xFF
    elif kind == "encrypted":  # the flag, in the member's header and in the directory
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(signature) + at] |= 1
    path.write_bytes(data)
    text = refusal(lambda: list(source(path=path).articles("train")))
    assert all(word in text for word in words), text
    assert list(tmp_path.iterdir()) == [path] and not (tmp_path.parent / "evil.txt").exists()


DEVELOPMENT = Path(__file__).parents[2] / "shared/data/wikitext-103-v1/wiki.valid.tokens"


@pytest.mark.skipif(not DEVELOPMENT.exists(), reason="the real validation split is not on this machine")
def test_the_real_validation_split_has_60_articles():
    articles = list(corpora.text_articles(DEVELOPMENT.name, partial(open, DEVELOPMENT, "rb"), corpora.Remarks()))
    assert len(articles) == len({article.title for article in articles}) == 60
    assert articles[0].title == "Homarus gammarus"
    text = "".join(article.text for article in articles)
    assert text == DEVELOPMENT.read_text(encoding="utf-8").removeprefix(" \n")


@pytest.mark.parametrize(("n", "size"), [(1, 10), (600, 10), (5, GROUP_BYTES), (9, GROUP_BYTES // 2)])
def test_articles_come_back_from_parquet_and_equal_input_gives_equal_bytes(tmp_path, n, size):
    articles = [Article(f"T{i}", f" = T{i} = \n\n {'word ' * (size // 5)}\n") for i in range(n - 1)]
    articles.append(Article("Größe", " = Größe = \n\n 東京 is big . \n"))
    counts = write_articles(tmp_path / "a.parquet", iter(articles))
    write_articles(tmp_path / "b.parquet", articles)
    file = ArticleFile(tmp_path / "a.parquet")
    assert list(file) == articles
    assert [text for group in range(file.groups) for text in file.texts(group)] == [text for _, text in articles]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    for group in range(file.groups):
        assert len("".join(file.texts(group)[:-1]).encode()) < GROUP_BYTES, "all but the last fit"
    text = "".join(article.text for article in articles)
    assert counts == file.counts == {"articles": n, "words": len(text.split()), "bytes": len(text.encode())}


@pytest.mark.parametrize("articles", [[], [Article("blank", " \n\n")]])
def test_an_empty_corpus_is_refused_and_leaves_no_file(tmp_path, articles):
    assert "the split train has no words" in refusal(lambda: write_articles(tmp_path / "train.parquet", articles))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_parquet_file_of_ours_gives_a_one_line_error(tmp_path):
    path = tmp_path / "train.parquet"
    assert "is missing: run `snakemake --cores all -R prepare_corpus`" in refusal(lambda: ArticleFile(path))
    write_articles(path, numbered(20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "train.parquet is damaged" in refusal(lambda: ArticleFile(path))
    path.write_bytes(data[:4] + bytes(40) + data[44:])
    assert "train.parquet is damaged" in refusal(lambda: list(ArticleFile(path)))
    pq.write_table(pa.table({"title": ["a"], "text": ["b"]}), path)
    assert "train.parquet is damaged" in refusal(lambda: ArticleFile(path)), "not of our writing"


@pytest.mark.heavy
def test_the_embedded_sample_is_106_real_articles():
    articles = enwiki_sample()
    assert len(articles) == len({article.title for article in articles}) == 106
    assert "Anarchism" in {article.title for article in articles}
    for title, text in articles:
        assert text.startswith(f" = {title} = \n\n") and len(text.split()) > 30
        assert [article.title for article in cut(text)] == [title], "nothing inside looks like another title"
        assert "''" not in text
    assert sum(len(article.text.split()) for article in articles) > 400_000
    corpus = source("enwiki-sample", held_out_articles=5)
    assert [len(list(corpus.articles(split))) for split in SPLITS] == [96, 5, 5]
