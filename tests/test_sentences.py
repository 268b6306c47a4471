import json
from collections import Counter

import pytest
import yaml
from refusals import refusal

from picollm.attention import sentences
from picollm.attention.sentences import CATEGORIES, PARTNERS, any_sentences, as_wikitext, load_sentences, parse
from picollm.data.tokenizer import encoding
from picollm.errors import PicollmError

SHIPPED = sentences.__file__.replace(".py", ".yaml")


def document():
    return {name: {"title": name.title(), "sentences": [f"One {name}.", f"Two {name}."]} for name in CATEGORIES}


def write(tmp_path, content):
    path = tmp_path / "sentences.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def load(tmp_path, content):
    return load_sentences(write(tmp_path, content))


def test_shipped_sentences_are_enough_and_of_overlapping_lengths():
    categories = load_sentences(SHIPPED)
    assert tuple(categories) == CATEGORIES
    for category in categories.values():
        lengths = [len(encoding().encode_ordinary(sentence.text)) for sentence in category.sentences]
        assert len(lengths) >= 24 and max(lengths) <= 60
        assert 6 <= min(lengths) <= 7 and max(lengths) >= 41 and 15 <= sum(lengths) / len(lengths) <= 20


def test_order_is_that_of_the_categories_not_of_the_file(tmp_path):
    assert tuple(load(tmp_path, dict(reversed(document().items())))) == CATEGORIES


def test_shipped_gold_marks_are_enough_and_in_order():
    categories = load_sentences(SHIPPED)
    gold = {name: [s for s in category.sentences if s.gold] for name, category in categories.items()}
    least = {"coreference": 26, "negation": 24, "long_range_dependencies": 23, "complex_syntax": 5, "simple": 19}
    assert all(len(gold[name]) >= number for name, number in least.items())
    every = Counter(role for marked in gold.values() for s in marked for role in s.gold)
    assert all(every[role] >= 18 for role in PARTNERS)
    for sentence in (s for marked in gold.values() for s in marked):
        spans = sorted(set(sentence.gold.values()))
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), sentence
        assert all(sentence.text[a:b].strip() == sentence.text[a:b] != "" for a, b in spans), sentence
        for role, before in (("pronoun", "antecedent"), ("pronoun", "distractor"), ("verb", "attractor")):
            if {role, before} <= sentence.gold.keys():
                assert sentence.gold[before] < sentence.gold[role], "a causal model has seen it"
    items = [s.gold for s in gold["coreference"] if "distractor" in s.gold]
    first = sum(item["antecedent"] < item["distractor"] for item in items)
    assert len(items) >= 20 and abs(2 * first - len(items)) <= 1, "the nearest noun is right as often as wrong"


def test_every_pronoun_has_its_antecedent_first_as_often_as_second():
    orders: dict[str, list[bool]] = {}
    for sentence in load_sentences(SHIPPED)["coreference"].sentences:
        if "distractor" in sentence.gold:
            pronoun = sentence.text[slice(*sentence.gold["pronoun"])]
            orders.setdefault(pronoun, []).append(sentence.gold["antecedent"] < sentence.gold["distractor"])
    assert all(abs(2 * sum(found) - len(found)) <= 1 for found in orders.values()) and len(orders) == 4


@pytest.mark.parametrize(
    ("plain", "wikitext"),
    [
        ("The well, it's said, was dry.", "The well , it 's said , was dry ."),
        ("In 1,200 years 2.4 metres; so?", "In 1 @,@ 200 years 2 @.@ 4 metres ; so ?"),
        ("A well-known (poet)_antecedent, who did (he)_pronoun?", "A well @-@ known poet , who did he ?"),
    ],
)
def test_the_style_of_wikitext(plain, wikitext):
    sentence = parse(as_wikitext(plain))
    assert sentence.text == wikitext
    assert [wikitext[a:b] for a, b in sentence.gold.values()] in ([], ["poet", "he"])


def test_sentences_are_written_in_the_style_that_is_asked_for():
    plain, wikitext = (load_sentences(SHIPPED, style) for style in ("plain", "wikitext"))
    for name in CATEGORIES:
        for one, other in zip(plain[name].sentences, wikitext[name].sentences, strict=True):
            assert other.text == as_wikitext(one.text)
            for role, (a, b) in other.gold.items():
                assert other.text[a:b] == as_wikitext(one.text[slice(*one.gold[role])]), one


def test_marks_are_taken_out_of_the_text():
    sentence = parse("(Ann)_antecedent said (once) that (she)_pronoun won.")
    assert sentence.text == "Ann said (once) that she won."
    assert {role: sentence.text[a:b] for role, (a, b) in sentence.gold.items()} == {
        "antecedent": "Ann",
        "pronoun": "she",
    }


def without(name):
    return {key: value for key, value in document().items() if key != name}


