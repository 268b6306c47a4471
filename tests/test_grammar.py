"""Text of known structure: its rules hold in every passage, it is reproducible, and errors of a grammar are named."""

import random
import re
from itertools import islice

import pytest
from refusals import refusal

from picollm.attention.sentences import load_sentences
from picollm.data.corpora import Corpus
from picollm.data.grammar import SHIPPED, load_grammar
from picollm.mechanisms.templates import GENDERS, NOUNS, pairs
from picollm.yaml12 import read_yaml


@pytest.fixture(scope="module")
def passages():
    grammar, generator = load_grammar(), random.Random(0)
    return [grammar.write(generator) for _ in range(4000)]


def test_the_verb_agrees_with_the_first_noun(passages):
    many, seen = {forms[1] for forms in NOUNS}, 0
    for text in passages:
        if match := re.match(r"The (\w+) (?:near|seen by) the (\w+) (was|is|has|were|are|have) ", text):
            assert (match[1] in many) == (match[3] in ("were", "are", "have")), text
            seen += (match[1] in many) != (match[2] in many)
    assert seen > 100, "often across a noun of the other number"


def test_a_pronoun_has_one_antecedent_and_its_deed(passages):
    words = read_yaml(SHIPPED)["words"]
    deed = {item["who"]: item["did"] for item in (*words["man"], *words["woman"])}
    he, she = map(set, zip(*GENDERS, strict=True))
    seen = 0
    for text in passages:
        if text.startswith("Words : ") or " did " in text:
            continue
        if match := re.search(r"\b(he|she) (\w+) \.$", text):
            mentioned = [word for word in re.findall(r"\w+", text) if word in deed]
            meant = [word for word in mentioned if word in (he if match[1] == "he" else she)]
            assert len(meant) == 1 and deed[meant[0]] == match[2], text
            seen += len(mentioned) == 2
    assert seen > 100


def test_what_only_a_negation_allows_follows_one(passages):
    for text in passages:
        if text.startswith("Words : "):
            continue
        negated = bool(re.search(r"\b(No|not)\b", text))
        if re.search(r" (ever|yet|either|any|anyone|anything|anymore|at all) \.$", text):
            assert negated, text
        if re.search(r" (probably|already|too|some|someone|something|still|indeed) \.$", text):
            assert not negated, text


def test_lists_are_read_again_in_the_same_order(passages):
    lists = [text.removeprefix("Words : ").split() for text in passages if text.startswith("Words : ")]
    assert len(lists) > 1000
    for words in lists:
        n = len(set(words))
        assert len(words) in (2 * n, 3 * n) and words[n:] == words[: len(words) - n]


@pytest.mark.heavy
def test_the_text_has_every_word_of_the_probes(passages):
    counts = " ".join(passages)
    for kind, found in pairs().items():
        for word in {word for pair in found for word in pair.words}:
            assert len(re.findall(rf"\b{word}\b", counts)) >= 3, (kind, word)


@pytest.mark.heavy
def test_articles_are_the_same_every_time_and_splits_are_theirs(tmp_path):
    first, again = (list(islice(load_grammar().articles(), 3)) for _ in range(2))
    assert [a.text for a in first] == [a.text for a in again] and len({a.text for a in first}) == 3
    small = tmp_path / "grammar.yaml"
    small.write_text(SHIPPED.read_text().replace("{articles: 400, passages: 120,", "{articles: 20, passages: 12,"))
    corpus = Corpus("grammar", str(small), hub="", revision="", fraction=0.5, held_out_articles=2)
    titles = {split: [a.title for a in corpus.articles(split)] for split in ("train", "validation", "test")}
    assert [len(titles[split]) for split in titles] == [8, 2, 2]
    assert not set(titles["validation"]) & set(titles["test"])


def test_sentences_of_the_grammar_are_marked():
    categories = load_sentences(SHIPPED.with_name("grammar-sentences.yaml"))
    assert all(len(category.sentences) == 24 for category in categories.values())
    assert sum("antecedent" in s.gold for c in categories.values() for s in c.sentences) == 48


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sizes: {articles: 1, passages: 1, seed: 1}", "must have the keys sizes, words and passages"),
        (
            "sizes: {articles: 1}\nwords: {a: [x]}\npassages: {passage: [x]}",
            "whole numbers of articles, passages",
        ),
        ("sizes: S\nwords: {a: []}\npassages: {passage: [x]}", "a must be a list, and not empty"),
        ("sizes: S\nwords: {a: [x]}\npassages: {other: [x]}", "must have one called passage"),
        ('sizes: S\nwords: {a: [x]}\npassages: {passage: ["{verb}"]}', "uses 'verb'; the grammar has a, passage"),
        ('sizes: S\nwords: {a: [x]}\npassages: {passage: ["{a*3}"]}', "asks for 3 different words; a has 1"),
        ('sizes: S\nwords: {a: [x]}\npassages: {passage: ["{a.one}"]}', "asks for the form 'one'; of a, 'x' has none"),
        ('sizes: S\nwords: {a: [x]}\npassages: {passage: ["a } b"]}', "a } that belongs to no symbol"),
        ("sizes: S\nwords: {a: [x]}\npassages: {passage: [1801]}", "1801 is not text; put it in quotes"),
        ('sizes: S\nwords: {a: [x]}\npassages: {passage: ["{b}"], b: ["{passage}"]}', "passage contains itself"),
        (
            'sizes: S\nwords: {a: [x, y]}\npassages: {passage: ["{a#1} {a#2} {a}"]}',
            "3 different items of a",
        ),
    ],
)
def test_a_bad_grammar_is_named(tmp_path, text, words):
    path = tmp_path / "grammar.yaml"
    path.write_text(text.replace("sizes: S", "sizes: {articles: 1, passages: 1, seed: 1}"))
    said = refusal(load_grammar, path)
    assert words in said and "grammar.yaml" in said and "\n" not in said
    assert "is missing" in refusal(load_grammar, tmp_path / "none.yaml")
