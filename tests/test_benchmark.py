"""The accuracy gate compared with SciPy and brute force; reports on backends that run, fail and give wrong output."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from small_model import CONTEXT, VOCAB, small_model

import picollm.engine
from picollm.engine import timing
from picollm.engine.accuracy_gate import greedy, greedy_match
from picollm.engine.backends import registry
from picollm.engine.backends.backend import DeviceRun, LoadContext
from picollm.engine.backends.pytorch import Eager
from picollm.engine.benchmark import Setting, benchmark, metrics
from picollm.engine.cells import AGAIN, add_gpu_times
from picollm.engine.cold_start import cold_start
from picollm.engine.export import Logits
from picollm.engine.grid import BACKENDS, REFERENCE, Grid, again, grid
from picollm.engine.journal import Journal
from picollm.engine.table import backend_lines, lines
from picollm.engine.timing import Protocol
from picollm.errors import PicollmError
from picollm.files import read_json, write_json
from picollm.hardware import CpuMeter, describe_hardware
from picollm.model.transformer import Transformer
from picollm.model.weights import save_model

SCHEMA = read_json(Path(picollm.engine.__path__[0], "benchmark.schema.json"))


def test_greedy_text_is_the_models_own(model):
    rows = np.random.default_rng(3).integers(VOCAB, size=(3, CONTEXT + 1)).astype(np.uint16)
    found = greedy(DeviceRun(Logits(model), torch.device("cpu")), rows)
    for row, text in zip(rows.astype(np.int64), found, strict=True):
        known = row[: CONTEXT // 2]
        for token in text:  # one forward pass over the text so far, with nothing after it
            with torch.no_grad():
                assert token == model(torch.from_numpy(known)[None])[0, -1].argmax()
            known = np.append(known, token)
        assert len(known) == CONTEXT
    assert greedy_match(found, found) == 1.0
    other = found.copy()
    other[0, 2] += 1  # in the first of three texts, this affects six of eight tokens
    assert greedy_match(found, other) == pytest.approx(1 - 6 / 24)


@pytest.fixture(scope="module")
def model():
    model = small_model()
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # logits that differ, as a trained model's do
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Returns a model's folder with an engine folder in which nothing is built."""
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder / "model.safetensors", folder / "config.json")
    write_json(folder / "manifest.json", {"backends": {}, "max_batch": 4, "checkpoint_sha256": "0" * 64, "files": []})
    return folder


@pytest.fixture(scope="module")
def ctx(model, folder):
    return LoadContext(model, read_json(folder / "manifest.json"), folder, torch.device("cpu"), threads=2)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(2).integers(VOCAB, size=(12, CONTEXT + 1)).astype(np.uint16)


QUICK = Protocol(rounds=3, block_seconds=0.01, warmup_seconds=0.01, seed=1)


def setting(names, noise_limit=0.5, cold=False, **batches):
    return Setting(Grid(names, batches, 4, emulated=True), 8, QUICK, noise_limit, cold)


def timed(report, batch=None):
    """Returns the backends that have numbers, without the second copies used to measure noise."""
    rows = [row for row in report["results"] if "latency_ms" in row and batch in (None, row["batch"])]
    names = {row["backend"] for row in rows}
    assert not rows or AGAIN in names
    return {name.removesuffix(timing.AGAIN) for name in names}


