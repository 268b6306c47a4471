"""The report: its five lines, one HTML file that needs nothing from outside, and pictures whose bytes repeat."""

import base64
import hashlib
import html as html_entities
import json
import re
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from jinja2 import UndefinedError
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform
from synthetic import column, content_uniform, random_causal

from picollm.attention.key_sets import SETS
from picollm.attention.maps import from_arrays
from picollm.errors import PicollmError
from picollm.files import write_json
from picollm.profiling.profile import NEEDS
from picollm.report import attention_figures as attention
from picollm.report import explorer
from picollm.report import measurement_figures as measurement
from picollm.report.chapters import CHAPTERS
from picollm.report.gallery import Gallery, embedded
from picollm.report.mechanism_figures import mechanism_figures
from picollm.report.page import render
from picollm.report.style import LABEL_COLOURS
from picollm.report.summary import clusters_line, five_lines, lines

CFG = {"report": {"title": "A run", "sentences": 9}, "corpus": {"source": "enwiki-sample", "fraction": 0.5}}
STATISTICS = (
    "kappa_self", "kappa_prev", "kappa_local", "kappa_sink", "non_sink", "broad", "positional", "content", "distance",
    *(f"kappa_{name}" for name in SETS),
)  # fmt: skip
HARDWARE = {
    "device": "cpu", "cpu": {"model": "CPU & Co <9>", "cores": 2, "isa": ["avx2"]}, "memory_gib": 4.0, "gpu": None,
    "threads": 2, "python": "3.11", "packages": {"torch": "2.0"},
}  # fmt: skip


def head(h):
    label = ["diagonal", "global", "global", "sink"][h]
    row = {
        "name": f"L{h // 2}H{h % 2}",
        "layer": h // 2,
        "head": h % 2,
        "label": label,
        "tag": None,
        "looks_at": [{"token": " the", "share": 0.1}],
        "seen": [],
        "stability": 0.5 + h / 10,
        "margin": None if h == 3 else 1.5 * h,
        "sink_flag": h == 3,
        "categories_agreeing": h,
        "category_labels": dict.fromkeys(("simple", "negation", "technical"), label),
        "by_category": {name: {"kappa_local": [0.1, 0.0, 0.2]} for name in ("simple", "negation", "technical")},
    }
    value = {"value": None, "low": None, "high": None} if h == 3 else {"value": 0.25, "low": 0.125, "high": 0.5}
    return row | {"unstable": h == 1, "raw_label": "mixed", "statistics": dict.fromkeys(STATISTICS, value)}


def speedup(ratio, low, high):
    return {"ratio": ratio, "low": low, "high": high, "verdict": "faster"}


def timed(name, batch, p50, p90, **speedups):
    speedups = {key.replace("_", "-"): value for key, value in speedups.items()}
    times = {"n": 9, "p50": p50, "p90": p90, "p95": p90}
    return {"backend": name, "output": "last", "batch": batch, "status": "ok", "latency_ms": times,
            "tokens_per_s": 1e3 / p50, "noisy": False, "speedups": speedups, "gpu_ms": None}  # fmt: skip


