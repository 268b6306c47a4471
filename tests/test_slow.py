"""Tests that take minutes: the original's preset on a small corpus, and a machine without optional software."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import workspace
import yaml

pytestmark = pytest.mark.slow

SENTENCE = (
    "The {n} {kind} of the valley was built in {year} and served {m} villages until the river changed its course . "
)


def wikitext(articles: int, seed: int) -> str:
    """Text in WikiText's format: headings between blank lines, sections, paragraphs of one line."""
    lines = []
    for a in range(articles):
        kind = ("mill", "bridge", "school", "chapel")[(a + seed) % 4]
        lines += ["", f" = {kind.title()} number {a + seed} = ", ""]
        for section in ("History", "Architecture"):
            body = "".join(
                SENTENCE.format(n=a + i, kind=kind, year=1700 + (7 * a + i) % 200, m=i + 2) for i in range(30)
            )
            lines += [f" = = {section} = = ", "", f" {body}", ""]
    return "\n".join(lines) + "\n"


@pytest.mark.exhaustive  # nine minutes
@pytest.mark.parametrize("context", [96, 384])
def test_the_originals_preset_on_a_local_corpus_reaches_the_report(tmp_path, context):
    project = workspace.create(tmp_path / "original", name="wikitext-103")
    text = project.path / "text"
    text.mkdir()
    (text / "wiki.train.tokens").write_text(wikitext(24, 0))
    (text / "wiki.valid.tokens").write_text(wikitext(6, 100))
    (text / "wiki.test.tokens").write_text(wikitext(6, 200))
    project.set("corpus", source="local", path="text")
    project.take_few_sentences()
    # The model and its precision are the preset's; only lengths shrink (at its context ablate_heads takes minutes).
    project.set("tokens", context=context)
    project.set("pretrain", length=2, unit="steps", batch_rows=2, compile="none")
    project.set("heads", bootstraps=100, null_models=3)
    project.set("clusters", bootstraps=2)
    project.set("mechanisms", windows=6, mean_windows=4, null_models=1)
    project.set("engine", compute_capabilities=["8.9"], max_batch=1, backends=["openvino-bf16", "tensorrt-fp16"])
    project.set("benchmark", batches=[1], rounds=3, block_seconds=0.2, gate_rows=4)
    project.set("profile", tool="torch.profiler", steps=3)
    project.picollm("dvc-yaml")
    assert "text" in yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"]["prepare_corpus"]["deps"]
    project.snakemake("reports/final.html")

    training = json.loads((project.path / "reports/training.json").read_text())
    assert training["parameters_non_embedding"] == 12_802_944 and training["model"]["context"] == context
    splits = json.loads((project.path / "data/tokens/manifest.json").read_text())["splits"]
    assert [splits[split]["articles"] for split in ("train", "validation", "test")] == [5, 6, 6]  # ceil(0.2 x 24)
    assert (project.path / "reports/final.html").stat().st_size > 100_000
    assert project.planned() == project.changed() == set()
    project.run("dvc", "plots", "show", "--out", "plots")
    drawn = (project.path / "plots/index.html").read_text()
    for title in ("Training", "Latency by backend, output and batch", "Heads with an effect"):
        assert f'"{title}"' in drawn, title
    project.snakemake("--report", "all.zip")
    with zipfile.ZipFile(project.path / "all.zip") as archive:
        listed = archive.read(next(name for name in archive.namelist() if name.endswith("/report.html"))).decode()
    for path, caption in (("reports/final.html", "attention explorer"), ("reports/heads.csv", "Every head"),
                          ("reports/training.csv", "every step"), ("reports/benchmark.csv", "Raw latencies"),
                          ("reports/findings.json", "the verdict on this model")):  # fmt: skip
        assert path in listed and caption in listed, path
    with open(text / "wiki.train.tokens", "a") as file:
        file.write("One more line .\n")
    assert project.changed() == {"prepare_corpus"} and "prepare_corpus" in project.planned()


