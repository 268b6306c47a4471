"""The whole real pipeline with the smoke preset: one run, then typical actions on copies of it."""

import json
import os
import pty
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import jsonschema
import pytest
import workspace
import yaml
from conftest import once

import picollm.engine
from picollm.files import read_json

STAGES = {
    "prepare_corpus", "tokenize_pack", "pretrain", "extract_attention", "classify_heads", "cluster_heads",
    "score_mechanisms", "ablate_heads", "probe_heads", "state_findings", "trt_compile", "trt_benchmark", "nsys_capture",
    "draw_figures", "final_report",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(root_of_all, tmp_path_factory):
    return once(root_of_all / "with space", run_all).copy(tmp_path_factory.mktemp("repository") / "with space")


def run_all(path):
    project = workspace.create(path)
    project.take_few_sentences()
    project.set("model", n_layers=3)
    project.picollm("dvc-yaml")
    project.snakemake("reports/final.html")
    project.commit("a run")


def test_both_tools_say_that_nothing_is_to_be_done(project):
    assert project.planned() == set()
    assert project.changed() == set()
    assert set(yaml.safe_load((project.path / "dvc.lock").read_text())["stages"]) == STAGES


def test_report_needs_no_network_and_names_what_was_not_run(project):
    html = (project.path / "reports/final.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?http|@import""", html)
    assert re.findall(r"<script(?: type=\"application/[\w-]+\" id=\"[\w-]+\")?>", html) == re.findall(
        r"<script[^>]*>", html
    )
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert html.count('src="data:image/') == 14 + 2 * 10
    benchmark = json.loads((project.path / "reports/benchmark.json").read_text())
    assert benchmark["backends"]["tensorrt-fp32"]["status"] in html
    jsonschema.validate(benchmark, read_json(Path(picollm.engine.__path__[0], "benchmark.schema.json")))


def test_summary_is_five_lines(project):
    assert len(project.picollm("summary").splitlines()) == 5


def test_the_trained_model_writes_and_is_evaluated(project):
    assert project.picollm("generate", "--prompt", "The city", "--tokens", "12").startswith("The city")
    training = json.loads((project.path / "reports/training.json").read_text())
    found = json.loads(project.picollm("evaluate", "--json"))
    assert found["loss"] == pytest.approx(training["test_loss"], rel=1e-3)  # the split's tail is not in the packed rows
    assert "empty.txt is empty" in refused(project, "evaluate", "empty.txt")


@pytest.mark.slow
def test_the_study_of_an_exported_model_is_that_of_the_pipeline(project):
    project.picollm("export")
    assert {path.name for path in (project.path / "exported").iterdir()} == {"config.json", "model.safetensors"}
    assert "bits per byte" in project.picollm("evaluate", "data/corpus/validation.parquet")
    assert project.picollm("evaluate", "--json") == project.picollm("evaluate", "--json", "--model", "exported")
    text = project.picollm("analyze", "--model", "exported", "--sentences", workspace.FEW, "-o", "mine")
    assert "Heads: of 21" in text and "Families of heads: " in text
    for name in ("heads.json", "heads.csv", "clusters.json"):
        assert (project.path / "mine" / name).read_bytes() == (project.path / "reports" / name).read_bytes(), name
    for path in (project.path / "data/attention").glob("*.npz"):
        assert (project.path / "mine/attention" / path.name).read_bytes() == path.read_bytes()
    assert len(list((project.path / "mine/figures").glob("*.*g"))) == 7
    sentences = project.path / "own.yaml"
    sentences.write_text("simple: nothing")
    assert "own.yaml" in refused(project, "analyze", "--sentences", "own.yaml")


def refused(project, *command):
    (project.path / "empty.txt").write_text("")
    return project.picollm(*command, ok=False)


def test_no_artefact_holds_the_path_of_the_project(project, root_of_all):
    needle = str(root_of_all).encode()
    artefacts = [p for folder in ("data", "reports") for p in (project.path / folder).rglob("*") if p.is_file()]
    assert len(artefacts) > 40
    # A trace records the script that ran, path and all; it is a recording of this machine.
    assert [p for p in artefacts if needle in p.read_bytes() and p.name != "training.trace.json"] == []


def test_metrics_are_flat_numbers(project):
    files = sorted((project.path / "reports/metrics").glob("*.json"))
    assert [p.stem for p in files] == [
        "ablation", "benchmark", "clusters", "data", "findings", "heads", "mechanisms", "probes", "profile", "training",
    ]  # fmt: skip
    for path in files:
        values = json.loads(path.read_text())
        assert 0 < len(values) <= 20
        assert all(type(value) in (int, float) for value in values.values()), path


@pytest.mark.slow
def test_backends_are_timed_by_hand(project):
    measured = (project.path / "reports/benchmark.json").read_bytes()
    text = project.picollm(
        "bench", "--backends", "onnxruntime-fp32,openvino-int8", "--outputs", "last,full", "-o", "by-hand.json"
    )
    assert re.search(r"onnxruntime-fp32 +full +batch 1 +p50 .* eager-fp32", text)
    assert "openvino-int8        not run: it was not built: name it in engine.backends" in text
    rows = [(row["backend"], row["output"]) for row in read_json(project.path / "by-hand.json")["results"]]
    assert {(name, output) for name in ("eager-fp32", "onnxruntime-fp32") for output in ("last", "full")} <= set(rows)
    assert len(rows) == len(set(rows)) and not {name for name, _ in rows} & {"tensorrt-fp32"}
    assert (project.path / "reports/benchmark.json").read_bytes() == measured
    text = project.picollm("bench", "--backends", "onnxruntime-fp32", "--outputs", "loss")
    assert "its graph nats was not built: name the output in engine.outputs, and run trt_compile" in text
    assert "engine.backends.0 = 'fast'" in refused(project, "bench", "--backends", "fast")
    assert "must not exceed engine.max_batch = 2" in refused(project, "bench", "--batches", "64")
    (project.path / "by-hand.json").unlink()


@pytest.mark.slow
def test_training_is_profiled_by_hand(project):
    text = project.picollm("profile", "--steps", "3", "-o", "elsewhere")
    assert (
        text.startswith("torch.profiler") and "3 steps" in text and re.search(r"backward +\d+\.\d+% of the time", text)
    )
    assert {path.name for path in (project.path / "elsewhere").iterdir()} == {"manifest.json", "training.trace.json"}
    shutil.rmtree(project.path / "elsewhere")


@pytest.mark.slow
def test_benchmark_settings_touch_only_the_benchmark(project):
    project.set("benchmark", gate_rows=9)
    assert project.changed() == {"trt_benchmark"}
    assert project.planned() == {"trt_benchmark", "draw_figures", "final_report"}
    project.run("git", "checkout", "-q", "config.yaml")
    assert project.changed() == project.planned() == set()


@pytest.mark.slow
def test_dvc_repro_reruns_what_depends_on_a_value_and_snakemake_agrees(project):
    before = json.loads((project.path / "reports/metrics/clusters.json").read_text())
    untouched = (project.path / "data/model/model.safetensors").stat().st_mtime_ns
    project.set("clusters", max_k=2)
    text = project.run("dvc", "repro")
    ran = set(re.findall(r"Running stage '(\w+)'", text))
    assert "cluster_heads" in ran and ran <= {"cluster_heads", "state_findings", "draw_figures", "final_report"}
    assert project.planned() == project.changed() == set()
    assert (project.path / "data/model/model.safetensors").stat().st_mtime_ns == untouched
    after = json.loads((project.path / "reports/metrics/clusters.json").read_text())
    assert read_json(project.path / "reports/clusters.json")["k"] == 2 and after["structure_p"] == before["structure_p"]
    project.commit("two clusters")
    shown = json.loads(project.run("dvc", "metrics", "diff", "--json", "HEAD~1"))
    for key in before.keys() & after.keys():
        assert (before[key] != after[key]) == (key in shown.get("reports/metrics/clusters.json", {}))


@pytest.mark.slow
def test_touched_code_is_not_stale_but_changed_code_is(project):
    module = project.path / "picollm/attention/clusters.py"
    module.touch()
    assert project.planned() == project.changed() == set()
    original = module.read_bytes()
    module.write_bytes(original + b"# edited\n")
    assert project.changed() == {"cluster_heads"}
    assert project.planned() == {"cluster_heads", "state_findings", "draw_figures", "final_report"}
    module.write_bytes(original)
    for path in ("config.py", "errors.py", "progress.py", "pipeline/job.py"):  # code that can't change a result
        with open(project.path / "picollm" / path, "a") as file:
            file.write('"""A docstring that was edited."""\n')
    assert project.planned() == project.changed() == set()
    project.run("git", "checkout", "-q", "picollm")


@pytest.mark.slow
def test_fresh_clone_with_pulled_data_has_nothing_to_do_but_sees_an_edit(project, tmp_path):
    project.run("dvc", "remote", "add", "-f", "-d", "--local", "store", str(tmp_path / "store"))
    project.run("dvc", "push", "-q")
    clone = workspace.Workspace(tmp_path / "clone")
    project.run("git", "clone", "-q", ".", str(clone.path))
    clone.run("dvc", "remote", "add", "-d", "--local", "store", str(tmp_path / "store"))
    clone.run("dvc", "pull", "-q")
    clone.picollm("sync")
    assert clone.changed() == clone.planned() == set()
    clone.set("clusters", max_k=3)  # used by no other test
    assert clone.changed() == {"cluster_heads"}
    assert clone.planned() == {"cluster_heads", "state_findings", "draw_figures", "final_report"}
    assert "recorded" in clone.picollm("show", "reports/clusters.json")


@pytest.mark.slow
def test_damaged_shard_stops_training_with_one_line_and_keeps_nothing(project):
    shard = project.path / "data/tokens/train-00000.arrow"
    good, before = shard.read_bytes(), shard.stat()
    shard.write_bytes(good[:2000] + bytes([good[2000] ^ 1]) + good[2001:])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))  # invisible, like damage by a disk
    text = project.snakemake("-R", "pretrain", "--", "pretrain", ok=False)
    lines = [line for line in text.splitlines() if "FAILED" in line]
    assert len(lines) == 1 and "pretrain: FAILED: data/tokens/train-00000.arrow is damaged" in lines[0]
    assert "log: logs/pretrain.log" in lines[0]
    assert not (project.path / "data/model/model.safetensors").exists()
    locked = yaml.safe_load((project.path / "dvc.lock").read_text())["stages"]
    assert set(locked) == STAGES  # nothing was recorded over the good run
    assert "data/tokens/train-00000.arrow: damaged" in project.picollm("verify", ok=False)
    project.picollm("verify", "--fix")  # what the failed rule deleted comes back too, its metrics included
    assert shard.read_bytes() == good
    assert project.changed() == project.planned() == set()


