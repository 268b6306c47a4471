import json
import zipfile

import numpy as np
import pytest
import torch

from picollm.attention.extraction import attention_maps, extract_category, tokenise
from picollm.attention.maps import fault_of, load_attention, load_categories
from picollm.data.tokenizer import END_OF_TEXT, encoding
from picollm.errors import PicollmError
from picollm.model.transformer import ModelConfig, Transformer

CPU = torch.device("cpu")
SEPARATOR = 256


def small_model(n_heads=2, context=24):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257,
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
    """A tokenizer of one token a byte: most tokens of a non-ASCII text hold part of a character."""
    return tokenise(text, encode=lambda t: list(t.encode()), token_bytes=lambda i: bytes([i]), separator=SEPARATOR)


def extract(path, texts=("The cat sat.", "Déjà vu"), **changes):
    model = small_model(**changes)
    sentences = [as_bytes(text) for text in texts]
    extract_category(model, category="simple", title="Simple", sentences=sentences, device=CPU, path=path)
    return path


def test_tokens_are_real_text():
    text = "The café’s owner slept."
    tokenizer = encoding()
    tokens = tokenise(
        text,
        encode=tokenizer.encode_ordinary,
        token_bytes=tokenizer.decode_single_token_bytes,
        separator=END_OF_TEXT,
    )
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
    found = load_attention(extract(tmp_path / "simple.npz"))
    assert (found.category, found.title) == ("simple", "Simple")
    assert found.texts == ["The cat sat.", "Déjà vu"]
    assert [ids[0] for ids in found.ids] == [SEPARATOR, SEPARATOR]
    assert [len(t) for t in found.tokens] == [len(ids) for ids in found.ids] == [13, 10]
    for weights, ids in zip(found.maps, found.ids, strict=True):
        assert weights.dtype == np.float32 and weights.shape == (3, 2, len(ids), len(ids))


def test_explicit_attention_equals_the_sdpa_path():
    model = small_model().train()  # dropout must be off in the maps all the same
    ids = torch.randint(0, 257, (1, 20), generator=torch.Generator().manual_seed(1))
    maps, logits = model.attention_maps(ids)
    model.eval()
    assert (logits - model(ids)).abs().max() < 1e-4
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
    first, second = extract(tmp_path / "a.npz"), extract(tmp_path / "b.npz")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as file:
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}


def test_too_long_a_sentence_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(PicollmError, match=r"simple, sentence 2 has 25 tokens .* context is 24"):
        extract(tmp_path / "simple.npz", texts=("short", "x" * 24))
    assert list(tmp_path.iterdir()) == []
    extract(tmp_path / "simple.npz", texts=("short", "x" * 23))


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    with open(path, "wb") as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def test_what_is_not_causal_attention_is_refused(tmp_path):
    path = extract(tmp_path / "simple.npz")
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
            load_attention(path)
    assert fault_of(good, 10) is None


@pytest.mark.parametrize("key", ["sentences", "attention_001", "ids_000"])
def test_missing_array(tmp_path, key):
    path = extract(tmp_path / "simple.npz")
    rewrite(path, **{key: None})
    with pytest.raises(PicollmError, match=rf"simple\.npz is damaged or unreadable.*{key}"):
        load_attention(path)


def test_foreign_format(tmp_path):
    path = extract(tmp_path / "simple.npz")
    with np.load(path) as file:
        header = json.loads(str(file["sentences"])) | {"format": 99}
    rewrite(path, sentences=np.array(json.dumps(header)))
    with pytest.raises(PicollmError, match="format 99"):
        load_attention(path)


def test_damaged_bytes_never_pass_and_never_raise_anything_else(tmp_path):
    path = extract(tmp_path / "simple.npz", texts=("Hi",))
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    reference = load_attention(path)
    for position in generator.choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            found = load_attention(path)
        except PicollmError as error:
            assert "simple.npz" in str(error)
        else:  # bits that carry nothing, such as a date
            assert found.ids == reference.ids and np.array_equal(found.maps[0], reference.maps[0])
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PicollmError, match=r"simple\.npz"):
            load_attention(path)
    with pytest.raises(PicollmError, match="is missing"):
        load_attention(tmp_path / "none.npz")


def test_files_of_different_models_are_not_mixed(tmp_path):
    a, b = extract(tmp_path / "a.npz"), extract(tmp_path / "b.npz", n_heads=4)
    with pytest.raises(PicollmError, match=r"b\.npz is of another model"):
        load_categories([a, b])
