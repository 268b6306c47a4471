"""`picollm show`: a file's origin, and whether the file on disk is the recorded one."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from refusals import refusal
from workspace import Workspace

from picollm.files import write_json
from picollm.pipeline import fingerprint
from picollm.pipeline.receipts import RECEIPTS, Receipt, md5
from picollm.pipeline.show import show

DVC_YAML = """
stages:
  pack:
    cmd: "true"
    deps: [corpus.txt, picollm/packing.py, workflow_scripts/pack.py]
    params: [{config.yaml: [tokens]}]
    outs: [data/tokens]
    metrics: [{reports/metrics/data.json: {cache: false}}]
  measure:
    cmd: "true"
    deps: [data/tokens, workflow_scripts/measure.py]
    params: [{config.yaml: [benchmark, tokens]}]
    outs: [reports/benchmark.csv, reports/benchmark.json]
  later:
    cmd: "true"
    deps: [reports/benchmark.json, workflow_scripts/later.py]
    params: [{config.yaml: [tokens]}]
    outs: [reports/later.txt]
"""
HARDWARE = {
    "device": "cpu", "cpu": {"model": "CPU A", "cores": 2}, "gpu": None, "memory_gib": 4.0, "threads": 1,
    "python": "3.11.7", "packages": {"torch": "2.0"},
}  # fmt: skip
FILES = {
    "dvc.yaml": DVC_YAML,
    "config.yaml": "tokens: {context: 64}\nbenchmark: {batches: [1, 8], path: null}\n",
    "corpus.txt": "text",
    "picollm/packing.py": "SIZE = 1\n",
    "workflow_scripts/pack.py": "from picollm.packing import SIZE\n",
    "workflow_scripts/measure.py": "import json\n",
    "workflow_scripts/later.py": "import json\n",
    "unread.txt": "nobody reads this",
    "data/tokens/train-00000.arrow": "rows",
    "data/tokens/manifest.json": "{}",
    "reports/metrics/data.json": '{"tokens": 4}',
    "reports/benchmark.csv": "ms\n1\n",
    "reports/benchmark.json": json.dumps({"hardware": HARDWARE}),
    ".gitignore": "/logs/\n/data/\n/reports/*\n!/reports/metrics/\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two stages have a recorded run; the commit after it changes the entry of `pack` alone."""
    repository = Workspace(tmp_path_factory.mktemp("show") / "repository")
    for name, text in FILES.items():
        (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.path / name).write_text(text)
    repository.run("git", "init", "-q")
    repository.run("dvc", "init", "-q")
    repository.run("dvc", "commit", "-f", "-q", "measure")
    repository.commit("measured")
    repository.run("dvc", "commit", "-f", "-q", "pack")
    repository.commit("packed")
    return repository.path


@pytest.fixture
def project(built, tmp_path):
    shutil.copytree(built, tmp_path / "repository")
    return tmp_path / "repository"


def facts(root, path):
    """Returns the lines `name value` at the start of the output."""
    lines = show(root, path).split("\ninputs\n")[0].splitlines()[1:]
    return {line[2:13].strip(): line[13:] for line in lines if line[2:13].strip()}


def block(text, name):
    """Returns the lines under a heading, split into cells."""
    lines = text.split(f"\n{name}\n")[1].splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    return [line.split() for line in lines[:end]]


def test_a_file_that_is_as_recorded(built):
    text = show(built, "reports/benchmark.csv")
    found = facts(built, "reports/benchmark.csv")
    assert (found["rule"], found["state"], found["size"]) == ("measure", "recorded", "5 bytes")
    assert found["md5"] == md5(built / "reports/benchmark.csv")
    assert found["ran on"].startswith("CPU A, 2 cores") and found["ran on"].endswith("(reports/benchmark.json)")
    assert "snakemake --cores all -R measure -- reports/benchmark.csv\n" in text
    assert "dvc repro -f -s measure\n" in text
    assert block(text, "parameters") == [
        ["benchmark.batches", "[1,", "8]"], ["benchmark.path", "null"], ["tokens.context", "64"],
    ]  # fmt: skip
    ((path, oid, rule),) = block(text, "inputs")
    assert (path, rule) == ("data/tokens", "pack") and oid.endswith(".dir")


def test_the_code_is_snakemakes_fingerprint(built):
    found = facts(built, "data/tokens")
    files = fingerprint.code_files(Path("workflow_scripts/pack.py"), built)
    assert [path.as_posix() for path in files] == ["picollm/packing.py", "workflow_scripts/pack.py"]
    assert found["code"] == f"2 files, fingerprint {fingerprint.fingerprint(files, built)}"
    assert "as in the recorded run" in show(built, "data/tokens")


