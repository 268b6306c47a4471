"""The connection of two words beyond position and the words themselves, and what a head looks at: by plain loops."""

import numpy as np
import pytest
from synthetic import content_uniform, offset, random_causal

from picollm.attention.key_tokens import key_tokens
from picollm.attention.maps import from_arrays
from picollm.attention.relations import KINDS, best_head, effect, effects, kernel, marked, relations

GOLD = {"pronoun": (5, 6), "antecedent": (2, 4), "verb": (3, 4), "subject": (1, 2), "article": (4, 5), "noun": (4, 5)}


def test_the_later_word_of_a_pair_attends_to_the_earlier():
    found = marked([GOLD, {}, {"negation": (1, 2), "scope": (2, 5)}, {"scope": (1, 3), "negation": (4, 5)}])
    assert found["pronoun and antecedent"] == {0: (range(5, 6), range(2, 4))}
    assert found["subject and verb"] == {0: (range(3, 4), range(1, 2))}
    assert found["negation and scope"] == {2: (range(2, 5), range(1, 2)), 3: (range(4, 5), range(1, 3))}
    assert found["article and noun"] == {}, "one and the same position"


def test_an_effect_by_plain_loops():
    A, g = random_causal((2, 9, 9), seed=0, scale=2.0), np.random.default_rng(1).random((2, 9))
    found = effect(A, g, range(5, 7), range(2, 4))
    for h in range(2):

        def share(i, m, h=h):
            keys = range(1, m + 1)
            own = sum(A[h, i, j] for j in (2, 3)) / sum(A[h, i, k] for k in keys)
            return own - sum(g[h, i - j] for j in (2, 3)) / sum(g[h, i - k] for k in keys)

        pairs = [(i, other) for i in (5, 6) for other in (4, 7, 8)]
        assert found[h] == pytest.approx(np.mean([share(i, min(i, o)) - share(o, min(i, o)) for i, o in pairs]))


def test_a_head_that_likes_words_and_places_connects_nothing():
    """Softmax of a key's identity and position: a word gets less in a longer row, and no two words are connected."""
    generator = np.random.default_rng(0)
    liking, kernel_D = generator.random(12) * 5 + 0.1, np.ones((1, 12))
    weights = np.tri(12) * liking
    weights /= weights.sum(1, keepdims=True)
    assert effect(weights[None], kernel_D, range(4, 5), range(3, 4)) == pytest.approx(0, abs=1e-12)


def sentences(strength, n=24, seed=0):
    """One head connects the marked words with some strength; others look at the previous token or a preferred word."""
    generator, maps, golds = np.random.default_rng(seed), [], []
    for _ in range(n):
        length = int(generator.integers(10, 16))
        noun, verb = sorted(generator.choice(np.arange(2, length), 2, replace=False).tolist())
        connects = random_causal((length, length), seed=int(generator.integers(1 << 30)))
        connects[verb] *= 1 - strength
        connects[verb, noun] += strength
        likes = np.tri(length)
        likes[:, noun] *= 6
        likes /= likes.sum(1, keepdims=True)
        maps.append(np.stack([connects, 0.5 * offset(length, 1) + 0.5 * content_uniform(length), likes])[None])
        golds.append({"subject": (noun, noun + 1), "verb": (verb, verb + 1)})
    return maps, golds


def test_a_head_that_connects_is_found_and_one_that_likes_a_place_or_a_word_is_not():
    names = ["connects", "previous", "likes"]
    maps, golds = sentences(0.3)
    found = relations(maps, golds, names, [], seed=1)
    row = found["subject and verb"]
    assert row["head"] == "connects" and row["p"] < 0.01 and row["low"] > 0.1 and row["sentences"] == 24
    assert set(found) == set(KINDS) and found["pronoun and antecedent"]["p"] is None, "no sentence is marked so"
    only = [m[:, 1:] for m in maps]
    assert relations(only, golds, names[1:], [], seed=1)["subject and verb"]["p"] > 0.05


@pytest.mark.heavy
def test_p_is_uniform_where_nothing_connects():
    p = []
    for seed in range(60):
        maps, golds = sentences(0.0, seed=seed)
        p.append(relations([m[:, :1] for m in maps], golds, ["none"], [], seed=seed)["subject and verb"]["p"])
    assert np.mean(np.array(p) < 0.05) < 0.15 and np.mean(p) == pytest.approx(0.5, abs=0.12)


def test_the_best_of_many_heads_has_to_beat_the_best_by_chance():
    generator = np.random.default_rng(0)
    p = [best_head(generator.standard_normal((56, 24)), seed=s)[2] for s in range(60)]
    assert np.mean(np.array(p) < 0.05) < 0.15
    real = generator.standard_normal((56, 24))
    real[7] += 1.5
    assert best_head(real, seed=0)[0] == 7 and best_head(real, seed=0)[2] < 0.01


def test_too_few_sentences_are_no_test_and_untrained_heads_stand_beside():
    maps, golds = sentences(0.3, n=7)
    assert relations(maps, golds, ["a", "b", "c"], [], seed=1)["subject and verb"]["p"] is None
    maps, golds = sentences(0.3)
    null = [effects(*sentences(0.0, seed=5))]
    row = relations(maps, golds, ["a", "b", "c"], null, seed=1)["subject and verb"]
    assert row["null_strength"] < row["strength"] and row["null_p"] > 0.05
    assert effects([], []) == {kind: pytest.approx(np.empty((0, 0))) for kind in KINDS}


def test_the_kernel_of_a_positional_head_leaves_nothing():
    maps = [np.stack([offset(n, 1), content_uniform(n)])[None] for n in (8, 11, 14) * 4]
    g = kernel(maps)
    assert g[0].argmax() == 1 and g[0, 1] > 0.9
    found = effect(maps[2][0], g, range(5, 6), range(4, 5))
    assert abs(found[0]) < 0.1 and abs(found[1]) < 0.05


def test_heads_say_which_tokens_they_look_at():
    """One head has half of its mass on commas, one on `the`, one looks everywhere."""
    generator, maps, ids, tokens = np.random.default_rng(0), [], [], []
    for n in generator.integers(10, 18, 12):
        words = ["<|endoftext|>", "word", ",", "the", *generator.choice(["cat", ",", "the", "dog"], n - 4)]
        found = []
        for liked in (",", "the", None):
            weights = content_uniform(n)
            for i in range(1, n):
                keys = [j for j in range(1, i + 1) if words[j] == liked]
                if keys:
                    weights[i] *= 0.5
                    weights[i, keys] += 0.5 / len(keys)
            found.append(weights)
        maps.append(np.stack(found)[None])
        tokens.append(words)
        ids.append([["<|endoftext|>", "word", ",", "the", "cat", "dog"].index(word) for word in words])
    category = from_arrays(maps, ids, tokens)
    commas, the, everywhere = key_tokens([category], ["punctuation", "function-word", None])
    assert commas["looks_at"][0]["token"] == "," and the["looks_at"][0]["token"] == "the"
    assert 0.15 < commas["looks_at"][0]["share"] < 0.5
    assert commas["seen"][0] == "," and the["seen"][0] == "the" and everywhere["seen"] == []
    assert all(row["share"] < 0.05 for row in everywhere["looks_at"])
