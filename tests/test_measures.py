import numpy as np
import pytest
from synthetic import column, content_uniform, offset, random_causal, rotating, uniform

from picollm.attention.key_sets import SETS
from picollm.attention.measures import NAMES, by_name, by_offset, category_values, fit_kernel, macro_mean, sentence_sums
from picollm.stats import bootstrap_counts, interval

LENGTHS = (6, 7, 60)


def statistics(maps, category=None, window=4):
    """Returns macro-means as a dict of [H] arrays; each map is [n, n] or [H, n, n]."""
    maps = [m[None] if m.ndim == 2 else m for m in maps]
    values = macro_mean(sentence_sums(maps, category or [0] * len(maps), window=window))
    return {name: value[0] for name, value in values.items()}


def expect(found, **values):
    for name, value in values.items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("n", LENGTHS)
def test_uniform_attention_is_chance_at_every_length(n):
    T = n - 1  # content tokens
    for weights, W in (
        (content_uniform(n), 1.0),
        (content_uniform(n, sink=0.5), 0.5),
        (uniform(n), np.mean([i / (i + 1) for i in range(2, n)])),
    ):
        found = statistics([weights])
        local = 0.0 if T > 5 else np.nan  # no row reaches beyond the window
        assert found["kappa_local"][0] == pytest.approx(local, abs=1e-12, nan_ok=True)
        expect(found, kappa_self=0, kappa_prev=0, broad=1, positional=0, content=0, distance=1, non_sink=W)
    expect(statistics([uniform(n)]), kappa_sink=0)


def test_kappa_of_uniform_attention_is_zero_for_all_lengths():
    for n in (*range(3, 20), 33, 70, 129):
        found = statistics([uniform(n)], window=2)
        for name in ("kappa_self", "kappa_prev", "kappa_sink") + (("kappa_local",) if n > 4 else ()):
            assert abs(found[name][0]) < 1e-12


@pytest.mark.parametrize("n", LENGTHS)
def test_identity(n):
    found = statistics([offset(n, 0)])
    i = np.arange(2, n)
    expect(found, kappa_self=1, broad=0, distance=0, non_sink=1, raw_self=1, raw_local=1)
    expect(found, kappa_prev=-(1 / i).sum() / (1 - 1 / i).sum())


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("sink", [0.0, 0.7])
def test_previous_token(n, sink):
    found = statistics([offset(n, 1, sink)])
    i = np.arange(2, n)
    expect(found, kappa_prev=1, broad=0, non_sink=1 - sink)
    expect(found, distance=1 / np.mean((i - 1) / 2))
    if n > 6:
        expect(found, kappa_local=1)


@pytest.mark.parametrize("n", LENGTHS)
def test_sink(n):
    found = statistics([column(n, 0)])
    expect(found, kappa_sink=1, non_sink=0, raw_token=1)
    assert np.isnan([found[name][0] for name in ("kappa_self", "kappa_prev", "broad", "content", "distance")]).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_one_column(n):
    found = statistics([column(n, 1)])
    i = np.arange(2, n)
    expect(found, kappa_sink=-(1 / (i + 1)).sum() / (1 - 1 / (i + 1)).sum(), broad=0, distance=2, non_sink=1)


@pytest.mark.parametrize("n", LENGTHS)
def test_a_mixture_has_its_share_as_kappa_at_every_length(n):
    found = statistics([0.6 * offset(n, 1) + 0.4 * content_uniform(n)])
    expect(found, kappa_prev=0.6)
    if n > 6:
        expect(found, kappa_local=0.6)


def test_appending_rows_of_the_same_process_changes_nothing():
    short = [0.3 * offset(n, 0) + 0.7 * content_uniform(n) for n in (8, 12)]
    long = short + [0.3 * offset(n, 0) + 0.7 * content_uniform(n) for n in (30, 55)]
    assert statistics(short)["kappa_self"] == pytest.approx(statistics(long)["kappa_self"], abs=1e-12)
    short, long = [content_uniform(8)] * 2, [content_uniform(8), content_uniform(40)]
    assert statistics(short)["broad"] == pytest.approx(statistics(long)["broad"], abs=1e-12)


