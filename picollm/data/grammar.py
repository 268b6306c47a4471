"""Generates articles of known structure from a grammar, so that each probe has an answer that the text taught.

A grammar is a YAML file of `sizes`, `words` and `passages`. `words` are lists; an item is a text, or has forms:
{one: church, many: churches}. `passages` are lists of texts by name; each passage starts from the one called
`passage`. Symbols in braces are replaced:

{noun.one}      a form of a random item of the list noun
{noun#1.one}    a form of the item this passage calls noun#1, the same throughout the passage; noun#1 and noun#2 differ
{clause}        a random text of that name, with its own symbols replaced
{words*8}       eight different items of a list, with spaces between them; {words*8#1}: the same items again, in order
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picollm.data.articles import Article
from picollm.errors import PicollmError
from picollm.yaml12 import read_yaml

SHIPPED = Path(__file__).with_suffix(".yaml")
START = "passage"
SYMBOL = re.compile(r"\{([a-z_]+)(?:\*(\d+))?(?:#(\w+))?(?:\.([a-z]+))?\}")
SIZES = ("articles", "passages", "seed")


@dataclass(frozen=True)
class Grammar:
    """`words` and `passages` as in the file; `sizes`: the number of articles, of passages in each, and a seed."""

    sizes: Mapping[str, int]
    words: Mapping[str, list]
    passages: Mapping[str, list[str]]

    def articles(self) -> Iterator[Article]:
        """Yields the articles, the same ones every time."""
        for number in range(self.sizes["articles"]):
            generator = random.Random(f"{self.sizes['seed']} {number}")
            lines = [self.write(generator) for _ in range(self.sizes["passages"])]
            title = f"Article {number}"
            yield Article(title, "\n".join([f" = {title} = ", "", *lines]) + "\n")

    def write(self, generator: random.Random, start: str = START) -> str:
        """Generates one passage."""
        return self._fill(generator.choice(self.passages[start]), {}, generator)

    def _fill(self, text: str, kept: dict[str, Any], generator: random.Random) -> str:
        def put(match: re.Match) -> str:
            name, number, mark, form = match.groups()
            if name in self.passages:
                return self._fill(generator.choice(self.passages[name]), kept, generator)
            if number:
                key = f"{name}*{number}#{mark}"
                chosen = kept.get(key) or generator.sample(self.words[name], int(number))
                if mark:
                    kept[key] = chosen
                return " ".join(formed(item, form) for item in chosen)
            key = f"{name}#{mark}"
            if key in kept:
                return formed(kept[key], form)
            taken = [item for other, item in kept.items() if other.startswith(f"{name}#")]
            chosen = generator.choice([item for item in self.words[name] if item not in taken])
            if mark:
                kept[key] = chosen
            return formed(chosen, form)

        return SYMBOL.sub(put, text)


def formed(item: object, form: str | None) -> str:
    return str(item[form]) if isinstance(item, Mapping) and form else str(item)


def load_grammar(path: str | Path = SHIPPED) -> Grammar:
    """Loads and checks a grammar. Raises PicollmError for a file that is not a grammar and for an unknown symbol."""
    try:
        document = read_yaml(path)
    except FileNotFoundError:
        raise PicollmError(f"{path} is missing: corpus.path must name a grammar, a YAML file") from None
    if not isinstance(document, dict) or set(document) != {"sizes", "words", "passages"}:
        raise PicollmError(f"{path} is not a grammar: it must have the keys sizes, words and passages")
    sizes, words, passages = (document[name] or {} for name in ("sizes", "words", "passages"))
    if set(sizes) != set(SIZES) or not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
        raise PicollmError(f"{path}: sizes must have whole numbers of {', '.join(SIZES)}")
    for name, items in {**words, **passages}.items():
        if not isinstance(items, list) or not items:
            raise PicollmError(f"{path}: {name} must be a list, and not empty")
    if START not in passages:
        raise PicollmError(f"{path}: passages must have one called {START}, where each text begins")
    for name, texts in passages.items():
        for text in texts:
            if not isinstance(text, str):
                raise PicollmError(f"{path}: {name}: {text!r} is not text; put it in quotes")
            check(f"{path}: {name}: {text!r}", text, words, passages)
    refuse_circles(path, passages)
    return Grammar(sizes, words, passages)


def refuse_circles(path: str | Path, passages: Mapping[str, list[str]]) -> None:
    """Raises PicollmError if a passage contains itself, directly or through others: it would never end."""
    below = {
        name: {used for text in texts for used, *_ in SYMBOL.findall(text) if used in passages}
        for name, texts in passages.items()
    }
    for _ in below:
        below = {name: held.union(*(below[other] for other in held)) for name, held in below.items()}
    circles = [name for name, held in below.items() if name in held]
    if circles:
        raise PicollmError(f"{path}: the passage {circles[0]} contains itself, so it has no end")


def check(place: str, text: str, words: Mapping[str, list], passages: Mapping[str, list]) -> None:
    if braces := re.search(r"[{}]", SYMBOL.sub("", text)):
        raise PicollmError(f"{place} has a {braces[0]} that belongs to no symbol; write {{name}} or {{name#1.form}}")
    for name, number, _, form in SYMBOL.findall(text):
        if name not in words and name not in passages:
            raise PicollmError(f"{place} uses {name!r}; the grammar has {', '.join([*words, *passages])}")
        if name in passages:
            continue
        if number and int(number) > len(words[name]):
            raise PicollmError(f"{place} asks for {number} different words; {name} has {len(words[name])}")
        drawn = [mark for other, _, mark, _ in SYMBOL.findall(text) if other == name]
        most = len(set(drawn) - {""}) + ("" in drawn)
        if most > len(words[name]):
            raise PicollmError(f"{place} asks for {most} different items of {name}, which has {len(words[name])}")
        lacking = [item for item in words[name] if (form not in item if isinstance(item, Mapping) else bool(form))]
        if form and lacking:
            raise PicollmError(f"{place} asks for the form {form!r}; of {name}, {lacking[0]!r} has none")
