"""Four sources of text, one form: articles in three splits.

enwiki-sample   106 full English Wikipedia articles (CC BY-SA) that the package gensim carries; no network
wikitext-103    the hub's `Salesforce/wikitext`, or a local copy of that repository
local           a folder, a zip archive or a file, in each form of picollm.data.formats
grammar         text of a known structure that a grammar writes (picollm.data.grammar)

Splits that a corpus has are used as they are: WikiText's, the hub's, files or folders called train, validation (also
valid, val, dev) and test. Of others, whole articles are held out.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from picollm.data.archives import find_files
from picollm.data.articles import SCHEMA, SPLITS, Article, ArticleFile
from picollm.data.formats import (
    FORMS,
    Files,
    Remarks,
    kind_of,
    parquet_articles,
    plain_name,
    read_articles,
    text_articles,
)
from picollm.data.grammar import load_grammar
from picollm.errors import PicollmError, one_line

log = logging.getLogger(__name__)

WIKITEXT_NAMES = {"train": "train", "validation": "valid", "test": "test"}
HUB_CONFIG = "wikitext-103-raw-v1"
# Of a file, or of the folder it is in, below corpus.path.
SPLIT_NAMES = {"train": "train", "training": "train", "valid": "validation", "validation": "validation",
               "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """The `corpus` section of the config."""

    source: str
    path: str | None
    hub: str
    revision: str
    fraction: float
    held_out_articles: int
    remarks: Remarks = field(default_factory=Remarks, init=False, compare=False)  # of the files read so far

    def articles(self, split: str) -> Iterator[Article]:
        """The articles of a split, in order. `fraction` keeps the first ceil(fraction x n) of the n of train.

        Raises PicollmError where the source can't be had or read.
        """
        articles = self.whole(split)
        if split == "train" and self.fraction < 1:
            total = sum(1 for _ in self.whole(split))
            kept = math.ceil(self.fraction * total - 1e-9)  # 0.1 x 30 is 3.0000000000000004
            log.info("corpus.fraction = %s takes the first %d of the %d training articles", self.fraction, kept, total)
            articles = islice(articles, kept)
        return articles

    def whole(self, split: str) -> Iterator[Article]:
        if self.source == "enwiki-sample":
            return held_out(lambda: iter(enwiki_sample()), split, self.held_out_articles)
        if self.source == "grammar":
            grammar = load_grammar(Path(self.path or ""))
            return held_out(grammar.articles, split, self.held_out_articles)
        if self.source == "wikitext-103":
            from picollm.data.hub import fetch  # needs a package that other sources don't

            folder = fetch(self.hub, self.revision, HUB_CONFIG)
            parts = parquet_parts(find_files(folder), split, self.hub)
            if not parts:
                raise PicollmError(f"corpus.hub = {self.hub} has no {split} split in {HUB_CONFIG}: fetch it again")
            return parquet_articles(parts)
        return self.local(find_files(Path(self.path or "")), split)

    def local(self, found: Files, split: str) -> Iterator[Article]:
        if any(wikitext_file(found, name, self.path) for name in SPLITS):
            name = wikitext_file(found, split, self.path)
            if name is None:
                raise self.no_split(split, f"wiki.{WIKITEXT_NAMES[split]}.tokens (or .raw)")
            return text_articles(name, found[name], self.remarks)
        if any(parquet_parts(found, name, self.path) for name in SPLITS):
            parts = parquet_parts(found, split, self.path)
            if not parts:
                raise self.no_split(split, f"{split}-00000-of-00001.parquet")
            return parquet_articles(parts)
        names = sorted(found) if len(found) == 1 else sorted(name for name in found if kind_of(name))
        if not names:
            raise PicollmError(f"corpus.path = {self.path} holds none of what is read: {FORMS}")
        splits = {name: split_of(PurePosixPath(name).relative_to(PurePosixPath(self.path or ""))) for name in names}
        if len(set(splits.values()) - {None}) > 1:
            names = [name for name in names if splits[name] == split]
            if not names:
                raise self.no_split(split, f"{split}.txt, or a folder {split},")
            self.remarks.left_out.update(name for name in found if not splits.get(name))
            return self.of_files(found, names)
        self.remarks.left_out.update(found.keys() - set(names))
        return held_out(lambda: self.of_files(found, names), split, self.held_out_articles)

    def of_files(self, found: Files, names: list[str]) -> Iterator[Article]:
        for name in names:
            yield from read_articles(name, found[name], self.remarks)

    def no_split(self, split: str, file: str) -> PicollmError:
        return PicollmError(f"corpus.path = {self.path} has no {split} split: {file} is missing")


def articles_in(path: Path, split: str) -> Iterator[Article]:
    """The articles of any local text, or of the split where it has splits; also of a file in data/corpus/."""
    try:
        ours = path.suffix == ".parquet" and path.is_file() and pq.ParquetFile(path).schema_arrow.equals(SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise PicollmError(f"{path} is damaged ({one_line(error)}): fetch or make it again") from None
    if ours:
        return iter(ArticleFile(path))
    return Corpus("local", str(path), hub="", revision="", fraction=1.0, held_out_articles=0).whole(split)


def held_out(articles: Callable[[], Iterator[Article]], split: str, count: int) -> Iterator[Article]:
    """Validation and test: `count` articles each, spread evenly over the corpus; train: the others.

    `articles` starts an iteration; there are two, so that none has to be kept. Raises PicollmError where too few are
    there. With a count of 0 every split is the whole.
    """
    if not count:
        return articles()
    total = sum(1 for _ in articles())
    if total <= 2 * count:
        raise PicollmError(
            f"the corpus has {total} article{'s' * (total != 1)}, of which corpus.held_out_articles = {count} are "
            "taken for validation and as many for test: lower it, or add text (an article starts at a heading "
            "' = Title = ' between blank lines, or with a file)"
        )
    taken = [(2 * i + 1) * total // (4 * count) for i in range(2 * count)]
    chosen = {"validation": set(taken[::2]), "test": set(taken[1::2]), "train": set(range(total)) - set(taken)}[split]
    return (article for i, article in enumerate(articles()) if i in chosen)


@cache
def enwiki_sample() -> list[Article]:
    """The embedded sample, from MediaWiki mark-up to WikiText's style. About 4 s."""
    from gensim.scripts.segment_wiki import segment_all_articles

    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    dump = files("gensim") / "test" / "test_data" / name
    articles = []
    for title, sections, *_ in segment_all_articles(str(dump), min_article_character=200, workers=2):
        lines = [f" = {title} = ", ""]
        for heading, body in sections:
            if heading != "Introduction":
                lines += [f" = = {heading.strip()} = = ", ""]
            body = re.sub(r"'{2,}", "", body)
            lines += [" ".join(line.split()) for line in body.splitlines() if line.strip(" *#:;|=-")] + [""]
        articles.append(Article(title, "\n".join(lines) + "\n"))
    return articles