def chapters():
    count = dict.fromkeys(LABEL_COLOURS, 0)
    labels = count | {"diagonal": 1, "global": 2, "sink": 1}
    split = {"articles": 9, "words": 1234, "bytes": 7000, "tokens": 2000, "rows": 15, "dropped_tokens": 3}
    training = {
        "model": {"n_layers": 2, "n_heads": 2}, "parameters": 35_318_080, "parameters_non_embedding": 12_802_944,
        "tokens": 61_440, "steps": 30, "train_loss": 6.5, "validation_loss": 6.25, "validation_perplexity": 518.0,
        "validation_word_perplexity": 9000.0, "validation_bits_per_byte": 2.1, "unigram_loss": 7.75, "bigram_loss": 6.5,
        "tokens_per_second": 900.0, "data_wait_share": 0.2, "loss_path": "eager",
        "precision": {"autocast": "none", "compile": "none", "reason": "this processor emulates bf16"},
        "imported": None,
        "four_gram_loss": 6.4, "four_gram_cache_loss": 6.2,
        "test_four_gram_loss": 6.5, "test_four_gram_cache_loss": 6.3,
        "test_loss": 6.28, "test_bigram_loss": 6.6,
        "best_step": 20, "flop_per_second": 2e11, "gemm_flop_per_second": 4e11, "gemm_share": 0.5,
        "peak_memory_mib": 900.0, "phases": [{"from": 11.0, "to": 5.0, "tokens": 6144},
                                             {"from": 5.0, "to": 4.2, "tokens": None}],
    }  # fmt: skip
    heads = {
        "n_layers": 2, "n_heads": 2, "heads": [head(h) for h in range(4)], "raw_labels": count | {"mixed": 4},
        "labels": {key: {"count": n, "share": n / 4, "low": 0.0, "high": 0.75} for key, n in labels.items()},
        "null": {"heads": 8, "labels": count | {"global": 6, "sink": 2},
                 "values": {"kappa_max": [0.01, -0.02], "content": [0.0, 0.01]}},
        "peaked_null": {"heads": 8, "labels": count | {"content-based": 7, "token-specific": 1}},
        "raw_agreement": None, "raw_rule": "raw",
        "sensitivity": {
            "thresholds": [{"threshold": name, "value": value, "labels": [1, 0, 0, 0, 2, 1, 0]}
                           for name in ("kappa", "broad") for value in (0.2, 0.4)],
            "window": [{"window": 2, "labels": [1, 0, 0, 0, 2, 1, 0]}, {"window": 4, "labels": [0, 1, 0, 0, 2, 1, 0]}],
        },
        "separator": {"same_label": 0.75, "means": dict.fromkeys(("non_sink", "broad"), {"with": 0.5, "without": 0.4})},
        "category_effects": {"tested": 40, "significant": [
            {"head": "L0H1", "category": "complex_syntax", "difference": -0.125, "q": 0.01}]},
        "relations": {
            "subject and verb": {"sentences": 24, "head": "L1H0", "effect": 0.1, "low": 0.05, "high": 0.2, "p": 0.01,
                                 "strength": 0.7, "null_strength": 0.4, "null_p": 0.4},
            "article and noun": {"sentences": 3, "head": None, "p": None}},
        "sample": {"sentences": 6, "tokens": 88, "bootstraps": 100, "null_models": 2, "categories": {"simple": {}}},
        "rule": ["first kappa"], "definitions": {"broad": "share"},
        "thresholds": {name: {"value": 0.25, "configured": 0.25, "null_percentile_99": None,
                              "peaked_percentile_99": 0.1, "shuffled_percentile_99": 0.03}
                       for name in ("kappa", "content", *SETS)},
    }  # fmt: skip
    cluster = {
        "cluster": 1,
        "size": 2,
        "mean_distance": 0.1,
        "stability": 0.9,
        "stability_by_chance": 0.4,
        "stable": True,
        "labels": {"global": 2},
    }
    clusters = {
        "distance": "Jensen-Shannon", "method": "average", "cophenetic": {"average": 0.9}, "faithful": True, "k": 2,
        "structure": {"found": True, "because": [], "p": 0.01, "silhouette_one_cloud_95": 0.2, "draws": 199},
        "by_layer": {"ratio": 0.9, "low": 0.8, "high": 1.0, "p": 0.2},
        "silhouette": 0.4, "noise": {"mean_absolute_difference": 0.05}, "coordinates_show": 0.6,
        "with_sink": {"rank_correlation": 0.5}, "heads": [{"cluster": c} for c in (1, 1, 2, 2)],
        "clusters": [cluster | {"heads": ["L0H0", "L0H1"]}],
        "agreement": dict.fromkeys(("labels", "layers"), {"adjusted_rand": 0.1, "p": 0.2, "permutations": 99}),
    }  # fmt: skip
    claim = {"section": "A", "claim": "heads are <global>", "test": "an interval", "verdict": "did not hold",
             "because": "", "p": 0.2, "q": 0.4, "numbers": {"share": 0.5, "untrained_models": None}}  # fmt: skip
    findings = {
        "testable": True,
        "because": "it predicts better than a 4-gram",
        "nats_below_a_4_gram": 0.15,
        "nats_below_a_4_gram_with_cache": -0.05,
        "claims": [claim],
    }
    plan = {"target": "tensorrt-rtx", "compute_capabilities": ["8.9"], "from": "a.onnx"}
    engine = {
        "max_batch": 8, "context": 128, "checkpoint_sha256": "ab" * 32, "hardware": HARDWARE,
        "backends": {"tensorrt-fp16": {"reason": None, "graphs": {"logits": plan}},
                     "openvino-int8": {"reason": "it was not built: NNCF is not installed", "graphs": {}}},
    }  # fmt: skip
    accuracy = {"mean_kl": 1e-4, "p99_kl": 1e-3, "top1_agreement": 0.99, "perplexity_difference": 1e-3,
                "greedy_match": 0.75, "failed": [], "of": "the backend"}  # fmt: skip
    of_graph = accuracy | {"of": "its ONNX graph in ONNX Runtime"}
    cold = {"load_seconds": 0.5, "first_ms": 12.5, "memory_mib": 96.0, "gpu_memory_mib": None}
    nothing = {"artefact": None, "cold": None, "accuracy": None}
    benchmark = {
        "protocol": {"timed": "on the host", "rounds": 7, "gate_tokens": 8192, "noise_limit": 0.1},
        "hardware": HARDWARE,
        "backends": {
            "eager-fp32": nothing | {"status": "ok", "cold": cold},
            "openvino-bf16": nothing | {"status": "ok", "accuracy": accuracy},
            "openvino-int8": nothing | {"status": "not run: it was not built: NNCF is not installed"},
            "tensorrt-fp16": {"status": "not run: no NVIDIA GPU", "accuracy": of_graph, "cold": None,
                              "artefact": {"files": ["a.plan"], "bytes": 5_000_000, "build_seconds": 1.5}},
        },
        "results": [
            timed("eager-fp32", 1, 10.0, 11.0),
            timed("openvino-bf16", 1, 4.0, 4.5, eager_fp32=speedup(2.5, 2.25, 2.75)),
            timed("eager-fp32 (again)", 1, 2.0, 2.5, eager_fp32=speedup(5.0, 4.0, 6.0)),
            timed("openvino-bf16", 8, 4.0, 4.5, eager_fp32=speedup(9.0, 8.0, 9.5))
            | {"gpu_ms": {"kernels": 1.5, "to_device": 0.01, "to_host": 0.25}},
            *({"backend": "tensorrt-fp16", "output": "last", "batch": batch, "status": "not run: no NVIDIA GPU"}
              for batch in (1, 8)),
        ],
    }  # fmt: skip
    times = {"n": 3, "median_ms": 5.0, "p90_ms": 6.0, "share": 0.75}
    profile = {
        "tool": {"name": "torch.profiler", "version": "2.0", "reason": "nsys is not installed"}, "other_share": 0.25,
        "steps": {"n": 3, "median_ms": 6.5, "mean_ms": 6.75},
        "workload": {"warmup_steps": 5}, "gpu": None, "gpu_reason": "no GPU",
        "ranges": {"forward": times}, "timeline": [
            {"name": "step", "start_ms": 0.0, "end_ms": 6.5}, {"name": "forward", "start_ms": 0.5, "end_ms": 5.5}],
    }  # fmt: skip
    names = ("training", "heads", "clusters", "findings", "engine", "benchmark", "profile")
    found = dict(zip(names, (training, heads, clusters, findings, engine, benchmark, profile), strict=True))
    found |= causes([head["name"] for head in heads["heads"]])
    return deepcopy(found) | {"data": {"splits": {"train": split, "validation": split}, "context": 128}}


