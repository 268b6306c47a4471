"""Reads the sentences of the linguistic categories from a YAML file that users edit (`sentences.yaml`)."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from picollm.errors import PicollmError
from picollm.yaml12 import read_yaml

log = logging.getLogger(__name__)

CATEGORIES = (
    "simple",
    "complex_syntax",
    "long_range_dependencies",
    "coreference",
    "negation",
    "questions",
    "technical",
    "ambiguous",
    "comparative",
    "temporal",
)
# Each role of a gold mark, and the role that must accompany it.
PARTNERS = {
    "pronoun": "antecedent",
    "antecedent": "pronoun",
    "distractor": "pronoun",
    "subject": "verb",
    "verb": "subject",
    "attractor": "subject",
    "negation": "scope",
    "scope": "negation",
    "article": "noun",
    "noun": "article",
    "question": "focus",
    "focus": "question",
    "preposition": "governor",
    "governor": "preposition",
}
MARK = re.compile(r"\(([^()]+)\)_([a-z]+(?:_[a-z]+)*)")
REMNANT = re.compile(r"\)[_-]\w+|\w+[_-]\(")
# WikiText's format: punctuation is a separate token, and joins without spaces are marked (Merity et al. 2016).
WIKITEXT = (
    (re.compile(r"(?<=\d)([.,])(?=\d)"), r" @\1@ "),
    (re.compile(r"(?<=\w)-(?=\w)"), " @-@ "),
    (re.compile(r"(?<=[\w)])([,.;:?!])(?!@)(?=\s|$)"), r" \1"),
    (re.compile(r"(?<=\w)('s|n't)\b"), r" \1"),
)
STYLES = ("plain", "wikitext")


@dataclass(frozen=True)
class Sentence:
    """A text; `gold` maps a role to its characters [start, end)."""

    text: str
    gold: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Category:
    title: str
    sentences: tuple[Sentence, ...]


def load_sentences(sentences: str | Path, style: str = STYLES[0]) -> dict[str, Category]:
    """Loads the categories in the order of `CATEGORIES`, written like the training text in one of STYLES.

    Raises PicollmError naming the category and sentence at fault.
    """
    try:
        document = read_yaml(sentences)
        warn_of_comments(Path(sentences))
    except FileNotFoundError:
        raise PicollmError(f"{sentences} is missing: attention.sentences must name a YAML file of sentences") from None
    if not isinstance(document, dict):
        raise PicollmError(f"{sentences} must hold the categories {', '.join(CATEGORIES)}")
    for name in document:
        if name not in CATEGORIES:
            raise PicollmError(f"{sentences}: unknown category {name!r}; allowed are {', '.join(CATEGORIES)}")
    seen: dict[str, str] = {}
    try:
        return {name: _category(name, document.get(name), seen, style) for name in CATEGORIES}
    except PicollmError as error:
        raise PicollmError(f"{sentences}: {error}") from None


def any_sentences(path: str | Path, style: str = STYLES[0]) -> dict[str, Category]:
    """Loads a user's sentences: a YAML file of the categories, or without them a text file (one sentence per line),
    a CSV file (its column `text`, or the first) or a JSON file (a list, or categories with lists).

    Raises PicollmError naming the sentence at fault.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".csv", ".json"):
        return load_sentences(path, style)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: give a file of sentences") from None
    except IsADirectoryError:
        raise PicollmError(f"{path} is a folder: give a file of sentences") from None
    except UnicodeDecodeError as error:
        raise PicollmError(f"{path} is not UTF-8, at byte {error.start}: save it as UTF-8") from None
    seen: dict[str, str] = {}
    try:
        lists = plain_lists(path.suffix.lower(), text)
        return {
            name: _category(name, {"title": name, "sentences": lines}, seen, style) for name, lines in lists.items()
        }
    except (PicollmError, json.JSONDecodeError) as error:
        raise PicollmError(f"{path}: {error}") from None


def plain_lists(suffix: str, text: str) -> dict[str, object]:
    """Parses a file's text into {category: sentences}."""
    if suffix == ".txt":
        return {"sentences": [line.strip() for line in text.splitlines() if line.strip()]}
    if suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text)))
        column = rows[0].index("text") if rows and "text" in rows[0] else 0
        body = rows[1:] if rows and "text" in rows[0] else rows
        return {"sentences": [row[column] for row in body if len(row) > column and row[column].strip()]}
    value = json.loads(text)
    return value if isinstance(value, dict) else {"sentences": value}


def warn_of_comments(path: Path) -> None:
    """Warns of unquoted items with ` #`, which ends the item: users may not know."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(r"\s*- [^'\"].* #", line):
            log.warning("%s, line %d: YAML takes what follows ` #` as a comment: quote the sentence", path, number)


def _category(name: str, entry: object, seen: dict[str, str], style: str) -> Category:
    """Checks and parses one category; `seen` maps every sentence so far to its place, and is extended."""
    if entry is None:
        raise PicollmError(f"the category {name} is missing")
    if not isinstance(entry, dict) or set(entry) != {"title", "sentences"}:
        raise PicollmError(f"the category {name} must have the two keys title and sentences")
    if not isinstance(entry["title"], str) or not entry["title"].strip():
        raise PicollmError(f"the title of the category {name} must be text")
    if not isinstance(entry["sentences"], list) or not entry["sentences"]:
        raise PicollmError(f"the category {name} has no sentences; write at least one, as a list")
    sentences = []
    for number, line in enumerate(entry["sentences"], 1):
        place = f"category {name}, sentence {number}"
        if not isinstance(line, str):
            raise PicollmError(f"{place} is not text but {line!r}; put it in quotes")
        try:
            sentence = parse(as_wikitext(line) if style == "wikitext" else line)
        except PicollmError as error:
            raise PicollmError(f"{place} {error}") from None
        if not sentence.text.strip():
            raise PicollmError(f"{place} is empty: write one, or remove the item")
        if sentence.text in seen:
            raise PicollmError(f"{place} repeats {seen[sentence.text]}: remove one of them: {sentence.text!r}")
        seen[sentence.text] = place
        sentences.append(sentence)
    return Category(entry["title"], tuple(sentences))


def as_wikitext(line: str) -> str:
    for pattern, instead in WIKITEXT:
        line = pattern.sub(instead, line)
    return line


def parse(line: str) -> Sentence:
    """Parses a line of the file: its text, and the spans marked as `(words)_role` or `(words)_role_role`.

    Raises PicollmError for a mark that can't be read and for a role that is unknown, marked twice, or without its
    partner.
    """
    text, gold, end = "", {}, 0
    for mark in MARK.finditer(line):
        words, roles = mark.groups()
        text += line[end : mark.start()]
        for role in roles.split("_"):
            if role not in PARTNERS:
                raise PicollmError(f"marks ({words}) as {role!r}; the roles are {', '.join(PARTNERS)}")
            if role in gold:
                raise PicollmError(f"marks two spans as {role}; a sentence has one of each role")
            gold[role] = (len(text), len(text) + len(words))
        text, end = text + words, mark.end()
    for role in gold:
        if PARTNERS[role] not in gold:
            raise PicollmError(f"marks a span as {role} and none as {PARTNERS[role]}: mark that one too")
    text += line[end:]
    remnant = REMNANT.search(text)
    if remnant:
        raise PicollmError(f"has a mark that can't be read at {remnant[0]!r}; write (words)_role")
    return Sentence(text, gold)
