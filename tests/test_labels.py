import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refusal
from synthetic import column, content_uniform, offset, random_causal, rotating, uniform

from picollm.attention.analysis import analyse_maps
from picollm.attention.controls import (
    broad_share,
    no_controls,
    sharpened_models,
    untrained_models,
    without_separator,
)
from picollm.attention.controls import values_of as values_of_models
from picollm.attention.heads import describe_heads, heads_csv, metrics
from picollm.attention.key_sets import SETS, every_key_set, key_sets
from picollm.attention.labels import (
    LABELS,
    Thresholds,
    assign,
    assign_raw,
    counts,
    effective_thresholds,
    margins,
    percentiles_99,
    stability,
    tags,
)
from picollm.attention.maps import CategoryMaps, every_map, from_arrays, numbering
from picollm.attention.measures import NAMES, macro_mean, sentence_sums
from picollm.model.transformer import ModelConfig, Transformer

ROOT = Path(__file__).parents[1]
CONFIGURED = Thresholds(kappa=0.25, content=0.15, broad=0.8, sink=0.1)
HEADS = {
    "diagonal": lambda n, seed: 0.8 * offset(n, 0) + 0.2 * content_uniform(n),
    "local": lambda n, seed: 0.3 * offset(n, 1) + 0.5 * offset(n, 2) + 0.2 * content_uniform(n),
    "content-based": lambda n, seed: 0.8 * rotating(n, seed) + 0.2 * content_uniform(n),
    "global": lambda n, seed: content_uniform(n, sink=0.2),
    "sink": lambda n, seed: 0.95 * column(n, 0) + 0.05 * offset(n, 1),
}
BANDS = {"short": (7, 13), "middle": (13, 31), "long": (31, 61)}


def values_of(maps):
    found = macro_mean(sentence_sums(maps, [0] * len(maps), window=4))
    return {name: value[0] for name, value in found.items()}


def synthetic_maps(lengths, seed=0):
    lengths = np.random.default_rng(seed).integers(*lengths, 24)
    return [np.stack([head(n, 100 + s) for head in HEADS.values()]) for s, n in enumerate(lengths)]


def config(**changes):
    values = dict(vocab_size=300, context=64, d_model=56, n_layers=2, n_heads=7, d_ff=32, dropout=0.0, tied=True)
    return ModelConfig(**values | dict(rope_theta=10000.0, rope_cache=64) | changes)


@pytest.mark.parametrize("band", BANDS)
def test_synthetic_heads_get_their_label_at_every_length(band):
    found = assign(values_of(synthetic_maps(BANDS[band])), CONFIGURED)
    assert [LABELS[k] for k in found] == list(HEADS)


def test_the_raw_rule_depends_on_length_as_it_is_known_to():
    short, long = (values_of([uniform(n)[None]] * 3) for n in (7, 60))
    assert LABELS[assign_raw(short)[0]] == "local" and LABELS[assign_raw(long)[0]] == "global"
    assert LABELS[assign(short, CONFIGURED)[0]] == LABELS[assign(long, CONFIGURED)[0]] == "global"


def test_the_raw_rule_finds_the_plain_cases():
    maps = [np.stack([offset(30, 0), offset(30, 2), column(30, 0), content_uniform(30)])] * 2
    assert [LABELS[k] for k in assign_raw(values_of(maps))] == ["diagonal", "local", "token-specific", "global"]


def test_order_of_the_rule_and_its_thresholds():
    plain = dict(kappa_self=0.0, kappa_prev=0.0, kappa_local=0.0, content=0.0, broad=0.5, non_sink=0.9)
    cases = {
        "mixed": {},
        "global": dict(broad=0.8),
        "token-specific": dict(content=0.15, broad=0.8, kappa_rare=0.11),
        "content-based": dict(content=0.15, broad=0.8),
        "local": dict(kappa_local=0.25, content=0.15),
        "diagonal": dict(kappa_self=0.25),
        "sink": dict(kappa_self=0.25, non_sink=0.0999),
    }
    plain |= {f"kappa_{name}": np.nan if name == "coreference" else 0.0 for name in SETS}
    rows = [plain | changes for changes in cases.values()]
    values = {name: np.array([row[name] for row in rows]) for name in plain}
    assert [LABELS[k] for k in assign(values, CONFIGURED)] == list(cases)
    values["kappa_local"] = np.full(len(rows), np.nan)  # no sentence beyond the window: the other kappas decide
    assert LABELS[assign(values, CONFIGURED)[5]] == "diagonal"


