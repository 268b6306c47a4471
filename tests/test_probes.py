"""Probes: items are balanced, random heads score at chance, and real abilities are detected."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from refusals import refusal
from scipy.stats import ttest_1samp, ttest_rel

from picollm.data.ngram import NGrams
from picollm.data.tokenizer import END_OF_TEXT, encoding
from picollm.data.tokenizers import gpt2
from picollm.mechanisms.coreference import (
    baselines,
    best_by_chance,
    best_on_other_half,
    candidate_weights,
    clusters_of,
    coreference,
    prefers_gold,
    split_clusters,
    tokenised,
)
from picollm.mechanisms.intervention import baseline
from picollm.mechanisms.minimal_pairs import Continuations
from picollm.mechanisms.model_and_text import ModelAndText
from picollm.mechanisms.probes import metrics, probe_heads
from picollm.mechanisms.templates import GENDERS, NOUNS, pairs, references
from picollm.mechanisms.vocabulary import known_clusters, occurrences, rare_words
from picollm.model.transformer import ModelConfig, Transformer
from picollm.stats import above, accuracy, preferred

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items():
    return tokenised(references(), 128, gpt2())


def gold_of(items):
    return np.array([item.gold for item in items])


def test_items_are_many_and_balanced():
    found = references()
    assert len(found) >= 200 and len({r.text for r in found}) == len(found)
    for cluster in range(len(GENDERS)):
        inside = [r for r in found if r.cluster == cluster]
        assert len(inside) * len(GENDERS) == len(found)
        assert sum(r.gold for r in inside) * 2 == len(inside), "the first as often as the second"
    for r in found:
        words = [r.text[a:b] for a, b in (*r.candidates, r.pronoun)]
        assert words[2] in ("he", "she") and all(word.isalpha() for word in words)
        assert r.candidates[0] < r.candidates[1] < r.pronoun, "a causal model has seen both"
    used = [word for pair in GENDERS for word in pair]
    assert len(set(used)) == len(used), "no word is in both split_clusters"


def test_the_pronoun_fits_only_its_antecedent():
    he, she = map(set, zip(*GENDERS, strict=True))
    assert {"king", "uncle", "monk"} <= he and {"queen", "aunt", "nun"} <= she
    for r in references():
        antecedent, other = (r.text[slice(*r.candidates[k])] for k in (r.gold, 1 - r.gold))
        fits = he if r.text[slice(*r.pronoun)] == "he" else she
        assert antecedent in fits and other not in fits, r.text


def test_rules_without_language_are_at_chance(items):
    right = baselines(items, np.arange(50257), split_clusters(clusters_of(items), 1))
    found = {name: accuracy(right_I, clusters_of(items)) for name, right_I in right.items()}
    for name in ("the nearer", "the first", "the subject", "the more frequent in the training text"):
        assert found[name]["accuracy"] == 0.5, name
    assert found["uniform attention"]["accuracy"] == pytest.approx(0.5, abs=0.03)
    assert found["the best fixed offset"]["low"] < 0.55


def test_halves_share_no_word(items):
    cluster = clusters_of(items)
    first, gold = split_clusters(cluster, 3), gold_of(items)
    assert not set(cluster[first]) & set(cluster[~first]) and first.sum() * 2 == len(items)
    assert gold[first].mean() == 0.5 and not np.array_equal(first, split_clusters(cluster, 4))


def by_chance(items, seed):
    """56 heads that choose at random, item by item."""
    return np.random.default_rng(seed).random((len(items), 56, 2))


def by_affinity(items, seed):
    """56 heads that prefer some words, others after `she` than after `he`, without knowing their meaning."""
    generator = np.random.default_rng(seed)
    liking = generator.random((len(GENDERS), 2, 2, 56))  # of each pair's words, after either pronoun
    found = np.empty((len(items), 56, 2))
    for i, r in enumerate(references()):
        she = int(r.text[slice(*r.pronoun)] == "she")
        own = int(she)  # which word of the pair is the antecedent
        for c in (0, 1):
            found[i, :, c] = liking[r.cluster, own if c == r.gold else 1 - own, she]
    return found


@pytest.mark.parametrize("heads", [by_chance, by_affinity])
def test_heads_without_language_are_not_believed(items, heads):
    """The best head is far above half of the items, but neither the other half nor p is misled."""
    gold, cluster = gold_of(items), clusters_of(items)
    best, out, covered, p = [], [], [], []
    for seed in range(40):
        found = prefers_gold(heads(items, seed), gold)
        best.append(found.mean(0).max())
        chosen = accuracy(best_on_other_half(found, split_clusters(cluster, seed))[1], cluster)
        out.append(chosen["accuracy"])
        covered.append(chosen["low"] <= 0.5 <= chosen["high"])
        chance = best_by_chance(found, cluster, seed=seed)
        p.append((1 + (chance >= best[-1] - 1e-12).sum()) / (1 + len(chance)))
    assert np.mean(best) > 0.55 and np.mean(out) == pytest.approx(0.5, abs=0.03)
    assert np.mean(covered) >= 0.8
    assert np.mean(p) == pytest.approx(0.5, abs=0.15) and np.mean(np.array(p) < 0.05) < 0.2


def test_a_head_that_knows_is_found(items):
    gold, drawn = gold_of(items), by_chance(items, 0)
    knows = np.random.default_rng(1).random(len(items)) < 0.8
    drawn[:, 7] = np.where((gold == 0) == knows, 1, -1)[:, None] * [1, -1]
    names = [f"H{h}" for h in range(56)]
    found = coreference(drawn, items, np.arange(50257), names, rivals={"none": np.full(len(items), 0.5)}, seed=1)
    assert found["p_against_rivals"] < 0.001 and "none" in found["baselines"]
    assert found["chosen_on_one_half"]["heads"] == ["H7", "H7"] and found["best_of_all"]["head"] == "H7"
    assert found["chosen_on_one_half"]["accuracy"] == pytest.approx(knows.mean()) and found["best_of_all"]["p"] < 0.001
    assert found["best_of_all"]["best_by_chance_95"] < 0.65


def test_a_head_that_knows_is_found_though_all_heads_together_know_more(items):
    gold, generator = gold_of(items), np.random.default_rng(1)
    right = generator.random((len(items), 56)) < 0.8
    drawn = np.where((gold == 0)[:, None] == right, 1, -1)[..., None] * [1, -1]
    names = [f"H{h}" for h in range(56)]
    found = coreference(drawn, items, np.arange(50257), names, rivals={}, seed=1)
    assert found["mean_of_all_heads"]["accuracy"] > 0.99 > 0.9 > found["chosen_on_one_half"]["accuracy"]
    assert found["p_against_rivals"] < 0.001


def test_attention_is_read_at_the_pronoun(items):
    few = items[::40]
    model = tiny(3)
    found = candidate_weights(model, few, CPU)
    for n, item in enumerate(few):
        maps = model.attention_maps(torch.tensor([item.ids]))[0][0].flatten(0, 1)
        words = [encoding().decode(item.ids[a:b]).strip() for a, b in (*item.candidates, item.pronoun)]
        r = references()[::40][n]
        assert words == [r.text[a:b] for a, b in (*r.candidates, r.pronoun)]
        expected = [maps[:, slice(*item.pronoun), slice(*span)].sum(-1).mean(-1) for span in item.candidates]
        assert found[n] == pytest.approx(torch.stack(expected, -1).numpy(), abs=1e-6)


def test_ties_count_half():
    choice = np.array([[[1.0, 1.0]], [[2.0, 1.0]], [[1.0, 2.0]]])
    assert prefers_gold(choice, np.array([0, 0, 0]))[:, 0].tolist() == [0.5, 1.0, 0.0]
    assert prefers_gold(choice, np.array([1, 1, 1]))[:, 0].tolist() == [0.5, 0.0, 1.0]


def test_the_interval_is_over_clusters():
    cluster = np.repeat(np.arange(12), 10)
    one = np.random.default_rng(0).random(12) < 0.5
    found = accuracy(np.repeat(one, 10).astype(float), cluster)
    expected = ttest_1samp(one.astype(float), 0).confidence_interval()
    assert found["accuracy"] == pytest.approx(one.mean()) and (found["items"], found["clusters"]) == (120, 12)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert accuracy(np.ones(120), cluster)["low"] == 1


def test_too_few_clusters_are_refused():
    assert "coreference of 7 pairs of words: at least 8" in refusal(
        tokenised, [r for r in references() if r.cluster < 7], 128, gpt2()
    )
    few = [pair for pair in pairs()["agreement"] if pair.cluster < 7]
    assert "minimal pairs of 7 clusters: at least 8" in refusal(Continuations, few, gpt2())


def test_probes_without_gold_and_texts_beyond_the_context_are_refused():
    found = references()
    for gold in (None, 2):
        said = refusal(tokenised, [replace(found[0], gold=gold), *found[1:]], 128, gpt2())
        assert f"has gold {gold}; it must be 0 or 1" in said and found[0].text in said
    late = replace(found[0], pronoun=found[0].candidates[0], candidates=(found[0].candidates[1], found[0].pronoun))
    assert "the one of the two candidates before the pronoun" in refusal(tokenised, [late, *found[1:]], 128, gpt2())
    assert "the model's context is 12: raise tokens.context" in refusal(tokenised, found, 12, gpt2())


def test_pairs_are_many_and_balanced_within_clusters_of_equal_size():
    for kind, found in pairs().items():
        assert len(found) >= 100 and len(set(found)) == len(found), kind
        assert len(set(Counter(pair.cluster for pair in found).values())) == 1, kind
        for cluster in {pair.cluster for pair in found}:
            inside = [pair for pair in found if pair.cluster == cluster]
            good, bad = (Counter(getattr(pair, side) for pair in inside) for side in ("good", "bad"))
            assert good == bad, f"{kind}: a liking for some texts is right half of the time"


def test_a_pronoun_has_the_gender_of_its_antecedent():
    he, she = map(set, zip(*GENDERS, strict=True))
    for pair in pairs()["pronouns"]:
        good, bad = (text.split()[1] for text in (pair.good, pair.bad))
        assert (good in he and bad in she) if pair.target == " he" else (good in she and bad in he)


def test_the_verb_agrees_with_the_first_noun_and_not_with_the_second():
    plural = {forms[1] for forms in NOUNS}
    for pair in pairs()["agreement"]:
        words = pair.good.split()
        assert (words[1] in plural) != (words[-1] in plural) and words[1].rstrip("s") != words[-1].rstrip("s")
        assert (pair.target in (" were", " are", " have")) == (words[1] in plural)
        assert (words[1] in plural) != (pair.bad.split()[1] in plural), "the other text has the other number"
        assert not set(words) & {"was", "were", "is", "are", "has", "have"}, "nothing else to agree with"


@pytest.mark.parametrize("kind", list(pairs()))
def test_models_that_know_nothing_are_at_chance(kind):
    """The intervals of several untrained models nearly always contain one half."""
    found, inside = Continuations(pairs()[kind], gpt2()), []
    for seed in range(10):
        right_P = preferred(found.margins(partial(baseline, tiny(seed)), CPU))
        own = accuracy(right_P, found.cluster_P)
        inside.append(own["low"] <= 0.5 <= own["high"])
    assert sum(inside) >= 8


def tiny(seed):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(50257, 32, 16, 2, 2, 16, 0.0, True, 1e4, 64)).eval()


def test_margins_are_the_likelihoods_of_only_the_targets():
    chosen = pairs()["negation"][::7]
    found, encode = Continuations(chosen, gpt2()), encoding().encode_ordinary
    generator = np.random.default_rng(0)
    table = generator.random((60_000,))  # nats of a token, independent of what comes before

    def losses(ids, scored):
        return torch.from_numpy(table)[ids[:, 1:]] * scored

    assert found.margins(losses, CPU) == pytest.approx(np.zeros(len(chosen))), "how common a word is cancels out"

    def by_text(ids, scored):  # nats of a token times the number of tokens before it that are not the separator
        return losses(ids, scored) * (ids[:, :-1] != END_OF_TEXT).cumsum(1)

    def nats(text, target):
        return sum(table[token] * (len(encode(text)) + n) for n, token in enumerate(encode(target)))

    expected = [nats(p.bad, p.target) - nats(p.good, p.target) for p in chosen]
    assert np.any(expected) and found.margins(by_text, CPU) == pytest.approx(np.array(expected))
    many = found.margins(lambda *given: torch.stack([by_text(*given), 2 * by_text(*given)]), CPU)
    assert many.shape == (2, len(chosen)) and many[1] == pytest.approx(2 * many[0])
    assert preferred(np.array([1.0, 0.0, -1.0, 2.0])).tolist() == [1.0, 0.5, 0.0, 1.0]


def test_both_texts_of_an_inversion_have_the_same_words():
    for pair in pairs()["inversion"]:
        good, bad = (sorted(text.lower().replace("they", "").split()) for text in (pair.good, pair.bad))
        assert good == bad and pair.target.strip() in pair.words


def test_words_are_counted_whole_and_rare_ones_named():
    text = encoding().encode_ordinary(" The king and the duchess . A king , the king ; kingdom, duchess duchesses")
    rows = np.array([[END_OF_TEXT, *text]], dtype=np.uint16)
    assert [occurrences(rows, word, gpt2()) for word in ("king", "duchess", "queen")] == [3, 3, 0]
    rare = rare_words(np.tile(rows, (4, 1)), ["king", "queen", "duchess", "A"], gpt2())
    assert rare == {"queen": 0, "A": 4}
    assert known_clusters({0: ("king", "duchess"), 1: ("king", "queen"), 2: ("A",)}, rare) == [0]


def test_probes_of_words_that_the_text_lacks_are_not_tested():
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 1000, (8, 65)).astype(np.uint16)
    model = Transformer(ModelConfig(50257, 64, 16, 2, 2, 16, 0.0, True, 1e4, 64)).eval()
    cfg = {"windows": 4, "mean_windows": 4, "null_models": 1, "seed": 1}
    report = probe_heads(ModelAndText(model, rows, rows, cfg, CPU), "plain")
    for entry in (report["coreference"], *report["pairs"].values()):
        assert not entry["testable"] and not entry["shows"] and "8 are needed" in entry["because"]
    assert metrics(report) == {"testable": 0}
    json.dumps(report, allow_nan=False)


def test_above_is_a_paired_test():
    generator = np.random.default_rng(0)
    rival, cluster = generator.random(60), np.repeat(np.arange(12), 5)
    own = rival + 0.1 + 0.2 * generator.standard_normal(60)
    a, b = (x.reshape(12, 5).mean(1) for x in (own, rival))
    assert above(own, rival, cluster) == pytest.approx(ttest_rel(a, b, alternative="greater").pvalue)
    assert above(rival, rival, cluster) == 1 and above(rival + 1, rival, cluster) == 0.5**12


def test_ngrams_see_only_what_they_can():
    """A text in which `were` follows `churches` and `was` follows `church`: wrong for a verb after its attractor."""
    encode, rows = encoding().encode_ordinary, np.zeros((50, 129), dtype=np.uint16)
    text = [END_OF_TEXT]
    for one, many in NOUNS:
        for noun, verbs in ((one, " was is has"), (many, " were are have")):
            for verb in verbs.split():
                text += [*encode(f" {noun} {verb}")]
    rows[:] = np.resize(text, rows.shape)
    found = Continuations(pairs()["agreement"], gpt2())
    margin = found.by_ngrams(NGrams(rows, 50257))
    assert preferred(margin["unigram"]).mean() == pytest.approx(0.5, abs=0.01)
    assert preferred(margin["bigram"]).mean() < 0.2