def causes(names):
    """The chapters of what heads cause."""
    ablated = [
        {
            "name": name,
            "delta": h / 100,
            "low": h / 200,
            "high": h / 50,
            "q": 0.5 - h / 6.5,
            "perplexity": h / 90,
            "on": {"punctuation": {"delta": h / 80, "low": 0.0, "high": 0.1}},
        }
        for h, name in enumerate(names)
    ]
    score = {"value": 0.25, "low": 0.125, "high": 0.5}
    row = {"accuracy": 0.75, "low": 0.625, "high": 0.875, "items": 120, "clusters": 12}
    measures = ("kappa_max", "kappa_set", "content", "previous", "duplicate", "induction")
    return {
        "ablation": {"mean_tokens": 51_200, "tokens": 8192, "windows": 64, "loss": 6.4, "median_half_width": 0.0012,
                     "heads": ablated,
                     "targets": {"punctuation": {"definition": "no letter", "share": 0.1, "loss": 3.0},
                                 "number": {"definition": "digits", "share": 0.0, "loss": None}},
                     "interactions": {"heads": names, "pairs": 6, "tokens": 500, "redundant": 1, "serial": 0,
                                      "mean": score, "largest": [{"name": "L0H0 L0H1", "q": 0.5, **ablated[1]}]}},
        "mechanisms": {
            "sequences": 192, "ablated_sequences": 8, "lengths": [25, 50],
            "copies": {"sequences": 64, "first_loss": 9.5, "second_loss": 9.25, "gain": score},
            "context": {"windows": 300, "targets": 900, "loss": 6.3, "enough": 16,
                        "curve": [{"tokens": 2**k, "cost": 0.5 / 2**k, "low": 0.4 / 2**k, "high": 0.6 / 2**k}
                                  for k in range(6)]},
            "after_layer": [score, score, score],
            "definitions": {"induction": "what followed"}, "null": {"induction": 0.01},
            "best": {"induction": score | {"head": names[3]}},
            "criteria": {"score": 0.3, "copying": 0.5}, "together": None,
            "heads": [{"name": name, "induction_head": h == 3, "anti_copying": h == 1,
                       "copying": score, "direct": score,
                       "scores": {"induction": {"50": score}}} for h, name in enumerate(names)],
        },
        "emergence": {
            "windows": 16, "context_windows": 64,
            "threshold": dict.fromkeys(measures, 0.25), "median_onset": dict.fromkeys(measures, 2.0),
            "snapshots": [{"step": step, "loss": 11 - step / 10, "effects": dict.fromkeys(measures, step),
                           "heads": dict.fromkeys(measures, [0.1] * len(names)),
                           "context_cost": {"1": 0.1 * step, "4": 0.05 * step}}
                          for step in (0, 1, 4)],
        },
        "probes": {
            "least_count": 10,
            "coreference": {
                "testable": True, "p": 0.3, "q": 0.3,
                "items": 336, "chosen_on_one_half": row | {"heads": names[:2]},
                "baselines": {"the nearer": row, "untrained": row}, "shows": False,
                "best_of_all": row | {"head": names[0], "p": 0.25, "best_by_chance_95": 0.5625},
            },
            "pairs": {"negation": {"testable": True, "p": 0.01, "q": 0.02, "model": row, "baselines": {"bigram": row},
                                   "shows": True},
                      "agreement": {"testable": False, "because": "too few words", "shows": False}},
        },
    }  # fmt: skip