def test_previous_token_tag():
    maps = [np.stack([offset(20, 1), offset(20, 3), offset(20, 0)])] * 2
    values = values_of(maps)
    assert tags(values, assign(values, CONFIGURED), CONFIGURED) == ["previous-token", None, None]
    values = values_of([offset(5, 1)[None]] * 3)  # too short for a local window
    assert np.isnan(values["kappa_local"]).all()
    assert tags(values, assign(values, CONFIGURED), CONFIGURED) == ["previous-token"]


@pytest.mark.parametrize("band", BANDS)
def test_a_head_that_is_partly_on_itself_is_diagonal_at_every_length(band):
    lengths = np.random.default_rng(1).integers(*BANDS[band], 24)
    maps = [np.stack([s * offset(n, 0) + (1 - s) * content_uniform(n) for s in (0.3, 0.5)]) for n in lengths]
    values = values_of(maps)
    labels = assign(values, CONFIGURED)
    assert [LABELS[k] for k in labels] == ["diagonal", "diagonal"]
    assert tags(values, labels, CONFIGURED) == [None, None]


def test_a_token_specific_head_is_tagged_with_the_set_of_keys_that_it_looks_for():
    text = "<|endoftext|> cat the cat , cat the owl dog the cat ,"
    ids, tokens = [0, 5, 9, 5, 7, 5, 9, 8, 6, 9, 5, 7], text.split()
    sets = dict(zip(SETS, key_sets(ids, tokens), strict=True))
    wanted = ("punctuation", "function-word", "duplicate", "after-duplicate")
    maps = [np.stack([looking(sets[name]) for name in wanted])] * 2
    values = macro_mean(sentence_sums(maps, [0, 0], window=1, keys=[key_sets(ids, tokens)] * 2))
    values = {name: value[0] for name, value in values.items()}
    for name, h in zip(wanted, range(4), strict=True):
        assert values[f"kappa_{name}"][h] == pytest.approx(1), name
    labels = assign({**values, "kappa_local": np.zeros(4), "content": np.ones(4)}, CONFIGURED)
    assert [LABELS[k] for k in labels] == ["token-specific"] * 4
    assert tags(values, labels, CONFIGURED) == list(wanted)
    low = {**values, **{f"kappa_{name}": np.full(4, 0.09) for name in SETS}, "kappa_local": np.zeros(4)}
    labels = assign({**low, "content": np.ones(4)}, CONFIGURED)
    assert [LABELS[k] for k in labels] == ["content-based"] * 4 and tags(low, labels, CONFIGURED) == [None] * 4


def looking(set_QK):
    """A head with all of its mass on the set if the row has one, and uniform elsewhere."""
    weights = content_uniform(len(set_QK))
    some = set_QK.sum(1) > 0
    weights[some] = set_QK[some] / set_QK[some].sum(1, keepdims=True)
    return weights


def test_margins_are_in_standard_deviations_of_the_bootstrap():
    found = dict(kappa_self=[0.45], kappa_prev=[0.0], kappa_local=[0.0], broad=[0.5], content=[0.1], non_sink=[0.9])
    found |= {f"kappa_{name}": [0.0] for name in SETS}
    drawn = {name: np.array([value, value]) for name, value in found.items()}
    drawn["kappa_self"] = np.array([[0.40], [0.50]])  # a standard deviation of 0.05
    drawn["broad"] = np.array([[0.4], [0.6]])
    values = {name: np.array(value) for name, value in found.items()}
    assert margins(values, drawn, np.array([LABELS.index("diagonal")]), CONFIGURED) == pytest.approx([4.0])
    assert margins(values, drawn, np.array([LABELS.index("mixed")]), CONFIGURED) == pytest.approx([3.0])
    assert np.isnan(margins(values, drawn, np.array([LABELS.index("sink")]), CONFIGURED)).all()