@pytest.mark.heavy
def test_the_report_has_numbers_only_for_what_ran(ctx, folder, rows, monkeypatch):
    class Wrong(Eager):
        runtime = "openvino"

        def load(self, ctx, graph):
            run = Eager("fp32").load(ctx, graph)
            return lambda *inputs: np.roll(run(*inputs), 1, axis=-1)

    monkeypatch.setitem(registry.BACKENDS, "openvino-bf16", Wrong("bf16"))
    names = ["eager-bf16", "openvino-bf16", "onnxruntime-fp32"]
    report, samples = benchmark(ctx, rows, setting(names, last=(1, 4), loss=(1,), full=(2,)), folder)
    jsonschema.validate(report, SCHEMA)

    table = {(row["backend"], row["output"], row["batch"]): row for row in report["results"]}
    cells = {("last", 1), ("last", 4), ("loss", 1), ("full", 2)}
    first = {key for key in table if not key[0].endswith(timing.AGAIN)}
    assert first == {(name, *cell) for name in [REFERENCE, *names] for cell in cells}
    for cell in cells:  # the baseline takes part twice, and so does the fastest, which may be the baseline
        copies = {name for name, *where in table if tuple(where) == cell} - {name for name, *_ in first}
        assert copies in ({AGAIN}, {AGAIN, again("eager-bf16")})
    for (name, *_), row in table.items():
        if name.removesuffix(timing.AGAIN) in (REFERENCE, "eager-bf16"):
            assert row["status"] == "ok" and row["latency_ms"]["n"] >= QUICK.rounds
        else:
            assert set(row) == {"backend", "output", "batch", "status"}
    assert table["openvino-bf16", "last", 1]["status"].startswith("failed: accuracy (mean KL")
    assert table["onnxruntime-fp32", "full", 2]["status"].startswith("not run: it was not built")
    assert sum(line.startswith("onnxruntime-fp32") for line in lines(report)) == 1  # reported once, not in every cell
    row = table["eager-bf16", "last", 4]
    assert row["tokens_per_s"] == pytest.approx(4 * 16 / row["latency_ms"]["p50"] * 1e3)
    assert set(row["speedups"]) == {REFERENCE}
    assert set(table[AGAIN, "last", 4]["speedups"]) == {REFERENCE, "eager-bf16"}

    sampled = {(s["backend"], s["output"], s["batch"]) for s in samples}
    assert sampled == {key for key, row in table.items() if "latency_ms" in row}
    assert len(samples) == sum(row["latency_ms"]["n"] for row in table.values() if "latency_ms" in row)
    named = {
        f"{name}{cell}" for cell in ("_b1", "_b4", "_loss_b1", "_full_b2") for name in ("eager_fp32", "eager_bf16")
    }
    assert set(metrics(report)) == {f"{name}_p50_ms" for name in named} | {
        f"{name}_speedup" for name in named if "bf16" in name
    }


def test_a_backend_that_returns_nan_fails(ctx, folder, rows, monkeypatch):
    class Broken(Eager):
        def load(self, ctx, graph):
            run = super().load(ctx, graph)
            return lambda *inputs: run(*inputs) * np.nan

    monkeypatch.setitem(registry.BACKENDS, "eager-bf16", Broken("bf16"))
    report, _ = benchmark(ctx, rows, setting(["eager-bf16"], last=(1,)), folder)
    jsonschema.validate(report, SCHEMA)
    assert report["backends"]["eager-bf16"]["status"].startswith("failed: accuracy (mean KL nan")
    json.dumps(report, allow_nan=False)
    (line,) = backend_lines(report)
    assert line.startswith("eager-bf16") and "failed: accuracy (mean KL nan" in line


@pytest.mark.heavy
def test_a_wrong_answer_at_only_one_shape_or_output_has_no_number(ctx, folder, rows, monkeypatch):
    class Sometimes(Eager):
        runtime = "openvino"

        def load(self, ctx, graph):
            run = Eager("bf16").load(ctx, graph)
            wrong = lambda ids, *rest: graph == "nats" or (len(ids), len(rest[0])) == (4, 1)  # noqa: E731
            return lambda *inputs: run(*inputs) * (1.5 if wrong(*inputs) else 1)

    monkeypatch.setitem(registry.BACKENDS, "openvino-bf16", Sometimes("bf16"))
    report, _ = benchmark(ctx, rows, setting(["openvino-bf16"], last=(1, 4), loss=(1,)), folder)
    jsonschema.validate(report, SCHEMA)
    status = {(r["output"], r["batch"]): r["status"] for r in report["results"] if r["backend"] == "openvino-bf16"}
    assert status["last", 1] == "ok" and report["backends"]["openvino-bf16"]["status"] == "ok"
    assert status["last", 4].startswith("failed: accuracy of this output and batch (")
    assert status["loss", 1].startswith("failed: accuracy of this output and batch (")