def sentences():
    """Two categories of the model's maps; a token ends a script, and one is a formula."""
    words = ["<|endoftext|>", "The", " </script>", " $$", "\n"]
    ids = [list(range(5)), [0, 1, 2]]
    maps = [random_causal((2, 2, len(sequence), len(sequence)), seed=len(sequence)) for sequence in ids]
    tokens = [words, words[:3]]
    return [from_arrays(maps, ids, tokens, category=name) for name in ("simple", "negation")]


def metrics():
    data = {"train_articles": 1096, "train_tokens": 640_000, "validation_tokens": 70_000, "test_tokens": 60_000}
    clusters = {"clusters": 4, "stable_clusters": 3, "rand_layers": 0.12, "rand_labels": 0.34}
    return {"data": data, "training": chapters()["training"], "clusters": clusters}


def draw(folder):
    """Every kind of figure, from small real arrays, in a gallery of its own."""
    found, gallery, n = chapters(), Gallery(folder / "manifest.json"), 6
    names = [h["name"] for h in found["heads"]["heads"]]
    weights, tokens = random_causal((2, 2, n, n), seed=1), ["<|endoftext|>", "The", " cat", "\n", " sat", "."]
    distance = np.abs(np.subtract.outer(range(4), range(4))) / 10
    curve = pd.DataFrame({"tokens": [0, 64, 128, 192], "loss": [7, 6, 5, 4], "validation_loss": [None, 6.5, None, 6.5]})
    gallery.add("training.svg", measurement.loss_curve(curve, found["training"]), "Loss")
    arrays = {"distance": distance, "linkage": average(squareform(distance)), "order": np.array([2, 0, 1, 3]),
              "coordinates": np.array([[0, 0], [0, 1], [1, 0], [2, 2.0]])}  # fmt: skip
    attention.head_figures(gallery, found["heads"], found["ablation"], found["clusters"], arrays)
    labels = [head["label"] for head in found["heads"]["heads"]]
    mechanism_figures(gallery, found, labels)
    gallery.add("benchmark.svg", measurement.latency_bars(found["benchmark"]["results"]), "Latency")
    gallery.add("profile.svg", measurement.step_timeline(found["profile"]), "Steps")
    gallery.add(
        "simple-maps.png", attention.heat_maps(weights, "The cat\nsat.", [names[:2], names[2:]]), "Maps", "Simple <b>"
    )
    gallery.add("simple-flow.svg", attention.flow_figure(weights, tokens), "Flow", group="Simple <b>")
    gallery.finish()
    return folder / "manifest.json"


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("figures"))