def test_thresholds_are_the_larger_of_configured_and_null():
    null, none = {"kappa_max": 0.4, "content": 0.01}, dict.fromkeys(NAMES, np.empty((0, 4)))
    found = effective_thresholds(CONFIGURED, null, none, 0.3)
    assert found == Thresholds(kappa=0.4, content=0.15, broad=0.8, sink=0.1)
    assert effective_thresholds(CONFIGURED, null, none, 0.5).kappa == 0.5
    assert effective_thresholds(CONFIGURED, dict.fromkeys(null, np.nan), none, 0.1) == CONFIGURED
    sharpened = {name: np.full((2, 4), 0.3) for name in NAMES}
    found = effective_thresholds(CONFIGURED, null, sharpened, 0.1)
    assert found.sets == dict.fromkeys(SETS, pytest.approx(0.3)) and found.content == 0.15 and found.kappa == 0.4


def test_stability_and_counts():
    labels = np.array([0, 3])
    replicates = np.array([[0, 3], [0, 5], [0, 3], [1, 3]])
    assert stability(labels, replicates).tolist() == [0.75, 0.75]
    assert counts(replicates).tolist()[1] == [1, 0, 0, 0, 0, 1, 0]
    assert (counts(replicates).sum(1) == 2).all()


LIKE = Transformer(config())


def some_ids(seed=0, sentences=12):
    generator = np.random.default_rng(seed)
    return [[0, *generator.integers(1, 300, generator.integers(6, 40))] for _ in range(sentences)]


def null_of(ids, category, models=2, seed=1):
    torch.set_num_threads(1)
    device = torch.device("cpu")
    untrained = untrained_models(LIKE, models=models, seed=seed)
    return values_of_models(untrained, ids, category, window=4, device=device)


def test_untrained_heads_are_global_and_leave_the_random_state_alone():
    ids, category = some_ids(), [0, 1] * 6
    state = torch.random.get_rng_state()
    null = null_of(ids, category)
    assert torch.equal(state, torch.random.get_rng_state())
    assert null["broad"].shape == (2, 14)
    assert (assign(null, CONFIGURED) == LABELS.index("global")).all()
    assert percentiles_99(null)["kappa_max"] < 0.1
    again = null_of(ids, category)
    assert all(np.array_equal(null[name], again[name], equal_nan=True) for name in null)
    first, second = (next(iter(m.parameters())) for m in untrained_models(Transformer(config()), models=2, seed=1))
    assert not torch.equal(first, second)


@pytest.mark.heavy
def test_untrained_heads_as_sharp_as_others_are_content_based_and_nothing_more():
    """The layers get the requested broad shares; the resulting heads have content, but no position or set of keys."""
    ids, category, device = some_ids(sentences=40), [0, 1] * 20, torch.device("cpu")
    tokens = [[f"word{i}" if i % 3 else "," for i in sequence] for sequence in ids]
    keys = [key_sets(*pair) for pair in zip(ids, tokens, strict=True)]
    wanted = np.repeat([0.3, 0.7], 7)
    models = list(sharpened_models(Transformer(config()), wanted, ids, models=3, seed=1, device=device))
    values = values_of_models(models, ids, category, keys=keys, window=4, device=device)
    assert values["broad"].reshape(3, 2, 7).mean(-1) == pytest.approx(np.tile([0.3, 0.7], (3, 1)), abs=0.06)
    others = sharpened_models(Transformer(config()), wanted, ids, models=3, seed=2, device=device)
    again = values_of_models(others, ids, category, keys=keys, window=4, device=device)
    thresholds = effective_thresholds(CONFIGURED, {"kappa_max": 0.0, "content": 0.0}, again, 0.0)
    labels = counts(assign(values, thresholds).ravel())
    assert labels[LABELS.index("content-based")] >= 38 and labels[LABELS.index("token-specific")] <= 2