def test_a_backend_that_raises_does_not_stop_the_others(ctx, folder, rows, monkeypatch):
    class Raises(Eager):
        runtime = "openvino"

        def load(self, ctx, graph):
            def run(*inputs):
                raise RuntimeError("CUDA error:\nout of memory")

            return run

    monkeypatch.setitem(registry.BACKENDS, "openvino-bf16", Raises("bf16"))
    report, _ = benchmark(ctx, rows, setting(["openvino-bf16"], last=(1,)), folder)
    assert report["backends"]["openvino-bf16"]["status"] == "failed: CUDA error: out of memory"
    assert timed(report) == {REFERENCE, "eager-bf16"}


def test_a_backend_that_fails_within_the_gate_does_not_stop_the_others(ctx, folder, rows, monkeypatch):
    class Fragile(Eager):
        runtime = "openvino"

        def load(self, ctx, graph):
            run, left = Eager("bf16").load(ctx, graph), iter(range(1))

            def fails(*inputs):
                if next(left, None) is None:
                    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
                return run(*inputs)

            return fails

    monkeypatch.setitem(registry.BACKENDS, "openvino-bf16", Fragile("bf16"))
    monkeypatch.setattr("picollm.engine.benchmark.rows_at_once", lambda *given: 2)
    report, _ = benchmark(ctx, rows, setting(["openvino-bf16"], last=(1,)), folder)
    said = "failed: CUDA out of memory. Tried to allocate 2 GiB"
    assert report["backends"]["openvino-bf16"]["status"] == said
    assert timed(report) == {REFERENCE, "eager-bf16"}


@pytest.mark.heavy
def test_a_batch_that_the_memory_does_not_hold_does_not_stop_the_others(ctx, folder, rows, monkeypatch):
    class Large(Eager):
        def load(self, ctx, graph):
            run = super().load(ctx, graph)

            def large(ids, *rest):
                if len(ids) == 3:
                    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
                return run(ids, *rest)

            return large

    monkeypatch.setitem(registry.BACKENDS, REFERENCE, Large("fp32"))
    how = replace(setting(["eager-bf16"], last=(1, 3, 2)), gate_rows=1)
    report, samples = benchmark(ctx, rows, how, folder)
    jsonschema.validate(report, SCHEMA)
    assert timed(report, 1) == timed(report, 2) == {REFERENCE, "eager-bf16"} and not timed(report, 3)
    assert {row["batch"] for row in samples} == {1, 2} and len(metrics(report)) == 6
    said = (
        "not run: the GPU's memory does not hold output last at batch 3 (CUDA out of memory. Tried to allocate 2 GiB)"
    )
    assert any(REFERENCE in line and said in line for line in lines(report))


@pytest.mark.heavy
@pytest.mark.parametrize("calls", [0, 2])  # at once; while it is timed
def test_a_backend_that_raises_at_one_batch_fails_only_there(ctx, folder, rows, monkeypatch, calls):
    class Small(Eager):
        runtime = "openvino"

        def load(self, ctx, graph):
            run, left = Eager("bf16").load(ctx, graph), iter(range(calls))

            def small(ids, *rest):
                if len(ids) == 3 and next(left, None) is None:
                    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
                return run(ids, *rest)

            return small

    monkeypatch.setitem(registry.BACKENDS, "openvino-bf16", Small("bf16"))
    report, _ = benchmark(ctx, rows, setting(["openvino-bf16"], last=(1, 3)), folder)
    jsonschema.validate(report, SCHEMA)
    status = {row["batch"]: row["status"] for row in report["results"] if row["backend"] == "openvino-bf16"}
    said = "failed: this output and batch: CUDA out of memory. Tried to allocate 2 GiB"
    assert status == {1: "ok", 3: said} and any(line.endswith(said) for line in lines(report))
    assert timed(report, 3) == {REFERENCE, "eager-bf16"}


def test_a_profiler_that_fails_does_not_cost_the_other_numbers(ctx, monkeypatch):
    """Tests the loop around the code that needs a GPU."""

    def fake(run, inputs):
        if run(inputs[0]).shape != (1, 1, VOCAB):
            raise RuntimeError("CUPTI: not permitted")
        return {"kernels": 1.0, "to_device": 0.0, "to_host": 0.0}

    monkeypatch.setattr("picollm.engine.cells.gpu_time", fake)
    names, cells = (REFERENCE, "eager-bf16"), (("last", 1), ("loss", 2))
    inputs = {cell: [np.zeros((cell[1], CONTEXT), dtype=np.int64)] for cell in cells}
    results = [{"backend": name, "output": output, "batch": batch, "latency_ms": {}, "gpu_ms": None}
               for name in (*names, AGAIN) for output, batch in cells]  # fmt: skip
    add_gpu_times(results, names, ctx, inputs, Journal())
    measured = {(row["backend"], row["output"]) for row in results if row["gpu_ms"]}
    assert measured == {(REFERENCE, "last"), ("eager-bf16", "last")}


