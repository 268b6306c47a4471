import pytest
import yaml

from picollm.attention import sentences
from picollm.attention.sentences import CATEGORIES, load_sentences
from picollm.data.tokenizer import encoding
from picollm.errors import PicollmError

SHIPPED = sentences.__file__.replace(".py", ".yaml")


def document():
    return {name: {"title": name.title(), "sentences": [f"One {name}.", f"Two {name}."]} for name in CATEGORIES}


def load(tmp_path, content):
    path = tmp_path / "sentences.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return load_sentences(path)


def test_shipped_sentences_are_enough_and_of_overlapping_lengths():
    categories = load_sentences(SHIPPED)
    assert tuple(categories) == CATEGORIES
    for category in categories.values():
        lengths = [len(encoding().encode_ordinary(sentence)) for sentence in category.sentences]
        assert len(lengths) >= 8
        assert min(lengths) <= 8 and max(lengths) >= 39 and 15 <= sum(lengths) / len(lengths) <= 21


def test_order_is_that_of_the_categories_not_of_the_file(tmp_path):
    assert tuple(load(tmp_path, dict(reversed(document().items())))) == CATEGORIES


def without(name):
    return {key: value for key, value in document().items() if key != name}


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
        ("- just a list", "ten categories"),
        ("simple: [", "not YAML"),
    ],
)
def test_each_fault_is_one_line_that_names_the_place(tmp_path, content, words):
    with pytest.raises(PicollmError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert words in message and "sentences.yaml" in message and "\n" not in message


def test_missing_file(tmp_path):
    with pytest.raises(PicollmError, match=r"none\.yaml is missing"):
        load_sentences(tmp_path / "none.yaml")