def simple(line):
    return document() | {"simple": {"title": "Simple", "sentences": [line]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (without("negation"), "negation is missing"),
        (document() | {"poetry": {"title": "x", "sentences": ["y"]}}, "unknown category 'poetry'"),
        (document() | {"simple": {"title": "Simple", "sentences": []}}, "simple has no sentences"),
        (document() | {"simple": {"title": "Simple", "sentences": "A text."}}, "simple has no sentences"),
        (document() | {"simple": {"title": "Simple", "sentences": ["a", True]}}, "simple, sentence 2 is not text"),
        (document() | {"simple": {"title": "Simple", "sentences": ["  "]}}, "simple, sentence 1 is empty"),
        (
            document() | {"temporal": {"title": "T", "sentences": ["x", "One simple."]}},
            "temporal, sentence 2 repeats category simple, sentence 1",
        ),
        (document() | {"simple": {"title": 3, "sentences": ["a"]}}, "title of the category simple"),
        (document() | {"simple": {"sentences": ["a"]}}, "two keys title and sentences"),
        (simple("(Ann)_hero won."), "simple, sentence 1 marks (Ann) as 'hero'; the roles are pronoun"),
        (simple("(Ann)_antecedent won."), "simple, sentence 1 marks a span as antecedent and none as pronoun"),
        (simple("(A)_verb (b)_verb (c)_subject"), "simple, sentence 1 marks two spans as verb"),
        (simple("()_pronoun went."), "simple, sentence 1 has a mark that can't be read at ')_pronoun'"),
        (simple("He (is (not)_negation)_scope here."), "simple, sentence 1 marks a span as negation"),
        (simple("There was (no)-negation rain."), "simple, sentence 1 has a mark that can't be read at ')-negation'"),
        ("- just a list", "the categories"),
        ("simple: [", "not YAML"),
    ],
)
def test_each_fault_gives_a_one_line_error_that_names_the_place(tmp_path, content, words):
    with pytest.raises(PicollmError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert words in message and "sentences.yaml" in message and "\n" not in message


def test_missing_file(tmp_path):
    with pytest.raises(PicollmError, match=r"none\.yaml is missing"):
        load_sentences(tmp_path / "none.yaml")


def test_a_category_that_stands_twice_is_refused_by_name(tmp_path):
    text = yaml.safe_dump(document(), allow_unicode=True)
    path = write(tmp_path, text + "simple:\n  title: Again\n  sentences: [Once more .]\n")
    assert "duplicate key simple" in refusal(load_sentences, path)


def test_json_with_an_emoji_is_read_and_half_of_one_refused(tmp_path):
    values = document()
    values["simple"]["sentences"][0] = "The cat 😀 sat on the mat."
    path = write(tmp_path, json.dumps(values))
    assert "\\ud83d" in path.read_text() and "😀" in load_sentences(path)["simple"].sentences[0].text
    path.write_text(path.read_text().replace("\\ude00", ""))
    assert "half of a character" in refusal(load_sentences, path)


def test_what_yaml_takes_for_a_comment_is_reported(tmp_path, caplog):
    values = document()
    values["simple"]["sentences"] = ["One line ."]
    text = yaml.safe_dump(values).replace("- One line .", "- One line # with a comment ?")
    load_sentences(write(tmp_path, text))
    assert "takes what follows ` #` as a comment: quote the sentence" in caplog.text
    caplog.clear()
    load_sentences(write(tmp_path, text.replace("- One line # with a comment ?", '- "One line # with a comment ?"')))
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "The cat sat.\n\n (The dog)_subject (ran)_verb .\n"),
        ("a.csv", "number,text\n1,The cat sat.\n2,(The dog)_subject (ran)_verb .\n"),
        ("b.csv", "The cat sat.\n(The dog)_subject (ran)_verb .\n"),
        ("a.json", '["The cat sat.", "(The dog)_subject (ran)_verb ."]'),
        ("b.json", '{"sentences": ["The cat sat.", "(The dog)_subject (ran)_verb ."]}'),
    ],
)
def test_sentences_of_ones_own_in_plain_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (category,) = any_sentences(path).values()
    assert [s.text for s in category.sentences] == ["The cat sat.", "The dog ran ."]
    assert set(category.sentences[1].gold) == {"subject", "verb"}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "has no sentences"),
        ("a.txt", b"caf\xe9", "is not UTF-8, at byte 3"),
        ("a.txt", b"One .\nOne .", "sentence 2 repeats"),
        ("a.json", b"{", "a.json: "),
        ("a.json", b"[1]", "sentence 1 is not text but 1"),
    ],
)
def test_plain_files_that_can_not_be_read(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    said = refusal(any_sentences, tmp_path / name)
    assert words in said and name in said and "\n" not in said
    assert "is missing" in refusal(any_sentences, tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    for folder in (tmp_path, tmp_path / "folder.txt"):
        assert "is a folder" in refusal(any_sentences, folder)
