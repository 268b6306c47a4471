"""The ten linguistic categories and their sentences, read from a YAML file that people edit (`sentences.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from picollm.errors import PicollmError, one_line

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


@dataclass(frozen=True)
class Category:
    title: str
    sentences: tuple[str, ...]


def load_sentences(path: str | Path) -> dict[str, Category]:
    """The categories in the order of `CATEGORIES`. Raises PicollmError naming category and sentence at fault."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: attention.sentences must name a YAML file of sentences") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PicollmError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise PicollmError(f"{path} must hold the ten categories {', '.join(CATEGORIES)}")
    for name in document:
        if name not in CATEGORIES:
            raise PicollmError(f"{path}: unknown category {name!r}; allowed are {', '.join(CATEGORIES)}")
    seen: dict[str, str] = {}
    return {name: _category(path, name, document.get(name), seen) for name in CATEGORIES}


def _category(path: str | Path, name: str, entry: object, seen: dict[str, str]) -> Category:
    """`seen` maps every sentence so far to its place, and grows."""
    if entry is None:
        raise PicollmError(f"{path}: the category {name} is missing")
    if not isinstance(entry, dict) or set(entry) != {"title", "sentences"}:
        raise PicollmError(f"{path}: the category {name} must have the two keys title and sentences")
    if not isinstance(entry["title"], str) or not entry["title"].strip():
        raise PicollmError(f"{path}: the title of the category {name} must be text")
    if not isinstance(entry["sentences"], list) or not entry["sentences"]:
        raise PicollmError(f"{path}: the category {name} has no sentences; write at least one, as a list")
    for number, sentence in enumerate(entry["sentences"], 1):
        place = f"category {name}, sentence {number}"
        if not isinstance(sentence, str):
            raise PicollmError(f"{path}: {place} is not text but {sentence!r}; put it in quotes")
        if not sentence.strip():
            raise PicollmError(f"{path}: {place} is empty")
        if sentence in seen:
            raise PicollmError(f"{path}: {place} repeats {seen[sentence]}: {sentence!r}")
        seen[sentence] = place
    return Category(entry["title"], tuple(entry["sentences"]))
