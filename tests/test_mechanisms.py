"""Scores of a circuit with known heads, the structure of the sequences, and emergence from given snapshots."""

import numpy as np
import pytest
import torch
from circuits import TOKENS, induction_circuit
from refusals import refusal
from synthetic import content_uniform, offset, uniform

from picollm.data.tokenizer import END_OF_TEXT, VOCAB_SIZE
from picollm.mechanisms.emergence import onsets
from picollm.mechanisms.repeats import SEQUENCES, common, copying, corrected, lengths, offsets, second_copy, sequences

CPU = torch.device("cpu")


def repeated(length=25, n=8, seed=0):
    """Repeats in the circuit's own vocabulary, whose last token is the separator."""
    generator = np.random.default_rng(seed)
    copies = np.stack([generator.permutation(TOKENS - 1)[:length] for _ in range(n)])
    return np.concatenate([np.full((n, 1), TOKENS - 1), copies, copies], 1)


def test_the_circuit_has_its_scores_and_its_idle_heads_have_none():
    ids, model = repeated(), induction_circuit()
    found = offsets(model.attention_maps(torch.from_numpy(ids))[0].flatten(1, 2), 25)
    assert found["previous"][:, 0].min() > 0.99 and found["induction"][:, 2].min() > 0.99
    for name, expected in (("previous", {0}), ("induction", {2}), ("duplicate", set())):
        assert {h for h in range(4) if found[name].mean(0)[h] > 0.1} == expected, name
        assert np.abs(found[name][:, [1, 3]]).max() < 1e-6, "idle heads are uniform: at chance"
    copied = copying(model, ids, CPU)
    assert copied[:, 2].min() == 1 and np.abs(copied[:, [0, 1, 3]] - 0.5).max() == 0


def test_a_head_that_favours_words_wherever_it_is_does_not_copy():
    """True for common words too; compared with a whole vocabulary that has rare ones, the head would seem to copy."""
    ids, model = repeated(n=64), induction_circuit()
    with torch.no_grad():
        attention = model.blocks[0].attention
        attention.qkv.weight[2 * 128 + 64 :, 96] = 1  # L0H1's values are one constant, which it writes to the output
        attention.out.weight[64:96, 64:] = torch.randn(32, 1, generator=torch.Generator().manual_seed(0)) ** 2
    copied = copying(model, ids, CPU)
    assert copied[:, 1].std() > 0 and copied[:, 1].mean() == pytest.approx(0.5, abs=0.01)


def test_the_circuit_predicts_the_second_copy_and_not_the_first():
    from picollm.mechanisms.intervention import baseline

    nats = baseline(induction_circuit(), torch.from_numpy(repeated()))
    assert nats[:, 1:24].mean() > 3 and nats[:, second_copy(25)].mean() < 0.1


@pytest.mark.parametrize("length", [25, 50])
def test_scores_by_their_definitions(length):
    n = 2 * length + 1
    maps = torch.from_numpy(np.stack([offset(n, 1), offset(n, length), offset(n, length - 1), uniform(n)])[None])
    found = offsets(maps, length)
    for h, name in enumerate(("previous", "duplicate", "induction")):
        assert found[name][0, h] == pytest.approx(1)
        others = [k for k in range(3) if k != h]
        assert (found[name][0, others] < 0).all() and found[name][0, 3] == pytest.approx(0, abs=1e-12)
    assert corrected(np.array(1.0), second_copy(length)) == 1


def counts_of(text_tokens=300, times=150):
    counts = np.zeros(VOCAB_SIZE, dtype=int)
    counts[1000 : 1000 + text_tokens] = times
    counts[END_OF_TEXT] = 10_000
    return counts


def test_sequences_are_two_equal_copies_of_common_tokens():
    ids = sequences(counts_of(), 50, seed=3)
    assert ids.shape == (SEQUENCES, 101) and (ids[:, 0] == END_OF_TEXT).all()
    assert np.array_equal(ids[:, 1:51], ids[:, 51:]) and ids[:, 1:].min() >= 1000 and ids[:, 1:].max() < 1300
    assert all(len(set(row[1:51])) == 50 for row in ids)
    assert np.array_equal(ids, sequences(counts_of(), 50, seed=3))
    assert not np.array_equal(ids, sequences(counts_of(), 50, seed=4))
    targets = ids[0, second_copy(50) + 1]
    assert np.array_equal(targets, ids[0, second_copy(50) - 50 + 1]), "what comes next stood there in the first copy"


def test_matched_sequences_prefer_what_the_text_prefers():
    counts = counts_of()
    counts[1000:1010] = 100_000
    even, matched = (np.isin(sequences(counts, 25, seed=0, matched=m), range(1000, 1010)).mean() for m in (False, True))
    assert matched > 3 * even


def test_lengths_fit_the_context_and_the_vocabulary():
    assert lengths(128, counts_of()) == [25, 50] and lengths(384, counts_of()) == [25, 50, 100, 150]
    assert lengths(50, counts_of()) == [24] and lengths(8, counts_of()) == [3]
    assert lengths(384, counts_of(60)) == [25, 50] and lengths(384, counts_of(7)) == [7]
    assert "a context of 384 tokens with 1 common tokens is too small for repeats" in refusal(
        lengths, 384, counts_of(1)
    )


def test_a_small_text_gives_its_commonest_tokens():
    counts = counts_of(100, times=150)
    counts[5000:6000] = np.arange(99, -1, -1).repeat(10)
    assert np.array_equal(common(counts), [*range(1000, 1100), *range(5000, 5200)])
    counts[2000:2400] = 100
    assert np.array_equal(common(counts), [*range(1000, 1100), *range(2000, 2400)])


def test_onset_is_where_a_head_begins_to_stay_above():
    above = np.array([[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1]], dtype=bool)
    assert onsets(above) == [1, 2, None, 0]


def test_a_mixture_scores_its_share():
    n = 51
    maps = torch.from_numpy((0.5 * offset(n, 24) + 0.5 * content_uniform(n))[None, None])
    assert offsets(maps, 25)["induction"][0, 0] == pytest.approx(0.5, abs=0.02)
