"""Inputs shared by tests of the report: every chapter's report of a small model, its maps and its figures."""

from copy import deepcopy
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform
from synthetic import random_causal

from picollm.attention.key_sets import SETS
from picollm.attention.maps import from_arrays
from picollm.files import write_json
from picollm.report.figures import REPORTS, draw_figures
from picollm.report.page import render
from picollm.report.sources import FORMATS, Sources
from picollm.report.style import LABEL_COLOURS

CFG = {
    "report": {"title": "A run", "sentences": 9, "palette": "picollm"},
    "corpus": {"source": "enwiki-sample", "fraction": 0.5},
}
STATISTICS = (
    "kappa_self", "kappa_prev", "kappa_local", "kappa_sink", "non_sink", "broad", "positional", "content", "distance",
    *(f"kappa_{name}" for name in SETS),
)  # fmt: skip
HARDWARE = {
    "device": "cpu", "cpu": {"model": "CPU & Co <9>", "cores": 2, "isa": ["avx2"]}, "memory_gib": 4.0, "gpu": None,
    "threads": 2, "python": "3.11", "packages": {"torch": "2.0"},
}  # fmt: skip


LABELS = ("diagonal", "global", "global", "sink")  # of the first heads, and so on


def head(h):
    label, h = LABELS[h % 4], h % 4
    row = {
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


def chapters(n_layers=2, n_heads=2):
    """Returns the reports by name, as their modules write them."""
    names, count = names_of(n_layers, n_heads), dict.fromkeys(LABEL_COLOURS, 0)
    every = list(islice(cycle(LABELS), len(names)))
    labels = count | {label: every.count(label) for label in LABELS}
    rows = [{"name": name, "layer": h // n_heads, "head": h % n_heads} | head(h) for h, name in enumerate(names)]
    split = {"articles": 9, "words": 1234, "bytes": 7000, "tokens": 2000, "rows": 15, "dropped_tokens": 3}
    training = {
        "model": {"n_layers": n_layers, "n_heads": n_heads},
        "parameters": 35_318_080, "parameters_non_embedding": 12_802_944,
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
        "n_layers": n_layers, "n_heads": n_heads, "heads": rows, "raw_labels": count | {"mixed": 4},
        "labels": {key: {"count": n, "share": n / len(names), "low": 0.0, "high": 0.75} for key, n in labels.items()},
        "null": {"heads": 8, "labels": count | {"global": 6, "sink": 2},
                 "values": {"kappa_max": [0.01, -0.02], "content": [0.0, 0.01]}},
        "sharpened_null": {"heads": 8, "labels": count | {"content-based": 7, "token-specific": 1}},
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
                              "sharpened_percentile_99": 0.1, "shuffled_percentile_99": 0.03}
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
        "with_sink": {"rank_correlation": 0.5}, "heads": [{"cluster": 1 + h % 4 // 2} for h in range(len(names))],
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
        "loading": [{"rung": rung, "n": 9, "median_ms": ms, "p90_ms": 2 * ms}
                    for rung, ms in (("gather", 0.05), ("row by row", 0.5))],
        "ranges": {"forward": times}, "timeline": [
            {"name": "step", "start_ms": 0.0, "end_ms": 6.5}, {"name": "forward", "start_ms": 0.5, "end_ms": 5.5}],
    }  # fmt: skip
    order = ("training", "heads", "clusters", "findings", "engine", "benchmark", "profile")
    found = dict(zip(order, (training, heads, clusters, findings, engine, benchmark, profile), strict=True))
    found |= causes(names) | {"data": {"splits": {"train": split, "validation": split}, "context": 128}}
    return {name: deepcopy(report) | ({"format": FORMATS[name]} if name in FORMATS else {})
            for name, report in found.items()}  # fmt: skip


def names_of(n_layers, n_heads):
    return [f"L{layer}H{number}" for layer in range(n_layers) for number in range(n_heads)]


def causes(names):
    """Returns the reports about the effects of heads."""
    ablated = [
        {
            "name": name,
            "delta": h / 100,
            "low": h / 200,
            "high": h / 50,
            "q": max(0.001, 0.5 - h / 6.5),
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


def sentences(n_layers=2, n_heads=2):
    """Returns two categories of the model's maps; one token closes a script, another is a formula."""
    words = ["<|endoftext|>", "The", " </script>", " $$", "\n"]
    ids = [list(range(5)), [0, 1, 2]]
    maps = [random_causal((n_layers, n_heads, len(row), len(row)), seed=len(row)) for row in ids]
    tokens = [words, words[:3]]
    found = [from_arrays(maps, ids, tokens, category=name) for name in ("simple", "negation")]
    return [replace(found[0], title="Simple <b>"), found[1]]


def draw(folder, n_layers=2, n_heads=2):
    """Draws every figure of a run from its files, as draw_figures does."""
    found, n, inputs = chapters(n_layers, n_heads), n_layers * n_heads, folder.with_name(f"{folder.name}-inputs")
    for name in REPORTS:
        write_json(inputs / f"{name}.json", found[name])
    distance = np.abs(np.subtract.outer(range(n), range(n))) / (2.5 * n)
    np.savez(inputs / "arrays.npz", distance=distance, linkage=average(squareform(distance)), order=np.arange(n),
             coordinates=np.random.default_rng(1).normal(size=(n, 2)))  # fmt: skip
    curve = pd.DataFrame({"tokens": [0, 64, 128, 192], "loss": [7, 6, 5, 4], "validation_loss": [None, 6.5, None, 6.5]})
    curve.to_csv(inputs / "curve.csv", index=False)
    paths = {name: inputs / f"{name}.json" for name in REPORTS}
    paths |= {"curve": inputs / "curve.csv", "arrays": inputs / "arrays.npz"}
    draw_figures(folder / "manifest.json", paths, sentences(n_layers, n_heads), 1)
    return folder / "manifest.json"


def page_of(figures, found=None, categories=None, cfg=CFG, **states):
    """Renders the page of these reports; `states` are those of Sources."""
    found, categories = chapters() if found is None else found, sentences() if categories is None else categories
    return render(figures, Sources(found, categories, **states), cfg)