def test_a_checkpoint_with_nan_weights_is_refused(model, folder, rows):
    broken = Transformer(model.config)
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    manifest = read_json(folder / "manifest.json")
    ctx = LoadContext(broken.eval(), manifest, folder, torch.device("cpu"), threads=2)
    with pytest.raises(PicollmError, match="the checkpoint itself can't serve as the reference: failed: accuracy"):
        benchmark(ctx, rows, setting([], last=(1,)), folder)


def test_noise_beyond_the_limit_is_marked_and_shown(ctx, folder, rows):
    report, _ = benchmark(ctx, rows, setting(["eager-bf16"], noise_limit=1e-9, last=(1,)), folder)
    assert all(row["noisy"] and "latency_ms" in row for row in report["results"])
    assert any("NOISY" in line for line in lines(report))


@pytest.mark.heavy
def test_a_fresh_process_measures_the_cold_start(ctx, folder, rows):
    found = cold_start("eager-bf16", ctx, folder, batch=2)
    assert found["batch"] == 2 and found["first_ms"] > 0 and found["load_seconds"] >= 0
    weights = sum(p.numel() for p in ctx.model.parameters()) * 2 / 2**20
    assert weights < found["memory_mib"] < 500 and found["gpu_memory_mib"] is None
    with pytest.raises(
        PicollmError, match="openvino-fp32 in a fresh process: exit code 1: picollm: not run: it was not"
    ):
        cold_start("openvino-fp32", ctx, folder, batch=1)


def test_a_batch_beyond_the_engine_or_the_split_is_refused(ctx, folder, rows):
    with pytest.raises(PicollmError, match="benchmark.batches: 8 is beyond the engines' profile, batch 1 to 4"):
        benchmark(ctx, rows, setting([], last=(8,)), folder)
    with pytest.raises(PicollmError, match="the validation split has 2 rows of 16 tokens"):
        benchmark(ctx, rows[:2], setting([], last=(4,)), folder)
    with pytest.raises(PicollmError, match="the tokens have ids up to 50000, but the model's vocabulary has 500"):
        benchmark(ctx, np.full_like(rows, 50_000), setting([], last=(1,)), folder)


def test_the_full_grid_has_everything_but_what_is_unproven():
    engine = {"grid": "full", "backends": ["eager-fp32"], "outputs": ["last"], "max_batch": 2, "emulated": True}
    full, listed = grid(engine, [1]), grid(engine | {"grid": "listed", "outputs": ["last", "loss"]}, [2, 1, 2])
    assert full.graphs == ("logits", "nats") and full.largest == 32 <= full.max_batch
    assert set(BACKENDS) - set(full.backends) == {"aoti-b1-fp32", "aoti-b1-bf16", "aoti-b1-fp16"}
    assert set(full.batches) == {"last", "full", "loss"}
    assert listed == Grid(("eager-fp32", "eager-bf16"), {"last": (2, 1), "loss": (2, 1)}, 2, emulated=True)
    assert listed.graphs == ("logits", "nats") and grid(engine | {"grid": "listed"}).graphs == ("logits",)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux: other processes are not measured")
def test_the_meter_counts_other_processes_and_not_this_one(monkeypatch):
    readings = iter([(100.0, 500.0, 40.0, 7.0), (110.0, 525.0, 50.0, 8.0)])  # clock, everyone, own, stolen
    assert all(value >= 0 for value in CpuMeter.read())
    monkeypatch.setattr(CpuMeter, "read", staticmethod(lambda: next(readings)))
    assert CpuMeter().others() == {"busy_cores": 1.5, "stolen_cores": 0.1}


def test_the_description_of_hardware_names_processor_gpu_and_packages():
    found = describe_hardware(device="cpu", threads=2)
    assert found["packages"]["torch"] == torch.__version__
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["model"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
