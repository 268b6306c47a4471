"""Bad input of the whole pipeline: one clear line, exit code not 0, nothing half-written."""

import os
import signal
import subprocess
import time

import pytest
import workspace
import yaml
from refusals import said


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return workspace.create(tmp_path_factory.mktemp("repository") / "bad")


@pytest.fixture(autouse=True)
def fresh_config(project):
    stages = project.path / "dvc.yaml"
    before = stages.read_bytes()
    yield
    workspace.set_preset(project.path, "smoke")
    stages.write_bytes(before)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("pretrain", {"lrr": 1}, ["pretrain.lrr", "did you mean lr"]),
        ("pretrain", {"lr": "fast"}, ["pretrain.lr", "'fast'", "number"]),
        ("corpus", {"source": "books"}, ["corpus.source", "'books'", "enwiki-sample"]),
        ("corpus", {"source": "local", "path": "nowhere"}, ["corpus.path", "nowhere"]),
        ("model", {"checkpoint": "nowhere"}, ["model.checkpoint", "nowhere/model.safetensors is missing"]),
        ("model", {"d_model": 30}, ["model.d_model", "30", "14"]),
    ],
)
def test_wrong_config_stops_the_snakefile(project, section, values, words):
    project.set(section, **values)
    line = said(project.snakemake("-n", ok=False))
    assert all(word in line for word in words), line
    assert not (project.path / "data").exists()


@pytest.mark.parametrize("override", [("--config", "report=1"), ("--configfile", "presets/wikitext-103.yaml")])
def test_overrides_on_the_command_line_are_refused(project, override):
    line = said(project.snakemake("-n", *override, ok=False))
    assert "refused" in line and "edit config.yaml" in line


def test_edited_rules_without_dvc_yaml_are_refused(project):
    rules = project.path / "rules/data.smk"
    original = rules.read_text()
    rules.write_text(original.replace('metrics="reports/metrics/data.json"', 'metrics="reports/metrics/text.json"'))
    assert "picollm dvc-yaml" in said(project.snakemake("-n", ok=False))
    rules.write_text(original)
    project.snakemake("-n")


def test_an_empty_corpus_file_is_refused(project):
    (project.path / "text").mkdir(exist_ok=True)
    (project.path / "text/a.txt").write_text("")
    project.set("corpus", source="local", path="text")
    project.picollm("dvc-yaml")
    text = project.snakemake("prepare_corpus", ok=False)
    assert "prepare_corpus: FAILED: text/a.txt is empty" in text
    assert not list((project.path / "data").rglob("*.parquet*"))


def test_missing_sentences_are_refused(project):
    project.set("attention", sentences="nowhere.yaml")
    for output in (project.picollm("dvc-yaml", ok=False), project.snakemake("-n", ok=False)):
        assert "nowhere.yaml is missing" in said(output)


@pytest.mark.parametrize("preset", ["wikitext-103", "grammar"])
def test_a_preset_plans_the_whole_graph_at_once(project, preset):
    project.picollm("preset", preset, "--force")  # another text: other files in dvc.yaml
    assert project.planned() == set(yaml.safe_load((project.path / "dvc.yaml").read_text())["stages"])


def test_a_read_only_output_folder_is_refused(project):
    folder = project.path / "reports"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    command = ["snakemake", "--cores", "all", "prepare_corpus"]
    if os.geteuid() == 0:  # root ignores modes unless these are dropped
        drop = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--", *command]
    try:
        line = said(project.run(*command, ok=False))
    finally:
        folder.chmod(0o755)
    assert "reports can't be written" in line


def test_second_run_at_once_is_refused(project):
    command = ["snakemake", "--cores", "all", "tokenize_pack"]
    first = subprocess.Popen(
        command, cwd=project.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=workspace.ENVIRONMENT | {"PYTHONPATH": str(project.path)},
    )  # fmt: skip
    try:
        locks = project.path / ".snakemake/locks"
        deadline = time.monotonic() + 60
        while not (locks.exists() and any(locks.iterdir())):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert "another run is active here (process" in said(project.run(*command, ok=False))
        assert first.wait(timeout=120) == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert (project.path / "data/tokens/manifest.json").exists()
