"""Generated text, and the loss of a text: both compared with the plain forward pass."""

import math

import numpy as np
import pytest
import torch
from refusals import refusal
from test_huggingface import make

from picollm.data.articles import Article, write_articles
from picollm.data.corpora import articles_in
from picollm.data.tokenizer import END_OF_TEXT, VOCAB_SIZE, encoding
from picollm.model.generation import continuation, generate
from picollm.model.perplexity import per_word_and_byte, perplexity
from picollm.model.transformer import Cache

CPU = torch.device("cpu")
TEXTS = [" = Mill = \n\n The mill turned . \n" * 3, " = Brücke = \n\n Sie steht seit 1750 . \n" * 9, "x"]


@pytest.fixture(scope="module")
def model():
    return make(vocab_size=VOCAB_SIZE)


@torch.no_grad()
def test_the_cache_changes_no_logits(model):
    ids = torch.randint(VOCAB_SIZE, (2, 30))
    cache = Cache(len(model.blocks))
    found = [model.next_logits(ids[:, :12], cache)]
    found += [model.next_logits(ids[:, t : t + 1], cache) for t in range(12, 30)]
    assert cache.length == 30
    assert torch.allclose(torch.stack(found, 1), model(ids)[:, 11:], atol=1e-4)


@torch.no_grad()
def test_greedy_text_is_the_likeliest_token_each_time(model):
    ids = [5, 6, 7]
    for token in generate(model, [5, 6, 7], tokens=20, temperature=0, top_k=50, seed=1):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 23


@pytest.mark.heavy
@torch.no_grad()
def test_draws_follow_the_temperature_and_the_best_k(model):
    logits = model(torch.tensor([[5, 6]]))[0, -1]
    best = logits.topk(3)
    drawn = [next(generate(model, [5, 6], tokens=1, temperature=5.0, top_k=3, seed=s)) for s in range(600)]
    shares = np.array([drawn.count(int(i)) for i in best.indices]) / 600
    assert set(drawn) == set(best.indices.tolist())
    assert shares == pytest.approx((best.values / 5.0).softmax(-1).numpy(), abs=4 * 0.5 / math.sqrt(600))


def test_the_same_seed_gives_the_same_text_and_pieces_join_to_whole_characters(model):
    how = {"tokens": 40, "temperature": 2.0, "top_k": 5000}
    first, again, other = ("".join(continuation(model, "Brücke", **how, seed=s)) for s in (1, 1, 2))
    assert first == again != other
    ids = list(generate(model, encoding().encode_ordinary("Brücke"), **how, seed=1))
    assert first == encoding().decode(ids)


def test_a_text_ends_where_an_article_ends_and_has_a_longest_length(model):
    with torch.no_grad():
        ended = make(vocab_size=VOCAB_SIZE, tied=False)
        ended.head.weight.zero_()
        ended.norm.bias.fill_(1.0)
        ended.head.weight[END_OF_TEXT] = 1.0
    assert list(generate(ended, [5], tokens=9, temperature=0, top_k=1, seed=1)) == []
    text = refusal(lambda: list(generate(model, [5] * 40, tokens=9, temperature=0, top_k=1, seed=1)))
    assert "40 tokens of prompt and 9 to generate: the model accepts 48 in all" in text


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_perplexity_is_that_of_every_token_after_those_of_its_row(model, monkeypatch, rows):
    monkeypatch.setattr("picollm.model.perplexity.ROWS", rows)
    found = perplexity(model, [Article("", text) for text in TEXTS], CPU)
    stream = [END_OF_TEXT]
    for text in TEXTS:
        stream += [*encoding().encode_ordinary(text), END_OF_TEXT]
    context, nats = model.config.context, 0.0
    for start in range(0, len(stream) - 1, context):
        row = torch.tensor(stream[start : start + context + 1])
        log_probabilities = model(row[None, :-1])[0].double().log_softmax(-1)
        nats -= log_probabilities[torch.arange(len(row) - 1), row[1:]].sum().item()
    assert found["tokens"] == len(stream) - 1 and found["words"] == sum(len(text.split()) for text in TEXTS)
    assert found["loss"] == pytest.approx(nats / (len(stream) - 1), rel=1e-5)
    assert math.log(found["word_perplexity"]) == pytest.approx(nats / found["words"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / found["bytes"] / math.log(2), rel=1e-5)


def test_any_text_can_be_evaluated(tmp_path):
    (tmp_path / "one.txt").write_text("A line .\n")
    write_articles(tmp_path / "test.parquet", [Article("a", "A line .\n"), Article("b", "Another .\n")])
    folder = tmp_path / "wikitext"
    folder.mkdir()
    for split in ("valid", "test"):
        (folder / f"wiki.{split}.tokens").write_text(f"\n = {split} = \n\n Text .\n")
    assert [article.text for article in articles_in(tmp_path / "one.txt", "test")] == ["A line .\n"]
    assert [article.title for article in articles_in(tmp_path / "test.parquet", "test")] == ["a", "b"]
    assert [article.title for article in articles_in(folder, "validation")] == ["valid"]
    assert "has no train split" in refusal(lambda: list(articles_in(folder, "train")))


def test_nothing_to_evaluate_is_reported(model):
    assert "the corpus is empty" in refusal(perplexity, model, [], CPU)


def test_no_limit_of_k_is_the_whole_vocabulary_and_a_tiny_temperature_the_likeliest(model):
    how = {"tokens": 8, "seed": 1}
    whole = list(generate(model, [5, 6], temperature=1.0, top_k=0, **how))
    assert whole == list(generate(model, [5, 6], temperature=1.0, top_k=VOCAB_SIZE, **how))
    best = list(generate(model, [5, 6], temperature=0, top_k=50, **how))
    assert list(generate(model, [5, 6], temperature=1e-40, top_k=50, **how)) == best


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"top_k": -1}, "top-k = -1"), ({"tokens": -5}, "tokens = -5"), ({"seed": -1}, "seed = -1"),
        ({"temperature": -1.0}, "temperature = -1.0"), ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_gives_a_one_line_error(model, edit, words):
    how = {"tokens": 3, "temperature": 1.0, "top_k": 5, "seed": 1} | edit
    assert words in refusal(lambda: list(generate(model, [5], **how)))


def test_text_without_spaces_has_no_perplexity_per_word_but_the_rest():
    """One word of 900 tokens: exp(2,000 x 0.9) is no float64."""
    measures = per_word_and_byte(2.0, {"tokens": 900, "words": 1, "bytes": 2700})
    assert measures["word_perplexity"] is None
    assert measures["bits_per_byte"] == pytest.approx(2.0 / 3 / np.log(2))
    assert per_word_and_byte(2.0, {"tokens": 900, "words": 900, "bytes": 1})["word_perplexity"] == pytest.approx(
        np.exp(2)
    )