def test_figures_repeat_to_the_byte_and_replace_an_earlier_run(figures, tmp_path):
    (tmp_path / "old.svg").write_text("<svg/>")
    again = draw(tmp_path)
    first = {path.name: path.read_bytes() for path in figures.parent.iterdir()}
    assert first == {path.name: path.read_bytes() for path in again.parent.iterdir()}
    assert (
        len([name for name in first if not name.endswith(".csv")]) == 17
        and first["simple-maps.png"].startswith(b"\x89PNG")
        and b"<svg" in first["grid.svg"]
    )


def test_embedded_figures_are_the_files(figures):
    found = embedded(figures)
    assert found["simple-flow.svg"]["group"] == "Simple <b>" and found["profile.svg"]["caption"] == "Steps"
    for name, entry in found.items():
        kind, data = entry["uri"].split(";base64,")
        assert kind == ("data:image/png" if name.endswith("png") else "data:image/svg+xml")
        assert base64.b64decode(data) == (figures.parent / name).read_bytes()


def test_no_figure_writes_a_formula(figures):
    """Formulas are off, as people's text is none: those that matplotlib writes by itself would show their source."""
    for path in figures.parent.glob("*.svg"):
        assert b"mathdefault" not in path.read_bytes(), path


@pytest.mark.parametrize("fault", ["bit", "lost"])
def test_a_damaged_figure_is_refused_by_name(figures, tmp_path, fault):
    for path in figures.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    target = tmp_path / "grid.svg"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data) if fault == "bit" else target.unlink()
    with pytest.raises(PicollmError, match=r"grid\.svg is (damaged|missing).*run draw_figures again"):
        render(tmp_path / "manifest.json", chapters(), sentences(), CFG)


def test_the_page_is_the_same_each_time_and_needs_nothing_from_outside(figures):
    page = render(figures, chapters(), sentences(), CFG)
    assert page == render(figures, chapters(), sentences(), CFG)
    assert "default-src 'none'" in page and not re.search(r"<(link|iframe|object|embed)\b", page, re.IGNORECASE)
    html = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    targets = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)", html)
    targets = ["".join(groups) for groups in targets]
    assert len(targets) >= 17 + 13 and all(
        target.startswith(("data:image/", "data:text/csv", "#")) for target in targets
    )
    places = {target[1:] for target in targets if target.startswith("#") and "=" not in target}
    assert places <= set(re.findall(r' id="([\w-]+)"', html))
    assert {f"head=L{h // 2}H{h % 2}" for h in range(4)} <= {target[1:] for target in targets}
    for entry in embedded(figures).values():
        assert page.count(entry["uri"]) == 1 and (entry["csv"] is None or entry["csv"] in page)


def test_the_spread_over_seeds_stands_beside_the_shares_while_it_is_current(figures):
    labels = {label: {"mean": 0.25, "least": 0.125, "most": 0.5} for label in LABEL_COLOURS}
    seeds = {"seeds": [1, 2, 3], "shares": labels, "agreement": 0.5, "agreement_by_chance": 0.4, "file": "seeds.json"}
    plain = render(figures, chapters(), sentences(), CFG)
    assert "Over 3 seeds" not in plain and "seeds.json" not in plain
    shown = render(figures, chapters() | {"seeds": seeds | {"current": True}}, sentences(), CFG)
    assert "Over 3 seeds" in shown and "12.5 % … 50.0 %" in shown and "by chance 40 %" in shown
    stale = render(figures, chapters() | {"seeds": seeds | {"current": False}}, sentences(), CFG)
    assert "Over 3 seeds" not in stale and "is of another configuration or text, and is not shown" in stale