def test_raw_masses_against_brute_force():
    A, window = random_causal((3, 9, 9), seed=1), 2
    found = statistics([A], window=window)
    for h in range(3):
        near = [sum(A[h, i, j] for j in range(9) if 0 <= i - j <= window) for i in range(9)]
        assert found["raw_self"][h] == pytest.approx(np.mean([A[h, i, i] for i in range(9)]))
        assert found["raw_local"][h] == pytest.approx(np.mean(near))
        assert found["raw_token"][h] == pytest.approx(max(A[h, :, j].mean() for j in range(9)))


def test_corrected_masses_against_brute_force():
    sentences, window = [random_causal((2, n, n), seed=n, scale=2.0) for n in (9, 14)], 3
    found = statistics(sentences, window=window)
    for h in range(2):
        sums = {
            "kappa_self": [0, 0],
            "kappa_prev": [0, 0],
            "kappa_local": [0, 0],
            "broad": [0, 0],
        }
        for A in sentences:
            for i in range(2, A.shape[-1]):
                p = A[h, i, 1 : i + 1]
                w = p.sum()
                sets = {"kappa_self": [i], "kappa_prev": [i - 1]}
                if i > window + 1:
                    sets["kappa_local"] = range(i - window, i)
                for name, keys in sets.items():
                    m = len(keys)
                    sums[name][0] += sum(A[h, i, j] for j in keys) - w * m / i
                    sums[name][1] += w * (1 - m / i)
                sums["broad"][0] -= (p * np.log(p / w)).sum()
                sums["broad"][1] += w * np.log(i)
        for name, (numerator, denominator) in sums.items():
            assert found[name][h] == pytest.approx(numerator / denominator, abs=1e-12), name


def test_budget_sums_to_one_and_content_is_a_divergence():
    maps = [random_causal((4, n, n), seed=n, scale=2.0) for n in (5, 9, 16, 30)]
    sums = sentence_sums(maps, [0, 0, 1, 1], window=4)
    parts = {name: (sums.numerator[:, k], sums.denominator[:, k]) for k, name in enumerate(NAMES)}
    total = sum(parts[name][0] for name in ("broad", "positional", "content"))
    assert np.allclose(total, parts["broad"][1], atol=1e-12)
    assert (parts["content"][0] >= -1e-12).all()
    found = statistics(maps, [0, 0, 1, 1])
    assert found["broad"] + found["positional"] + found["content"] == pytest.approx(np.ones(4), abs=1e-12)


def test_budget_tells_position_from_content():
    position = statistics([offset(n, 1) for n in range(10, 40)])
    content = statistics([rotating(n, seed=n) for n in range(10, 40)])
    assert position["positional"][0] > 0.98
    assert content["content"][0] > 0.9


def test_content_of_gaussian_logit_noise_is_half_its_variance():
    s = 0.5  # C ~ s^2 / (2 ln i)
    maps = []
    for seed in range(60):
        weights = np.zeros((1, 40, 40))
        weights[0, 0, 0] = 1
        weights[0, 1:, 1:] = random_causal((39, 39), seed, scale=s)
        maps.append(weights)
    i = np.arange(2, 40)
    assert statistics(maps)["content"][0] == pytest.approx(s**2 / 2 * len(i) / np.log(i).sum(), rel=0.15)


def test_kernel_is_recovered_despite_the_causal_cut():
    true = 0.7 ** np.arange(39)
    maps = []
    for n in range(20, 40):
        weights = np.zeros((1, n, n))
        weights[0, 0, 0] = 1
        for i in range(1, n):
            weights[0, i, i:0:-1] = true[:i] / true[:i].sum()
        maps.append(weights)
    mass, weight = np.zeros((1, 39)), np.zeros((1, 39))
    for A in maps:
        i, O_HID = by_offset(A)
        mass[:, : O_HID.shape[2]] += O_HID.sum(1)
        weight[:, i] += O_HID.sum(2)
    assert fit_kernel(mass, weight)[0, :6] == pytest.approx(true[:6] / true.sum(), rel=0.02)
    assert statistics(maps)["content"][0] < 1e-3


