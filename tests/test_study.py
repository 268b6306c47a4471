"""The full study of a small model: every part exists, agrees with its own function, and is computed once."""

import json
import os
import shutil
import subprocess
import sys
import time
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control
from workspace import ROOT

from picollm.attention.extraction import attention_maps
from picollm.attention.labels import Thresholds, strongest_kappa
from picollm.attention.maps import from_arrays
from picollm.attention.measures import macro_mean, sentence_sums
from picollm.data.tokenizer import VOCAB_SIZE
from picollm.mechanisms import probes
from picollm.mechanisms.ablation import ablate_heads
from picollm.mechanisms.attribution import attribution
from picollm.mechanisms.context import context_curve, target_places
from picollm.mechanisms.emergence import SAMPLE, STATISTICS, trace_emergence
from picollm.mechanisms.intervention import KINDS, baseline, each_head, without
from picollm.mechanisms.model_and_text import ModelAndText, spread
from picollm.mechanisms.redundancy import interactions
from picollm.mechanisms.study import by_category, full_study, groups_of
from picollm.model.transformer import ModelConfig, Transformer
from picollm.report.study_page import study_page

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def open_model_and_text(seed=1):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(VOCAB_SIZE, 16, 16, 2, 2, 8, 0.0, True, 1e4, 32)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(20)
            block.attention.out.weight.mul_(50)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 1000, (12, 17)).astype(np.uint16)
    cfg = {"windows": 4, "mean_windows": 6, "null_models": 1, "seed": seed}
    return ModelAndText(model, rows[:8], rows[8:], cfg, CPU)


def heads_and_clusters():
    labels = ["local", "global", "global", "local"]
    heads = {"heads": [{"label": label} for label in labels]}
    return heads, {"heads": [{"cluster": c} for c in (1, 1, 1, 2)], "structure": {"found": True}}


def category(s, name="questions"):
    ids = [list(range(5, 5 + n)) for n in (7, 4, 9)]
    maps = [s.model.attention_maps(torch.tensor([sequence]))[0][0].numpy() for sequence in ids]
    return from_arrays(maps, ids, category=name)


def run(s, folder):
    heads, clusters = heads_and_clusters()
    return full_study(s, [category(s)], heads, clusters, folder, code="1")


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}


@pytest.fixture(scope="module", autouse=True)
def fewer_pairs():
    """Uses every sixth pair of a cluster; test_probes.py counts the real ones."""
    few = {kind: sorted(found, key=lambda pair: pair.cluster)[::6] for kind, found in probes.pairs().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "pairs", lambda: few)
        patch.setattr(
            probes, "rare_words", lambda rows, words, tokenizer: {"album": 0}
        )  # the text here consists of random tokens
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder):
    return run(open_model_and_text(), folder)


def test_the_study_has_its_parts_and_does_none_of_them_twice(study, folder, tmp_path):
    s, found = open_model_and_text(), study
    shutil.copytree(folder / "parts", tmp_path / "parts")
    json.dumps(found, allow_nan=False)
    assert set(found["kinds"]) == set(KINDS)
    alone = ablate_heads(s)
    assert found["kinds"]["mean"]["heads"] == [
        {name: value for name, value in head.items() if name != "on"} for head in alone["heads"]
    ]
    assert found["interactions"] == alone["interactions"], "four heads: all of them are among the ten strongest"
    assert set(found["context"]["tokens"]) == {"1", "4", "all"}
    heads = found["pairs"]["negation"]["heads"]
    assert [head["q"] for head in heads] == pytest.approx(false_discovery_control([head["p"] for head in heads]))
    assert set(found["rank_correlation_with_mean"]) == set(KINDS) - {"mean"}
    assert [row["group"] for row in found["groups"]] == ["class local", "class global", "cluster 1"]
    assert set(found["pairs"]) == {"agreement", "negation", "inversion", "pronouns"}
    q = [row["q"] for row in found["groups"] if 3 * row["least_p"] < 0.05]
    tested = [row["p"] for row in found["groups"] if 3 * row["least_p"] < 0.05]
    assert q == (pytest.approx(false_discovery_control(tested)) if tested else [])
    assert all(row["q"] is None for row in found["groups"] if 3 * row["least_p"] >= 0.05), "too few other sets"
    before = times(tmp_path)
    assert run(s, tmp_path) == found and times(tmp_path) == before
    (tmp_path / "parts/zero.json").unlink()
    assert run(s, tmp_path) == found
    assert {name for name, at in times(tmp_path).items() if before.get(name) != at} == {"zero.json"}


