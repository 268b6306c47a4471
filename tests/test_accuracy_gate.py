"""The accuracy gate compared with SciPy and brute force."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from picollm.engine.accuracy_gate import LIMITS, compare_all, judge


def logits_of(table):
    """A backend that answers with fixed logits: row i of [n, T, V] for the ids whose first token is i."""
    return lambda ids, positions: table[ids[:, 0]][:, positions]


def compared(reference, found, targets):
    """Returns compare_all of two tables [n, T, V] at targets [n, T], and the same by SciPy."""
    n, length, _ = reference.shape
    rows = np.zeros((n, length + 1), dtype=np.uint16)
    rows[:, 0], rows[:, 1:] = np.arange(n), targets
    answers = {"reference": logits_of(reference), "other": logits_of(found)}
    return compare_all(answers, "reference", rows, batch=4)[0]["other"]


def tables(noise, seed=0, shape=(6, 4, 40)):
    draw = np.random.default_rng(seed)
    reference = draw.normal(size=shape).astype(np.float32)
    other = reference + draw.normal(scale=noise, size=shape).astype(np.float32)
    return reference, other, draw.integers(shape[-1], size=shape[:-1])


def test_accuracy_matches_scipy():
    reference, other, targets = tables(0.1)
    p, q = (scipy.special.softmax(x.astype(float), -1) for x in (reference, other))
    kl = scipy.stats.entropy(p, q, axis=-1)
    nats = [-np.log(np.take_along_axis(x, targets[..., None], -1)) for x in (p, q)]
    found = compared(reference, other, targets)
    assert found["tokens"] == targets.size
    assert found["mean_kl"] == pytest.approx(kl.mean(), rel=1e-4)
    assert found["max_kl"] == pytest.approx(kl.max(), rel=1e-4)
    assert found["p99_kl"] == pytest.approx(np.percentile(kl, 99), rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(nats[1].mean()), rel=1e-5)
    assert found["perplexity_difference"] == pytest.approx(np.exp((nats[1] - nats[0]).mean()) - 1, rel=1e-3)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem((nats[1] - nats[0]).ravel()), rel=1e-3)
    assert found["top1_agreement"] == np.mean(p.argmax(-1) == q.argmax(-1))
    behind = np.log(p.max(-1)) - np.log(np.take_along_axis(p, q.argmax(-1)[..., None], -1)[..., 0])
    assert found["top1_level"] == np.mean(behind <= 0.1) and found["top1_level"] > found["top1_agreement"]


def test_the_gate_passes_equal_logits_and_fails_wrong_ones():
    reference, _, targets = tables(0.0, seed=1, shape=(32, 2, 100))
    same = compared(reference, reference.copy(), targets)
    assert judge(same, "fp32") == [] and same["mean_kl"] < 1e-12
    shifted = compared(reference, reference + 3.0, targets)  # the same distribution
    assert judge(shifted, "fp32") == [] and shifted["mean_kl"] < 1e-12
    wrong = tables(0.3, seed=1, shape=(32, 2, 100))[1]
    assert any("mean KL" in words for words in judge(compared(reference, wrong, targets), "bf16"))
    broken = reference.copy()
    broken[3, 1, 5] = np.nan
    assert judge(compared(reference, broken, targets), "int8")


@pytest.mark.parametrize("precision", LIMITS)
def test_each_limit_is_a_limit(precision):
    limits = LIMITS[precision]
    exact = {"tokens": 10_000, "standard_error": 0.0, "mean_kl": limits.mean_kl, "top1_level": limits.top1,
             "perplexity_difference": -limits.perplexity}  # fmt: skip
    assert judge(exact, precision) == []
    assert "mean KL" in judge(exact | {"mean_kl": limits.mean_kl * 1.01}, precision)[0]
    assert "perplexity" in judge(exact | {"perplexity_difference": limits.perplexity * 1.01}, precision)[0]
    assert judge(exact | {"top1_level": limits.top1 - 1e-3}, precision)[0].startswith(
        "top token more than 0.1 nats off"
    )


def test_a_small_sample_may_change_one_top_token_and_no_more():
    found = {"tokens": 32, "mean_kl": 0.0, "perplexity_difference": 0.0, "standard_error": 0.0}
    assert judge(found | {"top1_level": 31 / 32}, "bf16") == []
    assert judge(found | {"top1_level": 30 / 32}, "bf16") == ["top token more than 0.1 nats off in 2 of 32"]
