"""Faults that users report for such tools, tested on the whole pipeline: one line each, and nothing is lost."""

import os
import shutil
import sys

import pytest
import standin
import workspace
from refusals import said

from picollm.data.articles import Article, write_articles


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return workspace.create(tmp_path_factory.mktemp("repository") / "reports")


@pytest.fixture
def fresh(project):
    """Yields the project, and restores its files afterwards."""
    kept = {name: (project.path / name).read_bytes() for name in ("config.yaml", "dvc.yaml")}
    yield project
    for name, data in kept.items():
        (project.path / name).write_bytes(data)


def as_somebody(path, *command):
    """Runs the command without root's permission to write everywhere."""
    drop = "-dac_override,-dac_read_search"
    root = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--"] if os.geteuid() == 0 else []
    return workspace.Workspace(path).run(*root, *command, ok=False)


PICOLLM = (sys.executable, "-m", "picollm.cli")


# --- Values and texts


@pytest.mark.slow
def test_small_floats_mean_the_same_to_all(tmp_path):
    """DVC writes 0.00005 as 5e-05, which is text in YAML 1.1."""
    project = workspace.create(tmp_path / "floats")
    standin.install(project.path)
    project.picollm("dvc-yaml")
    config = project.path / "config.yaml"
    config.write_text(config.read_text().replace("final_lr: 0.1 ", "final_lr: 0.00005 "))
    project.snakemake("data/model/model.safetensors")
    assert "final_lr: 5e-05" in (project.path / "dvc.lock").read_text()
    assert project.planned().isdisjoint({"pretrain"}) and "pretrain" not in project.changed()
    assert "all proven" in project.picollm("verify", ok=None)
    shown = project.picollm("show", "data/model/model.safetensors")
    assert "5e-05" in shown and "changed" not in shown, shown
    config.write_text(config.read_text().replace("final_lr: 0.00005 ", "final_lr: 5e-05 "))
    assert "pretrain" not in project.changed() and "pretrain" not in project.planned()


@pytest.mark.parametrize(
    ("line", "instead", "words"),
    [
        ("\nmodel:", "\ntokens:", "duplicate key tokens"),
        ("  seed: 1", "  seed: 010", "write it without the leading 0"),
        ("  clip: 1.0", "  clip: .inf", "pretrain.clip = inf"),
    ],
)
def test_a_value_that_readers_disagree_on_stops_before_anything_runs(fresh, line, instead, words):
    config = fresh.path / "config.yaml"
    assert line in config.read_text()
    config.write_text(config.read_text().replace(line, instead, 1))
    assert words in said(fresh.snakemake("-n", ok=False))
    assert not (fresh.path / "data").exists()


def test_a_fault_of_the_sentences_is_found_before_training(fresh):
    (fresh.path / "own.yaml").write_text("simple:\n  title: A\n  sentences: [One .]\nsimple:\n  title: B\n")
    fresh.set("attention", sentences="own.yaml")
    fresh.picollm("dvc-yaml", ok=None)
    line = said(fresh.snakemake("-n", ok=False))
    assert "own.yaml, line 4" in line and "duplicate key simple" in line


def test_a_frozen_stage_is_not_dropped_silently(fresh):
    fresh.run("dvc", "freeze", "pretrain")
    before = (fresh.path / "dvc.yaml").read_bytes()
    for output in (fresh.picollm("dvc-yaml", ok=False), fresh.snakemake("-n", ok=False)):
        assert "frozen stages are not supported" in said(output) and "dvc unfreeze pretrain" in output
    assert (fresh.path / "dvc.yaml").read_bytes() == before


# --- Corpora