def test_edited_code_is_named(project):
    (project / "picollm/packing.py").write_text("SIZE = 2\n")
    assert "changed since the recorded run: picollm/packing.py\n" in show(project, "data/tokens")
    assert "as in the recorded run" in show(project, "reports/benchmark.csv")


def test_a_file_inside_a_folder_is_made_through_the_manifest(built):
    path = "data/tokens/train-00000.arrow"
    text = show(built, path)
    assert facts(built, path)["state"] == "recorded"
    assert facts(built, path)["md5"] == md5(built / path)
    assert "-R pack -- data/tokens/manifest.json\n" in text
    assert show(built, str(built / path)) == text == show(built, f"./{path}")


def test_damage_and_loss_are_seen(project):
    shard = project / "data/tokens/train-00000.arrow"
    shard.write_text("rowz")
    assert facts(project, "data/tokens/train-00000.arrow")["state"] == "differs from dvc.lock"
    assert facts(project, "data/tokens/train-00000.arrow")["md5"] == md5(shard)
    assert facts(project, "data/tokens")["state"] == "differs from dvc.lock"
    assert facts(project, "data/tokens/manifest.json")["state"] == "recorded"
    shard.unlink()
    assert facts(project, "data/tokens/train-00000.arrow")["state"] == "not here"
    (project / "reports/metrics/data.json").unlink()
    assert facts(project, "reports/metrics/data.json")["state"] == "not here"


def test_an_extra_file_in_a_folder_is_seen(project):
    (project / "data/tokens/extra.arrow").write_text("more")
    assert facts(project, "data/tokens")["state"] == "differs from dvc.lock"
    assert facts(project, "data/tokens/extra.arrow")["state"] == "not recorded in dvc.lock"


def test_without_the_list_of_a_folder_its_state_is_not_known(project):
    for listing in (project / ".dvc/cache/files/md5").rglob("*.dir"):
        listing.unlink()
    assert facts(project, "data/tokens")["state"].startswith("unknown: DVC's cache has no list")
    assert facts(project, "reports/benchmark.csv")["state"] == "recorded"


def test_the_receipt_of_the_run_that_wrote_these_bytes_says_where_and_how_long(project):
    outputs = {path: md5(project / path) for path in ("reports/benchmark.csv", "reports/benchmark.json")}
    machine = {"platform": "Linux-6", "cores": "8", "Python": "3.12.1", "torch": "2.13.0"}
    receipt = Receipt("measure", "", {}, {}, outputs, 61.2, machine, "")
    write_json(project / RECEIPTS / "measure.json", asdict(receipt))
    found = facts(project, "reports/benchmark.csv")
    assert (found["ran on"], found["wall time"]) == ("Linux-6, 8 cores", "61.2 s")
    assert found["packages"] == "Python 3.12.1, torch 2.13.0"
    (project / "reports/benchmark.csv").write_text("ms\n2\n")
    assert "wall time" not in facts(project, "reports/benchmark.csv")


def test_a_rule_without_a_recorded_run(built):
    found = facts(built, "reports/later.txt")
    assert found["state"] == "not here, and dvc.lock records no run"
    assert found["ran on"] == "not recorded here"
    assert block(show(built, "reports/later.txt"), "parameters") == [["not", "recorded"]]


def test_a_folder_of_artefacts_lists_them(built):
    assert [line.split() for line in show(built, "data").splitlines()] == [
        ["data"],
        ["data/tokens", "pack", "recorded"],
    ]


def test_a_source_names_the_rules_that_read_it(project):
    assert [line.split()[0] for line in show(project, "picollm/packing.py").splitlines()[2:]] == ["pack"]
    rows = {line.split()[0]: line for line in show(project, "config.yaml").splitlines()[2:]}
    assert rows.keys() == {"pack", "measure", "later"} and "no recorded run" in rows["later"]
    (project / "config.yaml").write_text(FILES["config.yaml"].replace("[1, 8]", "[1]"))
    rows = {line.split()[0]: line for line in show(project, "config.yaml").splitlines()[2:]}
    assert "edited since its recorded run" in rows["measure"] and "as in its recorded run" in rows["pack"]
    assert "no rule reads it" in show(project, "unread.txt")


def test_unknown_paths_are_refused_with_close_ones(built, tmp_path):
    assert "did you mean reports/benchmark.csv" in refusal(show, built, "report/benchmark.csv")
    assert "data/tokens/train-00000.arrow" in refusal(show, built, "data/tokens/train-00001.arrow")
    assert "outside the repository" in refusal(show, built, str(tmp_path))
    assert "dvc.yaml" in refusal(show, tmp_path, "x")