def test_a_shard_that_was_changed_is_restored_before_the_run(project):
    shard = project.path / "data/tokens/train-00000.arrow"
    good = shard.read_bytes()
    shard.write_bytes(good[:2000])
    text = project.snakemake("--quiet", "all")
    assert "restored from DVC's cache: tokenize_pack" in text
    assert shard.read_bytes() == good


def test_without_a_command_it_says_where_things_stand(project):
    text = project.picollm()
    assert "Everything is up to date." in text and "picollm open" in text and "Data: " in text
    project.set("report", title="Another")
    text = project.picollm("status")
    assert "The next run executes" in text and "final_report" in text and "make report" in text
    project.run("git", "checkout", "-q", "config.yaml")
    for name in ("Report", "Pipeline", "Model", "Data", "Measure"):
        assert re.search(rf"^{name} +\(e\.g\. picollm", project.picollm("--help"), re.M), name


@pytest.mark.slow
def test_the_page_of_now_says_what_is_out_of_date_and_what_is_missing(project):
    page, clusters = project.path / "page.html", project.path / "reports/clusters.json"
    assert project.picollm("page") == "Written: page.html\n"
    assert page.read_text() == (project.path / "reports/final.html").read_text()
    project.set("clusters", max_k=3)
    old = "reports/clusters.json is out of date: run `snakemake --cores all -- reports/clusters.json`"
    assert old in project.picollm("page") and old in page.read_text()
    project.run("git", "checkout", "-q", "config.yaml")
    aside = clusters.rename(clusters.with_suffix(".aside"))
    missing = "reports/clusters.json is missing: run `snakemake --cores all -- reports/clusters.json`"
    assert missing in project.picollm("page") and missing in page.read_text()
    aside.rename(clusters)
    page.unlink()
    assert project.planned() == set()