def test_of_other_settings_labels_or_code_no_part_is_kept(folder, study, tmp_path):
    heads, clusters = heads_and_clusters()
    swapped = {"heads": heads["heads"][::-1][1:] + heads["heads"][:1]}
    shutil.copytree(folder / "parts", tmp_path / "parts")
    path = tmp_path / "parts/zero.json"
    for given in ({"s": open_model_and_text(seed=2)}, {"heads": swapped}, {"code": "2"}):
        s = open_model_and_text()
        given = {"s": s, "categories": [category(s)], "heads": heads, "clusters": clusters, "code": "1"} | given
        shutil.copy(folder / "parts/zero.json", path)
        before = json.loads(path.read_text())["key"]
        full_study(folder=tmp_path, **given)
        assert json.loads(path.read_text())["key"] != before


def test_the_page_says_what_the_study_found(study):
    page = study_page(ROOT / "picollm/report/study.md.j2", study)
    top = max(study["kinds"]["mean"]["heads"], key=lambda head: head["delta"])
    assert f"| {top['name']} | {study['classes'][top['name']]} | {top['delta']:+.4f} (" in page
    assert all(f"| {row['group']} | {row['heads']} |" in page for row in study["groups"])
    assert all(f"| {kind} |" in page for kind in (*KINDS, *study["pairs"], *study["categories"]))
    nothing = deepcopy(study)
    for head in nothing["categories"]["questions"]["heads"]:
        head["q"] = 0.5
    assert "| questions | 3 | none: this category shows nothing | – |" in study_page(
        ROOT / "picollm/report/study.md.j2", nothing
    )
    for low, said in ((0.5, True), (0.51, False)):
        nothing["pairs"]["agreement"]["whole_model"] |= {"low": low}
        page = study_page(ROOT / "picollm/report/study.md.j2", nothing)
        (row,) = (line for line in page.splitlines() if line.startswith("| agreement |"))
        assert ("the model shows nothing" in row) is said


def test_groups_are_classes_and_clusters_of_several_heads_but_not_all():
    s, (heads, clusters) = open_model_and_text(), heads_and_clusters()
    found = groups_of(s, heads, clusters)
    assert {name: mask.astype(int).tolist() for name, mask in found.items()} == {
        "class local": [[1, 0], [0, 1]],
        "class global": [[0, 1], [1, 0]],
        "cluster 1": [[1, 1], [1, 0]],
    }


def test_padding_changes_nothing_of_a_sentence():
    s = open_model_and_text()
    found, alone = by_category(s, category(s)), []
    for ids in category(s).ids:
        one = torch.tensor([ids])
        alone.append((each_head(s.model, one, "mean", s.means) - baseline(s.model, one)).mean((1, 2)).numpy())
    expected = np.mean(alone, axis=0)
    assert [head["name"] for head in found["heads"]] == s.names and found["sentences"] == 3
    assert [head["delta"] for head in found["heads"]] == pytest.approx(expected, abs=2e-6)


def test_emergence_of_no_and_of_one_snapshot():
    s = open_model_and_text()
    null = dict.fromkeys(STATISTICS, 0.0)
    labels = Thresholds(0.25, 0.15, 0.8, 0.1)
    none = trace_emergence(s, [], [category(s)], null, labels, window=4)
    assert none["snapshots"] == [] and none["onset"]["induction"] == [None] * 4
    one = trace_emergence(s, [(7, s.model)], [category(s)], null | {"kappa_sink": 1.0}, labels, window=4)
    json.dumps(one, allow_nan=False)
    (row,) = one["snapshots"]
    assert row["step"] == 7 and row["loss"] == pytest.approx(ablate_heads(s)["loss"], abs=1e-4)
    curve = context_curve(s.model, s.validation, seed=1, device=CPU)
    costs = {str(found["tokens"]): found["cost"] for found in curve["curve"] if found["tokens"] in (1, 4)}
    assert row["context_cost"] == pytest.approx(costs, abs=1e-5)
    broad = macro_mean(sentence_sums_of(s))["broad"][0]
    assert sum(row["mean"][name] for name in ("broad", "positional", "content")) == pytest.approx(1, abs=1e-6)
    assert row["mean"]["broad"] == pytest.approx(broad.mean(), abs=1e-6)
    assert one["onset"]["kappa_sink"] == [None] * 4 and row["effects"]["kappa_sink"] == 0
    expected = strongest_kappa({name: v[0] for name, v in macro_mean(sentence_sums_of(s)).items()})
    assert row["heads"]["kappa_max"] == pytest.approx(np.nan_to_num(expected), abs=1e-6)