@pytest.mark.slow
def test_a_folder_of_text_is_one_dependency_and_an_edit_in_it_is_seen_by_both(tmp_path):
    project = workspace.create(tmp_path / "folder")
    standin.install(project.path)
    corpus = project.path / "corpus"
    (corpus / ".git/objects").mkdir(parents=True)
    (corpus / "deep").mkdir()
    for i in range(40):
        (corpus / ("deep" if i % 2 else ".") / f"{i:03}.txt").write_text(f"Story {i} .\n")
    for left in (".DS_Store", ".git/objects/00"):
        (corpus / left).write_text("left by a system")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/linked.txt").write_text("A linked story .\n")
    (corpus / "more").symlink_to(tmp_path / "elsewhere")
    project.set("corpus", source="local", path="corpus")
    project.picollm("dvc-yaml")
    assert (project.path / "dvc.yaml").read_text().count("corpus/0") == 0
    project.snakemake("tokenize_pack")
    for left in (".DS_Store", ".git/objects/00"):
        (corpus / left).write_text("changed by a system")
    assert not {"prepare_corpus"} & (project.changed() | project.planned())
    assert "as in its recorded run" in project.picollm("show", "corpus/000.txt")
    assert "all proven" in project.picollm("verify")
    (tmp_path / "elsewhere/linked.txt").write_text("Another linked story .\n")
    assert "prepare_corpus" in project.changed() & project.planned(), "DVC follows no links by itself"
    project.snakemake("tokenize_pack")
    (corpus / "deep/001.txt").write_text("Another story .\n")
    assert "prepare_corpus" in project.changed() & project.planned()
    assert "corpus" in project.picollm("verify", ok=None)
    assert "as part of corpus  edited since" in project.picollm("show", "corpus/deep/001.txt")
    project.snakemake("tokenize_pack")
    assert not {"prepare_corpus", "tokenize_pack"} & (project.changed() | project.planned())


@pytest.mark.parametrize(
    "name",
    [
        "a{b}.txt",
        os.fsdecode(b"caf\xe9.txt"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("a$b.txt", "a\nb.txt")),
    ],
)
def test_a_name_that_the_tools_can_not_write_is_refused_before_anything_is_written(fresh, name):
    corpus = fresh.path / "odd"
    corpus.mkdir()
    (corpus / name).write_text("text")
    fresh.set("corpus", source="local", path="odd")
    before = (fresh.path / "dvc.yaml").read_bytes()
    for output in (fresh.picollm("dvc-yaml", ok=False), fresh.snakemake("-n", ok=False)):
        assert "corpus.path: the name" in said(output) and "rename it" in output
    assert (fresh.path / "dvc.yaml").read_bytes() == before
    shutil.rmtree(corpus)


# --- Commands


@pytest.mark.parametrize("command", ["missing", "damaged", "export", "analyze", "optimize", "profile", "bench"])
def test_a_command_that_can_not_do_its_work_says_why_in_one_line(fresh, tmp_path, command):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no more")
    write_articles(tmp_path / "good.parquet", [Article("A", "text\n")])
    arguments = {
        "missing": ["evaluate", tmp_path / "nowhere.parquet"],
        "damaged": ["evaluate", tmp_path / "damaged.parquet"],
        "export": ["export", "-o", locked / "model"],
        "analyze": ["analyze", "-o", locked / "out"],
        "optimize": ["optimize", "-o", locked / "out"],
        "profile": ["profile", "-o", locked / "out"],
        "bench": ["bench", "-o", locked / "out/bench.json"],
    }[command]
    line = said(as_somebody(fresh.path, *PICOLLM, *map(str, arguments)))
    assert str(tmp_path) in line or "data/model" in line
    if command not in ("missing", "damaged"):
        assert "can't be written" in line


def test_a_closed_pipe_ends_a_command_quietly(project):
    command = f"{sys.executable} -m picollm.cli verify | true; echo ${{PIPESTATUS[0]}}"
    assert "Traceback" not in (text := project.run("bash", "-c", command)) and "BrokenPipe" not in text


@pytest.mark.parametrize("folder", ["logs", ".snakemake"])
def test_a_folder_of_another_user_gives_a_one_line_error(fresh, folder):
    locked = fresh.path / folder
    locked.mkdir(exist_ok=True)
    modes = {path: path.stat().st_mode for path in [locked, *locked.rglob("*")] if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    try:
        text = as_somebody(fresh.path, "snakemake", "--cores", "all", "prepare_corpus")
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert folder in said(text) and "can't be written" in text


def test_a_repository_of_another_user_gives_a_one_line_error(built, tmp_path):
    copy = built.copy(tmp_path / "copy")
    environment = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}  # git's own way to try this
    line = said(copy.picollm("compare", "main", "other", ok=False, **environment))
    assert "belongs to another user" in line and "safe.directory" in line