def test_a_profile_that_needs_picollms_own_model_is_one_sentence(figures):
    page = render(figures, chapters() | {"profile": {"needs": NEEDS}}, sentences(), CFG)
    assert html_entities.unescape(page).count(NEEDS) == 1 and "Median, ms" not in page


def test_the_policy_lets_the_pages_own_script_run_and_no_other(figures):
    page = render(figures, chapters(), sentences(), CFG)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts] == [allowed]
    assert "import " not in scripts[0] and "export " not in scripts[0]
    kinds = re.findall(r'<script type="([^"]+)"', page)
    assert set(kinds) == {"application/json", "application/octet-stream"}


def test_every_map_in_the_page_is_the_files(figures):
    page, categories = render(figures, chapters(), sentences(), CFG), sentences()
    data = json.loads(re.search(r'id="explorer-data">(.*?)</script>', page, re.S)[1])
    for category, shown in zip(categories, data["categories"], strict=True):
        for number, row in enumerate(shown["sentences"]):
            assert row["tokens"] == category.tokens[number]
            text = re.search(rf'id="maps-{row["maps"]}">(.*?)</script>', page, re.S)[1]
            maps = category.maps[number].reshape(4, *category.maps[number].shape[-2:])
            assert np.abs(explorer.decoded(text, 4) - maps).max() <= 0.004
    assert data["categories"][0]["sentences"][0]["tokens"][2] == " </script>" and data["first"] == 3
    assert data["facts"][0]["original"] == "L1H1" and data["facts"][3]["kappas"]["self"] == [None, None, None]


def test_sentences_share_the_budget_and_each_category_has_its_first():
    tokens = {"simple": [10, 30, 30], "negation": [20, 20, 20], "technical": [60]}
    categories = [SimpleNamespace(ids=[[0] * n for n in lengths]) for lengths in tokens.values()]
    everything = explorer.chosen(categories, 56, most=9, budget=10**9)
    assert everything == [[0, 1, 2], [0, 1, 2], [0]] and explorer.chosen(categories, 56, most=0) == [[], [], []]
    budget = sum(explorer.size_of(n, 56) for n in (10, 20, 60, 20))
    found = explorer.chosen(categories, 56, most=9, budget=budget)
    assert found == [[0], [0, 1], [0]], "the long second of the first category is passed over"
    for n in (1, 2, 17):
        assert explorer.size_of(n, 3) == len(explorer.encoded(random_causal((3, n, n), seed=n)[None]))


def test_the_page_says_what_the_chapters_say(figures):
    html = re.sub(
        r"<script.*?</script>|<style.*?</style>", "", render(figures, chapters(), sentences(), CFG), flags=re.S
    )
    page = re.sub(r"\s+", " ", html_entities.unescape(re.sub(r"<[^>]*>", "", html)))
    words = ["Of 4 heads 1 looks at the token itself, 2 look everywhere alike and 1 looks at the first position.",
             "not run: no NVIDIA GPU", "+25.000 %", "35,318,080", "CPU & Co <9>", "It gives not defined of the heads",
             "75.0 % of the heads keep their class", "L0H1 on complex syntax (-0.12)",
             "-0.15 nats per token against a Kneser-Ney 4-gram", "heads are <global>", "untrained models –",
             "+0.0300 +0.0150 … +0.0600", "Here: L1H1.", "its engine of 5.0 MB is built, and the graph that it",
             "compared: its ONNX graph in ONNX Runtime", "tensorrt-rtx, compute capability 8.9", "NNCF is not install",
             "GPU 1.500, copies 0.010 and 0.250", "8,192 validation tokens", "(p = 0.250)",
             "can't be tested here: too few words", "Did not hold: 1", "article and noun", "9 articles",
             "L1H1 most"]  # fmt: skip
    assert [word for word in words if word not in page] == []


def test_text_is_escaped(figures):
    found, evil = chapters(), "<script>alert('1')</script>"
    found["benchmark"]["backends"]["tensorrt-fp16"]["status"] = found["profile"]["tool"]["reason"] = evil
    found["clusters"]["clusters"][0]["heads"] = found["heads"]["rule"] = [evil]
    found["heads"]["heads"][0]["seen"] = found["heads"]["heads"][0]["looks_at"][0]["token"] = evil
    page = render(figures, found, sentences(), CFG | {"report": CFG["report"] | {"title": evil}})
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 6
    assert "<summary>Simple &lt;b&gt;</summary>" in page and "$$" in page