def test_the_curve_of_context_by_brute_force():
    s = open_model_and_text()
    found = context_curve(s.model, s.validation, seed=3, device=CPU)
    place_WN = target_places(len(s.validation), 16, 3)
    assert (place_WN > 11).all() and (place_WN <= 16).all() and found["targets"] == place_WN.size
    ids = torch.from_numpy(s.validation.astype(np.int64))

    def nats(w, p, start):
        with torch.no_grad():
            logits = s.model(ids[w : w + 1, start:p])[0, -1]
        return (logits.logsumexp(-1) - logits[ids[w, p]]).item()

    whole = np.mean([[nats(w, p, 0) for p in place_WN[w]] for w in range(4)])
    assert found["loss"] == pytest.approx(whole, abs=1e-5)
    assert [row["tokens"] for row in found["curve"]] == [1, 2, 4, 8]
    for row in found["curve"]:
        kept = np.mean([[nats(w, p, p - row["tokens"]) for p in place_WN[w]] for w in range(4)])
        assert row["cost"] == pytest.approx(kept - whole, abs=1e-5) and row["low"] <= row["cost"] <= row["high"]


def test_interactions_by_brute_force():
    s = open_model_and_text()
    found = interactions(s, [0, 1, 3])
    ids = torch.from_numpy(s.validation.astype(np.int64))

    def loss(*heads):
        mask = torch.zeros(4, dtype=torch.bool)
        mask[list(heads)] = True
        return without(s.model, ids, mask.view(2, 2), s.means)[:, 7::8].double().mean(-1).numpy()

    both = {
        f"{s.names[a]} {s.names[b]}": (loss(a, b) - loss(a) - loss(b) + loss()).mean()
        for a, b in ((0, 1), (0, 3), (1, 3))
    }
    assert {row["name"]: row["delta"] for row in found["largest"]} == pytest.approx(both, abs=2e-6)
    assert found["mean"]["value"] == pytest.approx(np.mean(list(both.values())), abs=2e-6) and found["pairs"] == 3


def test_the_logit_lens_and_the_direct_parts_by_brute_force():
    s = open_model_and_text()
    layers, direct_HW = attribution(s)
    ids = torch.from_numpy(s.windows.astype(np.int64))
    assert layers[-1]["value"] == pytest.approx(baseline(s.model, ids)[:, 3::4].mean().item(), abs=1e-5)
    x, *rotary = s.model.start(ids[:, :-1])
    first = s.model.logits(s.model.norm(x)).log_softmax(-1).gather(-1, ids[:, 1:, None])[:, 3::4]
    assert layers[0]["value"] == pytest.approx(-first.mean().item(), abs=1e-5) and len(layers) == 3
    # If only heads write, their contributions to the logits are the logits, except for the embedding's part.
    with torch.no_grad():
        for block in s.model.blocks:
            block.mlp.down.weight.zero_()
    _, direct_HW = attribution(s)
    hidden = x
    for block in s.model.blocks:
        hidden = block(hidden, *rotary)
    scale = (hidden.var(-1, unbiased=False) + s.model.norm.eps).sqrt()
    centred = (hidden - x) - (hidden - x).mean(-1, keepdim=True)
    logits = (centred * s.model.norm.weight) @ s.model.head.weight[:VOCAB_SIZE].T / scale[..., None]
    own = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.mean(-1)
    assert direct_HW.sum(0) == pytest.approx(own.mean(-1).detach().numpy(), abs=1e-5)


def sentence_sums_of(s):
    """Computes the statistics of every SAMPLE-th sentence in plain loops."""
    found = category(s)
    return sentence_sums(attention_maps(s.model, found.ids[::SAMPLE], CPU), [0], window=4)


def test_windows_are_spread():
    rows = np.arange(100)[:, None]
    assert spread(rows, 5).ravel().tolist() == [0, 25, 50, 74, 99] and len(spread(rows, 1000)) == 100


def test_a_killed_study_goes_on_from_its_parts(tmp_path):
    code = f"import sys; sys.path[:0] = {[os.path.dirname(__file__)]!r}; import test_study, pathlib, torch; "
    code += "torch.set_num_threads(1); "
    code += f"test_study.run(test_study.open_model_and_text(), pathlib.Path({str(tmp_path)!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / "parts/zero.json").exists():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.002)
    child.kill()
    child.wait()
    before = times(tmp_path)
    assert "mean.json" in before and not (tmp_path / "parts/pairs-inversion.json").exists()
    found = run(open_model_and_text(), tmp_path)
    after = times(tmp_path)
    assert {name: after[name] for name in ("mean.json", "zero.json")} == {
        name: before[name] for name in ("mean.json", "zero.json")
    }
    assert found == run(open_model_and_text(), tmp_path / "another")
