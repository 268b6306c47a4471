import json
import tracemalloc
import weakref
import zipfile

import numpy as np
import pytest
import torch
import yaml
from refusals import refusal

from picollm.attention.extraction import attention_maps, extract_category, tokenise
from picollm.attention.extraction import extract_attention as extract_all
from picollm.attention.maps import fault_of, load_attention, load_categories
from picollm.attention.sentences import CATEGORIES, load_sentences, parse
from picollm.data.tokenizer import END_OF_TEXT, VOCAB_SIZE, encoding
from picollm.data.tokenizers import Tokenizer, by_bytes, gpt2
from picollm.errors import PicollmError
from picollm.model.transformer import ModelConfig, Transformer

CPU = torch.device("cpu")
SEPARATOR = 256


def small_model(n_heads=2, context=24, vocab_size=257):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=vocab_size,
        context=context,
        d_model=16,
        n_layers=3,
        n_heads=n_heads,
        d_ff=24,
        dropout=0.1,
        tied=True,
        rope_theta=10000.0,
        rope_cache=32,
    )
    model = Transformer(config)
    with torch.no_grad():  # sharper than at initialisation, so that a wrong mask or scale shows
        for block in model.blocks:
            block.attention.qkv.weight.mul_(20)
    return model


def as_bytes(text):
    """A tokenizer with one token per byte: most tokens of a non-ASCII text are a part of a character."""
    pieces = by_bytes(lambda t: list(t.encode()), lambda i: bytes([i]))
    by = Tokenizer(pieces, lambda t: np.array(pieces(t)[0]), SEPARATOR, "<|endoftext|>", 257, "bytes", "bytes")
    return tokenise(parse(text), by)


def extract_attention(path, texts=("The cat sat.", "Déjà vu"), **changes):
    model = small_model(**changes)
    sentences = [as_bytes(text) for text in texts]
    extract_category(model, category="simple", title="Simple", sentences=sentences, device=CPU, path=path)
    return path


@pytest.mark.heavy
def test_tokens_are_real_text():
    text = "The café’s owner slept."
    tokenizer = encoding()
    tokens = tokenise(parse(text), gpt2())
    assert tokens.ids == [END_OF_TEXT, *tokenizer.encode_ordinary(text)]
    assert [text[a:b] for a, b in tokens.spans[1:]] == tokens.strings[1:]
    assert tokens.spans[1][0] == 0 and tokens.spans[-1][1] == len(text)
    for string, token in zip(tokens.strings[1:], tokens.ids[1:], strict=True):
        assert tokenizer.decode_single_token_bytes(token) in string.encode()


def test_a_token_with_part_of_a_character_shows_it_whole():
    tokens = as_bytes("aé")
    assert tokens.strings == ["<|endoftext|>", "a", "é", "é"]
    assert tokens.spans == [(0, 0), (0, 1), (1, 2), (1, 2)]


def test_round_trip_and_separator(tmp_path):
    found = load_attention(extract_attention(tmp_path / "simple.npz"))
    assert (found.category, found.title) == ("simple", "Simple")
    assert found.texts == ["The cat sat.", "Déjà vu"]
    assert [ids[0] for ids in found.ids] == [SEPARATOR, SEPARATOR]
    assert [len(t) for t in found.tokens] == [len(ids) for ids in found.ids] == [13, 10]
    for weights, ids in zip(found.maps, found.ids, strict=True):
        assert weights.dtype == np.float32 and weights.shape == (3, 2, len(ids), len(ids))


def test_explicit_attention_equals_the_sdpa_path():
    model = small_model().train()  # dropout must be off in the maps nevertheless
    ids = torch.randint(0, 257, (1, 20), generator=torch.Generator().manual_seed(1))
    maps, x = model.attention_maps(ids)
    assert model.training
    model.eval()
    assert (x - model.hidden(ids)).abs().max() < 1e-5
    assert torch.triu(maps, 1).abs().max() == 0
    assert (maps.sum(-1) - 1).abs().max() < 1e-5
    assert maps.std() > 0.01


def test_maps_of_a_sentence_do_not_depend_on_the_others():
    model, generator = small_model(), np.random.default_rng(0)
    ids = [generator.integers(0, 257, n).tolist() for n in (5, 12, 9)]
    together = list(attention_maps(model, ids, CPU))
    for sequence, weights in zip(ids, together, strict=True):
        (alone,) = attention_maps(model, [sequence], CPU)
        assert np.array_equal(alone, weights)


def test_equal_inputs_give_equal_bytes(tmp_path):
    first, second = extract_attention(tmp_path / "a.npz"), extract_attention(tmp_path / "b.npz")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as file:
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}