def test_a_bundle_has_the_run_and_the_same_bytes_each_time(project):
    for name in ("one.zip", "two.zip"):
        assert re.search(rf"{name}: \d+ files", project.picollm("bundle", "-o", name))
    one, two = ((project.path / name).read_bytes() for name in ("one.zip", "two.zip"))
    assert one == two
    with zipfile.ZipFile(project.path / "one.zip") as archive:
        names = archive.namelist()
        assert archive.read("picollm/reports/final.html") == (project.path / "reports/final.html").read_bytes()
    assert {"picollm/config.yaml", "picollm/dvc.lock", "picollm/data/model/model.safetensors"} <= set(names)
    for name in ("one.zip", "two.zip"):
        (project.path / name).unlink()


def test_on_a_terminal_one_picture_is_drawn(project):
    """A rule that runs again in a pseudo-terminal shows its name and its bar, and none of Snakemake's own lines."""
    command = ["snakemake", "--cores", "1", "--forcerun", "tokenize_pack", "--", "data/tokens/manifest.json"]
    screen, terminal = pty.openpty()
    child = subprocess.Popen(
        command, cwd=project.path, stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True,
        env=workspace.ENVIRONMENT | {"PYTHONPATH": str(project.path), "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(terminal)
    parts = []
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # its end, on Linux
            break
        if not part:
            break
        parts.append(part)
    text = b"".join(parts).decode(errors="replace")
    assert child.wait() == 0, text
    assert "tokenize_pack" in text and "\x1b[" in text
    assert "Select jobs to execute" not in text and "Traceback" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is there again"
