import itertools
from functools import partial

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet
from scipy.spatial.distance import jensenshannon, pdist, squareform
from synthetic import column, content_uniform, offset, random_causal

from picollm.attention.clusters import (
    adjusted_rand,
    best_cut,
    best_k,
    by_layer,
    cophenetic_correlation,
    cut,
    describe_clusters,
    metrics,
    rand_test,
    silhouette,
    stability,
    tree,
)
from picollm.attention.distances import (
    distances,
    principal_coordinates,
    resampled_distances,
    sentence_divergences,
    split_half,
)
from picollm.attention.structure import structure
from picollm.errors import PicollmError


def distance(maps, category=None):
    (found,) = distances(sentence_divergences(maps, category or [0] * len(maps)))
    return found


def test_distance_against_scipy():
    maps, category = [random_causal((5, n, n), seed=n, scale=2.0) for n in (6, 9, 7)], [0, 0, 1]
    found = distance(maps, category)
    for g, h in itertools.product(range(5), repeat=2):
        means = []
        for c in (0, 1):
            total = weights = 0.0
            for A in (m for m, k in zip(maps, category, strict=True) if k == c):
                for i in range(2, A.shape[-1]):
                    w = min(A[g, i, 1:].sum(), A[h, i, 1:].sum())
                    p, q = (A[x, i, 1 : i + 1] / A[x, i, 1:].sum() for x in (g, h))
                    total += w * np.nan_to_num(jensenshannon(p, q, base=2)) ** 2
                    weights += w
            means.append(total / weights)
        assert found[g, h] == pytest.approx(np.sqrt(np.mean(means)), abs=1e-7)


def test_distance_with_the_sink_against_scipy():
    maps = [random_causal((4, n, n), seed=n, scale=2.0) for n in (6, 9)]
    (found,) = distances(sentence_divergences(maps, [0, 0], sink=True))
    for g, h in itertools.product(range(4), repeat=2):
        rows = [np.nan_to_num(jensenshannon(A[g, i], A[h, i], base=2)) ** 2 for A in maps for i in range(2, len(A[g]))]
        assert found[g, h] == pytest.approx(np.sqrt(np.mean(rows)), abs=1e-7)


def test_principal_coordinates_of_points_in_a_plane_are_the_points():
    points = np.random.default_rng(0).standard_normal((9, 2))
    distance_HH = np.linalg.norm(points[:, None] - points, axis=-1)
    found, shown = principal_coordinates(distance_HH)
    assert np.linalg.norm(found[:, None] - found, axis=-1) == pytest.approx(distance_HH) and shown == pytest.approx(1)
    assert np.array_equal(found, principal_coordinates(distance_HH)[0])
    flat, shown = principal_coordinates(1 - np.eye(4))  # a simplex: two of its three equal directions
    assert flat.shape == (4, 2) and shown == pytest.approx(2 / 3)
    assert principal_coordinates(np.zeros((3, 3)))[1] == 0


def test_distance_of_plain_heads():
    n = 12
    maps = [np.stack([offset(n, 0), offset(n, 1), offset(n, 1, sink=0.6), content_uniform(n), column(n, 0)])]
    found = distance(maps)
    assert np.array_equal(found, found.T) and (np.diag(found) == 0).all()
    assert found[0, 1] == pytest.approx(1)  # no key in common
    assert found[1, 2] == pytest.approx(0, abs=1e-7)  # the sink is not part of the pattern
    assert 0 < found[0, 3] < 1
    assert (found[4, :4] == 1).all()  # all on the sink: nothing to compare


def test_layers_only_flatten_and_inputs_stay():
    maps = [random_causal((2, 3, n, n), seed=n).astype(np.float32) for n in (2, 6, 9)]
    before = [m.copy() for m in maps]
    flat = distance([m.reshape(6, *m.shape[2:]) for m in maps])
    assert np.array_equal(distance(maps), flat)
    assert all(np.array_equal(a, b) for a, b in zip(maps, before, strict=True))


ULTRAMETRIC = np.array(
    [
        [0.0, 0.1, 0.6, 0.6, 0.9],
        [0.1, 0.0, 0.6, 0.6, 0.9],
        [0.6, 0.6, 0.0, 0.2, 0.9],
        [0.6, 0.6, 0.2, 0.0, 0.9],
        [0.9, 0.9, 0.9, 0.9, 0.0],
    ]
)


def test_a_tree_of_an_ultrametric_is_the_ultrametric():
    matrix = tree(ULTRAMETRIC)
    assert np.allclose(squareform(cophenet(matrix)), ULTRAMETRIC)
    assert cophenetic_correlation(ULTRAMETRIC, matrix) == pytest.approx(1)
    assert adjusted_rand(cut(matrix, 3), np.array([0, 0, 1, 1, 2])) == 1
    assert adjusted_rand(cut(matrix, 2), np.array([0, 0, 0, 0, 1])) == 1