# --- Files that have splits


def split_of(name: PurePosixPath) -> str | None:
    """The split that a file's name, or that of a folder above it, says; `train.jsonl.gz`, `test/a.txt`."""
    named = [*name.parts[:-1], plain_name(name.name).stem]
    return next((SPLIT_NAMES[part.lower()] for part in named if part.lower() in SPLIT_NAMES), None)


def wikitext_file(found: Files, split: str, where: str | None) -> str | None:
    """wiki.SPLIT.tokens or .raw, at any depth. Raises PicollmError where there are several."""
    wanted = {f"wiki.{WIKITEXT_NAMES[split]}.{suffix}" for suffix in ("tokens", "raw")}
    names = sorted(name for name in found if PurePosixPath(name).name in wanted)
    if len(names) > 1:
        raise PicollmError(f"{where} holds several texts for {split} ({', '.join(names)}): name one version's folder")
    return names[0] if names else None


def parquet_parts(found: Files, split: str, where: str | None) -> Files:
    """The parts of a split in the hub's layout, in order; none where there are none.

    Raises PicollmError where parts are missing, or several folders have some and none is the hub's WikiText-103.
    """
    pattern = re.compile(rf"{split}-(\d+)-of-(\d+)\.parquet")
    folders: dict[str, dict[int, str]] = {}
    wholes = set()
    for name in found:
        if match := pattern.fullmatch(PurePosixPath(name).name):
            folders.setdefault(str(PurePosixPath(name).parent), {})[int(match[1])] = name
            wholes.add(int(match[2]))
    chosen = [folder for folder in folders if PurePosixPath(folder).name == HUB_CONFIG] or list(folders)
    if len(chosen) > 1:
        raise PicollmError(f"{where} holds several texts for {split} ({', '.join(sorted(chosen))}): name one folder")
    if not chosen:
        return {}
    parts = folders[chosen[0]]
    if len(wholes) > 1 or sorted(parts) != list(range(max(wholes))):
        count, whole = len(parts), " or ".join(map(str, sorted(wholes)))
        raise PicollmError(f"{where} has {count} of the {whole} parquet files of {split}: fetch it again")
    return {parts[i]: found[parts[i]] for i in sorted(parts)}