def test_the_broad_share_of_logits_is_that_of_the_statistics():
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(2 * generator.standard_normal((2, 3, 9, 9)))
    maps = [m.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf")).softmax(-1).numpy() for m in logits]
    maps[1] = maps[1][:, :6, :6]
    sums = sentence_sums(maps, [0, 0], window=2)
    k = NAMES.index("broad")
    expected = sums.numerator[:, k].sum() / sums.denominator[:, k].sum()
    assert broad_share(logits, torch.tensor([9, 6])) == pytest.approx(expected)


def test_without_the_separator_the_first_word_stands_in_its_place():
    ids, category = [*some_ids(), [0, 5, 6]], [0] * 6 + [1] * 7
    torch.set_num_threads(1)
    (model,) = untrained_models(Transformer(config()), models=1, seed=3)
    found = without_separator(model, ids, category, window=4, device=torch.device("cpu"))
    maps = [model.attention_maps(torch.tensor([sequence[1:]]))[0][0].numpy() for sequence in ids]
    expected = macro_mean(sentence_sums(maps, category, window=4))
    for name, values in found.items():
        assert values == pytest.approx(expected[name][0], nan_ok=True), name


@pytest.fixture(scope="module")
def report():
    """Two categories of the synthetic heads, as a model of one layer."""
    categories, ids = [], []
    for name, seed in (("simple", 1), ("technical", 2)):
        maps = [m[None].astype(np.float32) for m in synthetic_maps((8, 40), seed)]
        found = [list(range(m.shape[-1])) for m in maps]
        tokens = [list(map(str, sequence)) for sequence in found]
        texts = [f"{name} {k}" for k in range(len(maps))]
        categories.append(CategoryMaps(name, name.title(), texts, found, tokens, [{}] * len(maps), maps))
        ids += found
    null = null_of(ids, [0] * 24 + [1] * 24)
    bare = values_of([weights for category in categories for weights in category.maps])
    return described(categories, null=null, bare=bare, bootstraps=200)


def described(categories, *, null, bare, bootstraps):
    keys = every_key_set(categories)
    sums = sentence_sums(every_map(categories), numbering(categories), window=4, keys=keys)
    controls = no_controls(sums.numerator.shape[-1])
    controls = replace(controls, null=null or controls.null, bare=bare)
    return describe_heads(
        categories, sums, controls, configured=CONFIGURED, window=4, bootstraps=bootstraps, seed=1,
    )  # fmt: skip


def test_census(report):
    assert [head["label"] for head in report["heads"]] == list(HEADS)
    assert [head["name"] for head in report["heads"]] == [f"L0H{h}" for h in range(5)]
    assert all(head["stability"] == 1 and not head["unstable"] for head in report["heads"])
    assert all(head["categories_agreeing"] == 2 for head in report["heads"])
    found = {label: entry["count"] for label, entry in report["labels"].items()}
    assert found == dict.fromkeys(HEADS, 1) | {"mixed": 0, "token-specific": 0}
    assert report["null"]["heads"] == 28 and sum(report["null"]["labels"].values()) == 28
    assert report["sample"]["sentences"] == 48 and report["sample"]["null_models"] == 2
    assert report["thresholds"]["kappa"] == {
        "value": 0.25,
        "configured": 0.25,
        "null_percentile_99": report["null"]["percentile_99"]["kappa_max"],
        "sharpened_percentile_99": None,
        "shuffled_percentile_99": report["thresholds"]["kappa"]["shuffled_percentile_99"],
        "source": "configured",
    }
    for head in report["heads"]:
        for entry in head["statistics"].values():
            assert entry["value"] is None or entry["low"] - 1e-6 <= entry["value"] <= entry["high"] + 1e-6
    json.dumps(report, allow_nan=False)


def test_table_and_metrics(report):
    rows = list(csv.DictReader(io.StringIO(heads_csv(report))))
    assert [row["label"] for row in rows] == list(HEADS)
    assert float(rows[0]["kappa_self"]) == report["heads"][0]["statistics"]["kappa_self"]["value"]
    flat = metrics(report)
    assert len(flat) <= 20 and all(isinstance(value, int | float) for value in flat.values())
    assert sum(flat[f"share_{label.replace('-', '_')}"] for label in LABELS) == pytest.approx(1)


@pytest.mark.heavy
def test_the_example_in_the_docs_takes_plain_arrays_and_names_the_one_that_is_none():
    example: dict = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs/heads.md").read_text(), re.S)[1], example)
    maps = [weights[None] for weights in synthetic_maps((8, 40))]
    before = [weights.copy() for weights in maps]
    ids = [list(range(weights.shape[-1])) for weights in maps]
    words = [[f"word{i}" for i in sequence] for sequence in ids]
    report, families, arrays = example["heads_of"](maps, ids, words)
    assert [head["label"] for head in report["heads"]] == list(HEADS)
    assert report["null"]["heads"] == 0 and report["separator"] is None
    assert all(np.array_equal(a, b) for a, b in zip(maps, before, strict=True))
    json.dumps([report, families], allow_nan=False)
    assert arrays["distance"].shape == (5, 5) and len(families["heads"]) == 5


def test_what_is_no_map_is_named():
    def told(place=None, value=None, **changes):
        given = {"maps": [offset(6, 1)[None, None]] * 4, "ids": [list(range(6))] * 4} | changes
        if place is not None:
            given["maps"] = [*given["maps"][:place], value, *given["maps"][place + 1 :]]
        return refusal(lambda: from_arrays(**given))

    weights = offset(6, 1)[None, None]
    assert told(3, np.where(weights > 0.5, np.nan, weights)) == "map 3 of all holds NaN or infinity"
    assert told(1, np.repeat(weights, 2, axis=1)) == "map 1 of all has (1, 2) layers and heads, the first has (1, 1)"
    assert told(2, weights[..., :5]).startswith("map 2 of all has shape (1, 1, 6, 5)")
    assert "0 maps, 0 lists of ids" in told(maps=[], ids=[])
    assert "4 maps, 3 lists of ids" in told(ids=[list(range(6))] * 3)
    assert told(tokens=[["a"]] * 4) == "map 0 of all has 1 words for 6 ids"
    short = told(maps=[np.array([[[[1.0, 0.0], [0.5, 0.5]]]])], ids=[[0, 1]])
    assert short == "map 0 of all has fewer than two tokens after the sink"


@pytest.mark.heavy
def test_a_head_of_nothing_but_sink_goes_through_the_whole_study():
    maps = [np.stack([column(n, 0), offset(n, 1), content_uniform(n)])[None] for n in (7, 9, 12, 15) * 3]
    category = from_arrays(maps, [list(range(m.shape[-1])) for m in maps])
    sections = {
        "heads": dict(kappa=0.25, content=0.15, broad=0.8, sink=0.1, window=4, bootstraps=100, seed=1),
        "clusters": dict(max_k=2, bootstraps=5, seed=1),
    }
    report, families, _ = analyse_maps([category], **sections)
    assert [head["label"] for head in report["heads"]] == ["sink", "local", "global"]
    assert report["heads"][0]["statistics"]["broad"]["value"] is None
    json.dumps([report, families], allow_nan=False)


def test_an_unstable_head_is_called_so():
    """A head at the threshold: its kappa is .255 on average, and sentences differ."""
    shares = np.linspace(0.005, 0.505, 20)
    maps = [(s * offset(20, 1) + (1 - s) * content_uniform(20))[None, None].astype(np.float32) for s in shares]
    ids = [list(range(20))] * 20
    category = CategoryMaps("simple", "Simple", [""] * 20, ids, [["x"] * 20] * 20, [{}] * 20, maps)
    null = {name: np.zeros((1, 4)) for name in values_of([random_causal((1, 9, 9), 0)])}
    report = described([category], null=null, bare=None, bootstraps=300)
    assert report["heads"][0]["unstable"] and 0 < report["heads"][0]["stability"] < 0.8