def test_cophenetic_correlation_against_scipy():
    found = distance([random_causal((9, 12, 12), seed=4, scale=2.0)])
    for method in ("average", "single", "complete", "ward"):
        matrix = tree(found, method)
        assert cophenetic_correlation(found, matrix) == pytest.approx(cophenet(matrix, squareform(found))[0])
    assert np.isnan(cophenetic_correlation(1 - np.eye(4), tree(1 - np.eye(4))))


def test_silhouette_against_its_definition():
    found = distance([random_causal((7, 10, 10), seed=2, scale=2.0)])
    clusters = np.array([1, 1, 2, 2, 2, 3, 1])
    scores = []
    for h in range(7):
        mates = [g for g in range(7) if g != h and clusters[g] == clusters[h]]
        if not mates:
            scores.append(0.0)
            continue
        a = np.mean([found[h, g] for g in mates])
        b = min(np.mean(found[h, clusters == c]) for c in {1, 2, 3} - {clusters[h]})
        scores.append((b - a) / max(a, b))
    assert silhouette(found, clusters) == pytest.approx(np.mean(scores))


def test_adjusted_rand_against_its_pair_definition():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 3, 20), generator.integers(0, 4, 20)
    pairs = list(itertools.combinations(range(20), 2))
    same_a, same_b = (np.array([x[i] == x[j] for i, j in pairs]) for x in (a, b))
    n11, n10, n01, n00 = ((same_a == p) & (same_b == q) for p, q in itertools.product((1, 0), repeat=2))
    n11, n10, n01, n00 = (int(n.sum()) for n in (n11, n10, n01, n00))
    expected = 2 * (n00 * n11 - n01 * n10) / ((n00 + n01) * (n01 + n11) + (n00 + n10) * (n10 + n11))
    assert adjusted_rand(a, b) == pytest.approx(expected)
    assert adjusted_rand(a, (a + 1) % 3) == 1
    assert adjusted_rand(np.zeros(5), np.zeros(5)) == 1


def test_permutation_p():
    a = np.repeat([0, 1, 2], 6)
    assert rand_test(a, a, permutations=199, seed=0) == (1, 1 / 200)
    assert rand_test(a, np.tile([0, 1, 2], 6), permutations=199, seed=0)[1] > 0.5


def family_maps(sentences=12, heads=4):
    """Three clear families of heads, with independent noise in every sentence."""
    generator, maps = np.random.default_rng(3), []
    for n in generator.integers(8, 20, sentences):
        patterns = [f(n) for f in (lambda n: offset(n, 0), lambda n: offset(n, 2), content_uniform)]
        noise = random_causal((3 * heads, n, n), seed=int(generator.integers(1 << 30)), scale=1.5)
        maps.append(0.8 * np.repeat(patterns, heads, axis=0) + 0.2 * noise)
    return maps


def test_three_families_are_found_and_stable():
    divergences = sentence_divergences(family_maps(), [0, 1] * 6)
    (found,) = distances(divergences)
    matrix = tree(found)
    k, scores = best_k(found, matrix, max_k=6)
    assert k == 3 and set(scores) == {2, 3, 4, 5, 6}
    clusters = cut(matrix, k)
    assert adjusted_rand(clusters, np.repeat([0, 1, 2], 4)) == 1
    again = np.stack([cut(tree(d), 3) for d in resampled_distances(divergences, replicates=20, seed=0)])
    found = stability(clusters, again, seed=0)
    assert [own for own, _ in found.values()] == [1.0] * 3 and all(chance < 0.6 for _, chance in found.values())


def test_clusters_of_noise_are_unstable():
    maps = [random_causal((10, n, n), seed=n, scale=1.0) for n in range(8, 20)]
    divergences = sentence_divergences(maps, [0] * 12)
    (found,) = distances(divergences)
    clusters = cut(tree(found), 4)
    again = np.stack([cut(tree(d), 4) for d in resampled_distances(divergences, replicates=20, seed=0)])
    assert min(own for own, _ in stability(clusters, again, seed=0).values()) < 0.75


def test_a_cluster_of_nearly_all_heads_is_stable_by_chance():
    clusters = np.array([1] * 55 + [2])
    own, chance = stability(clusters, np.tile(clusters, (20, 1)), seed=0)[1]
    assert own == 1 and chance > 0.95


def cloud(sizes, apart, seed=0):
    """Draws points in ten dimensions, in groups that are `apart` standard deviations from each other."""
    generator = np.random.default_rng(seed)
    centres = apart * generator.standard_normal((len(sizes), 10)) / np.sqrt(10)
    return np.concatenate(
        [centre + generator.standard_normal((n, 10)) for centre, n in zip(centres, sizes, strict=True)]
    )