def test_too_long_a_sentence_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(PicollmError, match=r"simple, sentence 2 has 25 tokens .* context is 24"):
        extract_attention(tmp_path / "simple.npz", texts=("short", "x" * 24))
    assert list(tmp_path.iterdir()) == []
    extract_attention(tmp_path / "simple.npz", texts=("short", "x" * 23))


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    with open(path, "wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def test_what_is_not_causal_attention_is_refused(tmp_path):
    path = extract_attention(tmp_path / "simple.npz")
    good = load_attention(path).maps[1]
    changes = {
        "NaN": np.where(np.arange(10) == 3, np.nan, good),
        "sum to 1": good * 1.001,
        "later positions": good + np.triu(np.full((10, 10), 0.1), 1),
        "negative": good - 2 * np.eye(10),
        "shape": good[:, :, 1:, 1:],
    }
    for words, weights in changes.items():
        rewrite(path, attention_001=weights.astype(np.float32))
        with pytest.raises(PicollmError, match=rf"simple\.npz: attention_001 .*{words}"):
            list(load_attention(path).maps)
    assert fault_of(good, 10) is None


@pytest.mark.parametrize("key", ["sentences", "attention_001", "ids_000"])
def test_missing_array(tmp_path, key):
    path = extract_attention(tmp_path / "simple.npz")
    rewrite(path, **{key: None})
    with pytest.raises(PicollmError, match=rf"simple\.npz is damaged or unreadable.*{key}"):
        list(load_attention(path).maps)


def test_maps_are_a_sequence(tmp_path):
    found = load_attention(extract_attention(tmp_path / "simple.npz"))
    inside = list(found.maps)
    assert len(found.maps) == 2 and np.array_equal(found.maps[-1], inside[1])
    with pytest.raises(IndexError):
        found.maps[2]


def test_one_map_is_in_memory_at_a_time_when_writing_and_when_reading(tmp_path):
    model, alive, most = small_model(), [], 0
    original = model.attention_maps

    def watched(ids):
        nonlocal most
        maps, x = original(ids)
        alive.append(weakref.ref(maps))
        most = max(most, sum(reference() is not None for reference in alive))
        return maps, x

    model.attention_maps = watched
    sentences = [as_bytes(f"sentence number {n:03d}") for n in range(60)]
    path = tmp_path / "simple.npz"
    extract_category(model, category="simple", title="Simple", sentences=sentences, device=CPU, path=path)
    assert len(alive) == 60 and most <= 2  # the previous one is freed when the next is there
    found = load_attention(path)
    tracemalloc.start()
    total = sum(weights.nbytes for weights in found.maps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 500_000 and peak < total / 3


def test_nothing_is_written_where_a_later_category_does_not_fit(tmp_path):
    lines = {name: {"title": name, "sentences": [f"A sentence of {name}."]} for name in CATEGORIES}
    lines["temporal"]["sentences"] = ["word " * 40]
    sentences = tmp_path / "sentences.yaml"
    sentences.write_text(yaml.safe_dump(lines))
    paths = {name: tmp_path / "out" / f"{name}.npz" for name in CATEGORIES}
    said = refusal(extract_all, small_model(vocab_size=VOCAB_SIZE), load_sentences(sentences), paths, CPU)
    assert "temporal, sentence 1 has 4" in said and not (tmp_path / "out").exists()
    said = refusal(extract_all, small_model(vocab_size=60_000), load_sentences(sentences), paths, CPU)
    assert "vocabulary of 60,000 tokens, GPT-2's has 50,257" in said and not (tmp_path / "out").exists()


def test_gold_marks_become_positions(tmp_path):
    line = "(The café)_subject by (A)_attractor (is)_verb old."
    found = load_attention(extract_attention(tmp_path / "simple.npz", texts=[line]))
    assert found.texts == ["The café by A is old."]
    text = [token.encode() for token in found.tokens[0]]
    for role, words in {"subject": "The café", "attractor": "A", "verb": "is"}.items():
        start, end = found.gold[0][role]
        assert end - start == len(words.encode()) and text[start].decode() == words[0], role


@pytest.mark.parametrize(
    ("texts", "changes", "words"),
    [
        (["fine", "x"], {}, "simple, sentence 2 has fewer than two tokens"),
        (["fine"], {"vocab_size": 256}, "sentence 1 has token 256; the model's vocabulary ends at 255"),
    ],
)
def test_a_sentence_that_the_model_cannot_take(tmp_path, texts, changes, words):
    with pytest.raises(PicollmError, match=words):
        extract_attention(tmp_path / "simple.npz", texts=texts, **changes)
    assert not list(tmp_path.iterdir())


def test_foreign_format(tmp_path):
    path = extract_attention(tmp_path / "simple.npz")
    with np.load(path) as file:
        header = json.loads(str(file["sentences"])) | {"format": 99}
    rewrite(path, sentences=np.array(json.dumps(header)))
    with pytest.raises(PicollmError, match="format 99"):
        load_attention(path)


def test_damaged_bytes_never_pass_and_never_raise_anything_else(tmp_path):
    path = extract_attention(tmp_path / "simple.npz", texts=("Hi",))
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    reference = load_attention(path)
    (intact,) = reference.maps
    for position in generator.choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            found = load_attention(path)
            (weights,) = found.maps
        except PicollmError as error:
            assert "simple.npz" in str(error)
        else:  # bits that carry nothing, such as a date
            assert found.ids == reference.ids and np.array_equal(weights, intact)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PicollmError, match=r"simple\.npz"):
            load_attention(path)
    with pytest.raises(PicollmError, match="is missing"):
        load_attention(tmp_path / "none.npz")


def test_files_of_different_models_are_not_mixed(tmp_path):
    a, b = extract_attention(tmp_path / "a.npz"), extract_attention(tmp_path / "b.npz", n_heads=4)
    with pytest.raises(PicollmError, match=r"b\.npz is of another model"):
        load_categories([a, b])