def test_what_a_chapter_lacks_is_an_error_not_a_gap(figures):
    found = chapters()
    del found["clusters"]["distance"]
    with pytest.raises(UndefinedError, match="distance"):
        render(figures, found, sentences(), CFG)


def test_the_five_lines():
    data, model, heads, clusters, speed = lines(metrics(), chapters()["heads"], chapters()["benchmark"])
    assert data == "Data: 1,096 articles, 640,000 training tokens, 70,000 for validation, 60,000 for test."
    assert "35.3 M parameters after 61,440 tokens: test loss 6.28 nats, about as well as a 4-gram that" in model
    assert "remembers the row (4-gram 6.50, with the row 6.30)" in model
    assert heads == (
        "Heads: of 4, 1 diagonal, 2 global, 1 sink; in untrained models 75% come out global, in untrained ones that "
        "are as peaked 12% token-specific."
    )
    assert "Families of heads: 4, 3 of them stable" in clusters and "layers 0.12, with classes 0.34" in clusters
    none = metrics()["clusters"] | {"clusters": 0, "silhouette": 0.14, "structure_p": 0.3}
    assert "Families of heads: none" in clusters_line(none) and "silhouette 0.14, p = 0.30" in clusters_line(none)
    assert speed == ("Speed, batch 1: openvino-bf16 is 2.50x eager fp32 (95 % 2.25 to 2.75: faster) on CPU & Co <9>; "
                     "TensorRT: not run: no NVIDIA GPU.")  # fmt: skip
    worse, alone = chapters(), chapters()
    worse["training"] |= {"test_loss": 6.7, "test_bigram_loss": 6.9}
    assert (
        "better than a bigram, worse than a 4-gram"
        in lines(metrics() | {"training": worse["training"]}, worse["heads"], worse["benchmark"])[1]
    )
    alone["benchmark"]["results"] = alone["benchmark"]["results"][:1]
    assert "no backend beside eager fp32 ran" in lines(metrics(), alone["heads"], alone["benchmark"])[4]


@pytest.mark.parametrize("missing", [*(f"metrics/{name}" for name in CHAPTERS), "heads", "benchmark"])
def test_five_lines_from_files_and_the_one_that_is_missing(tmp_path, missing):
    for name in CHAPTERS:
        write_json(tmp_path / "metrics" / f"{name}.json", metrics().get(name, {}))
    for name in ("heads", "benchmark"):
        write_json(tmp_path / f"{name}.json", chapters()[name])
    assert five_lines(tmp_path) == lines(metrics(), chapters()["heads"], chapters()["benchmark"])
    (tmp_path / f"{missing}.json").unlink()
    with pytest.raises(PicollmError) as caught:
        five_lines(tmp_path)
    assert str(caught.value) == f"{tmp_path / missing}.json is missing: run the rule that writes it"


def slow_edges(weights):
    """By hand: mean over heads, without key 0; of the two largest shares those of at least twice 1 / keys."""
    edges = {}
    n_layers, n_heads, n, _ = weights.shape
    for layer in range(n_layers):
        for i in range(1, n):
            mass = {j: sum(weights[layer, h, i, j] for h in range(n_heads)) / n_heads for j in range(1, i + 1)}
            total = sum(mass.values())
            for j in sorted(mass, key=mass.get, reverse=True)[:2]:
                if mass[j] / total >= 2 / len(mass):
                    edges[(layer, j), (layer + 1, i)] = mass[j] / total
    return edges


@pytest.mark.parametrize(("scale", "least"), [(1.0, 1), (3.0, 20)])
def test_flow_edges_equal_brute_force(scale, least):
    weights = random_causal((3, 2, 9, 9), seed=4, scale=scale)
    graph, expected = attention.flow_graph(weights), slow_edges(weights)
    assert {(a, b): w for a, b, w in graph.edges(data="weight")} == pytest.approx(expected)
    assert len(expected) >= least
    assert set(graph.nodes) == {(layer, i) for layer in range(4) for i in range(1, 9)}


def test_flow_of_uniform_and_of_one_column():
    assert not attention.flow_graph(content_uniform(8, sink=0.5)[None, None]).edges
    edges = set(attention.flow_graph(column(8, 3)[None, None]).edges)
    assert edges == {((0, min(i, 3)), (1, i)) for i in range(2, 8)}