def test_macro_mean_weighs_categories_alike_and_skips_the_silent():
    maps = [offset(30, 1)] * 9 + [content_uniform(30)] + [offset(4, 1)]
    found = statistics(maps, [0] * 9 + [1] + [2])
    assert found["kappa_prev"][0] == pytest.approx((1 + 0 + 1) / 3)
    assert found["kappa_local"][0] == pytest.approx(1 / 2)  # category 2 has no row beyond the window


def test_list_equals_pooled_singles_and_layers_only_flatten():
    maps = [random_causal((2, 3, n, n), seed=n) for n in (6, 11)]
    both = sentence_sums(maps, [0, 0], window=4)
    for s in range(2):
        alone = sentence_sums(maps[s : s + 1], [0], window=4)
        fitted = [NAMES.index(name) for name in ("positional", "content")]  # these need the other half
        for part, single in ((both.numerator, alone.numerator), (both.denominator, alone.denominator)):
            assert np.allclose(np.delete(part[s], fitted, 0), np.delete(single[0], fitted, 0), atol=1e-12)
    flat = sentence_sums([m.reshape(6, *m.shape[2:]) for m in maps], [0, 0], window=4)
    assert np.array_equal(both.numerator, flat.numerator)


def test_inputs_are_not_mutated():
    maps = [random_causal((2, 2, n, n), seed=n).astype(np.float32) for n in (6, 11)]
    before = [m.copy() for m in maps]
    sums = sentence_sums(maps, [0, 1], window=4)
    copy = sums.numerator.copy()
    macro_mean(sums, bootstrap_counts(sums.category, replicates=5, seed=0))
    assert all(np.array_equal(a, b) for a, b in zip(maps, before, strict=True))
    assert np.array_equal(sums.numerator, copy)


def test_very_short_sentences_are_silent():
    found = statistics([uniform(2), uniform(3), content_uniform(20)])
    expect(found, kappa_prev=0, broad=1)


def test_bootstrap_draws_within_categories_and_equals_resampling():
    maps = [random_causal((2, n, n), seed=n) for n in (6, 8, 10, 12, 14)]
    keys = [
        np.tri(len(m[0]), dtype=bool) & (np.arange(len(m[0])) % 3 == 1) & np.ones((len(SETS), 1, 1), bool) for m in maps
    ]
    sums = sentence_sums(maps, [0, 0, 0, 1, 1], window=2, keys=keys)
    counts = bootstrap_counts(sums.category, replicates=50, seed=3)
    assert (counts[:, :3].sum(1) == 3).all() and (counts[:, 3:].sum(1) == 2).all()
    assert np.array_equal(counts, bootstrap_counts(sums.category, replicates=50, seed=3))
    drawn = np.repeat(np.arange(5), counts[7].astype(int))
    numerator, denominator = (part[drawn] for part in (sums.numerator, sums.denominator))
    by_hand = np.mean(
        [numerator[sums.category[drawn] == c].sum(0) / denominator[sums.category[drawn] == c].sum(0) for c in (0, 1)],
        axis=0,
    )
    found = macro_mean(sums, counts)
    for name, value in by_name(by_hand).items():
        assert found[name][7] == pytest.approx(value, nan_ok=True), name
    assert len(list(category_values(sums))) == 2


@pytest.mark.heavy
def test_bootstrap_intervals_cover_the_truth():
    """400 heads of independent draws whose kappa_prev is .4 by construction, 10 categories of 12 sentences."""
    generator, heads = np.random.default_rng(5), 400
    maps, category = [], []
    for c in range(10):
        for n in generator.integers(8, 24, 12):
            share = np.clip(generator.normal(0.4, 0.15, heads), 0, 1)[:, None, None]
            maps.append(share * offset(n, 1) + (1 - share) * content_uniform(n))
            category.append(c)
    sums = sentence_sums(maps, category, window=2)
    replicates = macro_mean(sums, bootstrap_counts(sums.category, replicates=400, seed=0))["kappa_prev"]
    low, high = interval(replicates)
    assert 0.90 <= ((low <= 0.4) & (high >= 0.4)).mean() <= 0.98