def test_without_a_compiler_and_without_tensorrt_it_says_so_and_goes_on(tmp_path):
    project = workspace.create(tmp_path / "no-compiler")
    project.set("pretrain", compile="head")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "git", "python3"):  # all programs that the tools call, without a compiler
        tools.joinpath(name).symlink_to(shutil.which(name))
    path = f"{workspace.ENVIRONMENT['PATH'].split(os.pathsep)[0]}{os.pathsep}{tools}"
    assert not any(shutil.which(name, path=path) for name in ("g++", "c++", "clang++"))
    # Python runs this file at its start; a module that is None can't be found.
    (project.path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorrt_rtx'] = None\n")
    text = project.snakemake("trt_compile", PATH=path, CXX="")
    assert (
        "runs eagerly and slower: no C++ compiler" in text
        and "tensorrt-rtx is not installed: pip install tensorrt-rtx" in text
    )
    training = json.loads(Path(project.path, "reports/training.json").read_text())
    assert training["loss_path"].startswith("eager (no C++ compiler), each target against 1,024 common and 512 sampled")
    engine = json.loads(Path(project.path, "data/engine/manifest.json").read_text())
    assert engine["backends"]["tensorrt-fp32"]["files"] == {}
    assert [file["file"] for file in engine["files"]] == ["logits.fp32.onnx"]


@pytest.mark.exhaustive  # the next test does the same with a model that is not ours
def test_a_model_from_elsewhere_takes_the_place_of_a_trained_one(tmp_path):
    project = workspace.create(tmp_path / "foreign")
    project.snakemake("pretrain")
    project.picollm("export", "-o", "elsewhere")
    trained = json.loads((project.path / "reports/training.json").read_text())
    project.set("model", checkpoint="elsewhere")
    project.picollm("dvc-yaml")
    project.snakemake("reports/final.html")
    imported = json.loads((project.path / "reports/training.json").read_text())
    assert (imported["imported"], imported["steps"]) == ("elsewhere", 0)
    for name in ("parameters", "validation_loss", "test_loss", "four_gram_loss"):
        assert imported[name] == pytest.approx(trained[name], rel=1e-6)
    assert "Nothing was trained" in (project.path / "reports/final.html").read_text()
    assert project.planned() == project.changed() == set()
    weights = project.path / "elsewhere/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert "pretrain" in project.planned() & project.changed()
    shutil.rmtree(project.path / "elsewhere")
    refused = project.run("snakemake", "-n", ok=False)
    assert "model.checkpoint = elsewhere: elsewhere/model.safetensors is missing" in refused


def test_a_model_of_another_family_goes_through_the_whole_pipeline(tmp_path):
    """GPT-2 with random weights and its own tokenizer: engines are built from its graph, the text is in its ids."""
    pytest.importorskip("transformers", reason="pip install -e '.[models]'")
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    project = workspace.create(tmp_path / "family")
    folder = project.path / "gpt2"
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 160}
    ids = {"vocab_size": 3008, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**shape, **ids)).save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    text = (project.path / "picollm/attention/sentences.yaml").read_text()
    tokenizer.train_from_iterator(text.splitlines(), 3000, special_tokens=["<|start|>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    project.set("model", checkpoint="gpt2")
    project.set("tokens", context=128)
    project.set("mechanisms", windows=6, mean_windows=6, null_models=1)
    project.set("engine", backends=["eager-fp32", "onnxruntime-fp32", "openvino-fp32", "tensorrt-fp32"])
    project.take_few_sentences()
    project.picollm("dvc-yaml")
    project.snakemake("reports/final.html")

    training = json.loads((project.path / "reports/training.json").read_text())
    manifest = json.loads((project.path / "data/tokens/manifest.json").read_text())
    assert (training["imported"], training["model"]["family"], training["model"]["n_heads"]) == ("gpt2", "gpt2", 2)
    assert (manifest["tokenizer"], manifest["end"]) == ("tokenizer.json", 0)
    assert manifest["vocab_size"] == tokenizer.get_vocab_size()
    assert abs(training["test_loss"] - math.log(3008)) < 0.5, "random weights know nothing"
    heads = json.loads((project.path / "reports/heads.json").read_text())
    assert len(heads["heads"]) == 4 and heads["null"]["heads"] == 3 * 4
    ablation = json.loads((project.path / "reports/ablation.json").read_text())
    assert len(ablation["heads"]) == 4 and ablation["interactions"]["pairs"] == 6
    benchmark = json.loads((project.path / "reports/benchmark.json").read_text())
    status = {name: row["status"] for name, row in benchmark["backends"].items()}
    assert status["onnxruntime-fp32"] == status["openvino-fp32"] == status["eager-fp32"] == "ok", status
    page = (project.path / "reports/final.html").read_text()
    assert "A profile of training needs picollm's own model" in page.replace("&#39;", "'")
    assert project.planned() == project.changed() == set()
    with open(folder / "tokenizer.json", "a") as file:
        file.write(" ")
    assert {"tokenize_pack", "extract_attention"} <= project.planned() & project.changed()


@pytest.mark.parametrize(
    "driver",
    [
        ("snakemake", "--cores", "all", "pretrain"),
        pytest.param(("dvc", "repro", "pretrain"), marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_is_ended_in_training_goes_on_from_its_checkpoint(tmp_path, driver):
    """Both drivers remove what an unfinished rule wrote, but not the checkpoints."""
    project = workspace.create(tmp_path / "ended")
    project.set("pretrain", length=60, checkpoint_every=3, validate_every=30)
    undisturbed = project.copy(tmp_path / "undisturbed")
    environment = workspace.ENVIRONMENT | {"PYTHONPATH": str(project.path)}
    for number, words in ((signal.SIGTERM, "run again to resume"), (signal.SIGKILL, "")):
        before = set(project.path.glob("checkpoints/*/step-*.json"))
        process = subprocess.Popen(driver, cwd=project.path, env=environment, start_new_session=True)
        deadline = time.monotonic() + 200
        while set(project.path.glob("checkpoints/*/step-*.json")) <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        assert process.wait() != 0 and not (project.path / "data/model/model.safetensors").exists()
        while words not in (project.path / "logs/pretrain.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)  # DVC ends before its job
        assert words in (project.path / "logs/pretrain.log").read_text()
    project.run(*driver)
    training = json.loads((project.path / "reports/training.json").read_text())
    assert len(training["resumed_at"]) == 2 and training["steps"] == 60
    assert not list(project.path.glob("checkpoints/*")), "they go when the result is written"
    undisturbed.run(*driver)
    for file in ("data/model/model.safetensors", "data/model/last.safetensors", "data/model/snapshots/manifest.json"):
        assert (project.path / file).read_bytes() == (undisturbed.path / file).read_bytes()
    assert "pretrain" not in project.planned() | project.changed()


@pytest.mark.exhaustive  # minutes of timing, useless on a busy machine
def test_two_runs_of_the_benchmark_agree_within_their_noise(tmp_path):
    project = workspace.create(tmp_path / "twice")
    project.set("engine", backends=["eager-fp32", "openvino-fp32", "onnxruntime-fp32"])
    project.set("benchmark", rounds=9, block_seconds=0.3, warmup_seconds=0.5)
    project.snakemake("trt_benchmark")
    reports = []
    for _ in range(2):
        project.run(
            "snakemake", "--cores", "all", "--quiet", "all", "-R", "trt_benchmark", "--", "reports/benchmark.json"
        )
        reports.append(json.loads((project.path / "reports/benchmark.json").read_text()))
    assert reports[0]["created_utc"] != reports[1]["created_utc"]
    tables = [{row["backend"]: row for row in report["results"]} for report in reports]
    limit = 1 + reports[0]["protocol"]["noise_limit"]
    if any(row.get("noisy") for table in tables for row in table.values()):
        pytest.skip("a run was noisier than its limit, and says itself that its ratios are not to be trusted")
    for name in ("openvino-fp32", "onnxruntime-fp32"):
        rows = [table[name] for table in tables]
        first, second = (row["speedups"]["eager-fp32"] for row in rows)
        assert first["low"] / limit <= second["high"] * limit and second["low"] / limit <= first["high"] * limit, name


def test_the_command_for_a_gpu_runs_from_anywhere_and_says_what_failed(tmp_path):
    script = workspace.ROOT / "benchmarks/gpu.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(script), "--size", "smoke", "--device", "cpu"]
    most = ["--parts", "correctness,training,profile,benchmark", "-o", "found"]  # the ladder takes minutes
    subprocess.run([*command, *most], cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "found/gpu.json").read_text())
    assert not [name for name in ("correctness", "training", "benchmark", "profile") if "error" in found[name]]
    assert found["benchmark"]["weights"] == "trained" and found["correctness"]["logits"] == 0
    backends = found["benchmark"]["backends"]
    fresh = backends["onnxruntime-fp32"]
    assert fresh["status"] == "ok" and fresh["cold"]["first_ms"] > 0
    assert found["profile"]["steps"]["n"] == 3 and "## Training" in (tmp_path / "found/gpu.md").read_text()
    broken = f"import sys; sys.path.append({str(workspace.ROOT)!r}); import picollm.profiling.workload as w; del w.run"
    (tmp_path / "sitecustomize.py").write_text(broken)
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run([*command, *most], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "gpu: profile ..." not in done.stdout, "what is done is not done again"
    fresh = [*command, "--parts", "profile", "-o", "fresh"]
    done = subprocess.run(fresh, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode and done.stderr.endswith("gpu: failed: profile; fresh/gpu.md says why\n")
    assert "Failed: AttributeError" in (tmp_path / "fresh/gpu.md").read_text()


def test_one_command_makes_a_model_fast(tmp_path):
    project = workspace.create(tmp_path / "optimize")
    project.snakemake("pretrain")
    project.picollm("export", "-o", "elsewhere")
    project.set("engine", backends=["eager-bf16", "onnxruntime-int8", "tensorrt-fp16"], outputs=["last", "loss"])
    text = project.picollm("optimize", "--model", "elsewhere", "-o", "fast")
    report = json.loads((project.path / "fast/benchmark.json").read_text())
    sizes = {name: (row["artefact"] or {}).get("bytes") for name, row in report["backends"].items()}
    weights = project.path / "elsewhere/model.safetensors"
    assert sizes["onnxruntime-int8"] < 0.35 * weights.stat().st_size and "Written: fast/" in text
    assert {row["output"] for row in report["results"]} == {"last", "loss"}
    manifest = json.loads((project.path / "fast/engine/manifest.json").read_text())
    assert {f"{graph}.int8.onnx" for graph in ("logits", "nats")} <= {entry["file"] for entry in manifest["files"]}
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    refused = project.picollm("bench", "--model", "elsewhere", "--engine", "fast/engine", ok=False)
    assert (
        "was built from other weights than elsewhere/model.safetensors: run `picollm optimize` with that model"
        in refused
    )