def shape_of(points, seed=0):
    distance_HH = squareform(pdist(points))
    coordinates, _ = principal_coordinates(distance_HH, len(points))
    return structure(distance_HH, coordinates, partial(best_cut, max_k=6), seed=seed)


@pytest.mark.heavy
def test_no_clusters_is_an_answer(monkeypatch):
    monkeypatch.setattr("picollm.attention.structure.DRAWS", 99)
    assert shape_of(cloud([20, 18, 18], apart=12))["found"]
    stretched = cloud([56], apart=0) * np.linspace(6, 0.5, 10)
    assert not shape_of(stretched)["found"], "a long cloud can be cut in two, and is one all the same"
    outlier = cloud([56], apart=0)
    outlier[0] += 30
    found = shape_of(outlier)
    assert not found["found"] and any("3 heads or more" in reason for reason in found["because"])
    p = [shape_of(cloud([30], apart=0, seed=s), seed=s)["p"] for s in range(10)]
    assert np.mean(np.array(p) < 0.05) <= 0.2, "one cloud is seldom called two"


def test_many_sentences_are_kept_in_groups_and_are_as_far_apart(monkeypatch):
    maps, category = family_maps(), [0, 1] * 6
    (every,) = distances(sentence_divergences(maps, category))
    monkeypatch.setattr("picollm.attention.distances.MOST", 4)
    grouped = sentence_divergences(maps, category)
    assert grouped.category.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_allclose(next(distances(grouped)), every, atol=1e-12)


def test_distances_by_layer():
    layer = np.repeat(np.arange(4), 4)
    generator = np.random.default_rng(0)
    points = generator.standard_normal((16, 5))
    alike = squareform(pdist(points))
    tied = squareform(pdist(points + 6 * np.eye(5)[layer]))
    found = {name: by_layer(d, np.stack([d, d]), layer, seed=0) for name, d in (("alike", alike), ("tied", tied))}
    first, second = np.triu_indices(16, 1)
    same = layer[first] == layer[second]
    expected = tied[first, second][same].mean() / tied[first, second][~same].mean()
    assert found["tied"]["ratio"] == pytest.approx(expected, abs=1e-6) and found["tied"]["p"] == 0.001
    assert found["alike"]["p"] > 0.05 and found["alike"]["low"] == found["alike"]["ratio"]
    assert by_layer(alike, alike[None], np.zeros(16), seed=0) is None
    assert by_layer(alike, alike[None], np.arange(16), seed=0) is None


def test_split_half_is_the_difference_of_the_two_halves():
    maps = family_maps(sentences=6)
    difference, correlation = split_half(sentence_divergences(maps, [0] * 6))
    even, odd = (squareform(distance(half), checks=False) for half in (maps[::2], maps[1::2]))
    assert difference == pytest.approx(np.abs(even - odd).mean())
    assert correlation == pytest.approx(np.corrcoef(even, odd)[0, 1]) and correlation > 0.9


@pytest.mark.heavy
def test_report_of_the_families():
    divergences = sentence_divergences(family_maps(), [0, 1] * 6)
    names = ["diagonal", "local", "global"]
    heads = [{"name": f"L{h // 6}H{h % 6}", "layer": h // 6, "label": names[h // 4]} for h in range(12)]
    whole = sentence_divergences(family_maps(), [0, 1] * 6, sink=True)
    report, arrays = describe_clusters(divergences, whole, heads=heads, max_k=5, bootstraps=10, seed=1)
    assert report["k"] == 3 and [c["stable"] for c in report["clusters"]] == [True] * 3
    assert sorted(len(c["labels"]) for c in report["clusters"]) == [1, 1, 1]
    assert report["agreement"]["labels"] == {
        "adjusted_rand": 1.0, "low": 1.0, "high": 1.0, "p": 0.001, "permutations": 999,
    }  # fmt: skip
    assert sorted(report["order"]) == sorted(head["name"] for head in heads)
    assert report["order"] == [heads[h]["name"] for h in arrays["order"]]
    in_order = [report["heads"][h]["cluster"] for h in arrays["order"]]
    assert in_order == sorted(in_order)
    assert len(metrics(report)) <= 20
    with pytest.raises(PicollmError, match="run `snakemake --cores all -R classify_heads`"):
        describe_clusters(divergences, whole, heads=heads[:-1], max_k=5, bootstraps=10, seed=1)


def test_too_few_heads():
    with pytest.raises(PicollmError, match="at least 3"):
        best_k(np.zeros((2, 2)), tree(np.array([[0, 1.0], [1.0, 0]])), max_k=5)
