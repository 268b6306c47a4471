"""A receipt proves a run only while everything that it names is as the run read or wrote it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from picollm.files import write_json
from picollm.pipeline import receipts
from picollm.pipeline.fingerprint import code_files, imported_modules
from picollm.pipeline.job import Rule
from picollm.pipeline.receipts import Receipt, lock_entry

CONFIG = {"tokens": {"context": 64, "lr": 5e-05, "path": None}, "report": {"title": "x"}}
FILES = {
    "workflow_scripts/pack.py": "import json\n",
    "corpus.txt": "text",
    "data/tokens/manifest.json": "{}",
    "data/tokens/a.arrow": "rows",
    "reports/metrics/data.json": "{}",
    ".snakemake/slices/0.npy": "gone later",
}
LOCK = "schema: '2.0'\nstages:\n  pack:\n    cmd: a\n    outs:\n    - path: data/tokens\n  packet:\n    cmd: b\n"


INPUTS, OUTPUTS = ["corpus.txt", ".snakemake/slices/0.npy"], ["data/tokens/manifest.json", "reports/metrics/data.json"]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    for name, text in (FILES | {"dvc.lock": LOCK}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    code = receipts.rule_fingerprint("pack", tmp_path)
    rule = Rule("pack", INPUTS, OUTPUTS, {"tokens": CONFIG["tokens"]}, code, 1, None, Path("log"))
    receipts.write(rule, receipts.digests(INPUTS), 1.25)
    return tmp_path


def receipt(root: Path) -> Receipt:
    (found,) = receipts.read(root).values()
    return found


def test_it_names_every_file_of_an_artefact_and_none_that_is_deleted(root):
    found = receipt(root)
    assert found.matches(root, CONFIG)
    assert list(found.inputs) == ["corpus.txt"]
    assert set(found.outputs) == {"data/tokens/manifest.json", "data/tokens/a.arrow", "reports/metrics/data.json"}
    assert found.params == {"tokens": CONFIG["tokens"]} and found.machine["platform"] and found.seconds == 1.2


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(".snakemake")])
def test_any_changed_or_missing_file_ends_it(root, name):
    for function in (code_files, imported_modules):
        function.cache_clear()
    (root / name).write_text(FILES[name] + " ")
    assert not receipt(root).matches(root, CONFIG)
    (root / name).unlink()
    assert not receipt(root).matches(root, CONFIG)
    (root / name).write_text(FILES[name])
    assert receipt(root).matches(root, CONFIG)


def test_a_file_more_in_its_folder_ends_it(root):
    (root / "data/tokens/b.arrow").touch()
    assert not receipt(root).matches(root, CONFIG)


def test_another_value_of_its_sections_ends_it_and_of_others_does_not(root):
    assert receipt(root).matches(root, CONFIG | {"report": {"title": "y"}})
    assert not receipt(root).matches(root, CONFIG | {"tokens": CONFIG["tokens"] | {"lr": 4e-05}})
    assert not receipt(root).matches(root, {"report": {}})


def test_it_remembers_the_entry_of_dvc_lock_that_it_replaces(root):
    assert receipt(root).locked == lock_entry(root, "pack") != lock_entry(root, "packet")
    (root / "dvc.lock").write_text(LOCK.replace("cmd: b", "cmd: c"))
    assert receipt(root).locked == lock_entry(root, "pack")
    (root / "dvc.lock").write_text(LOCK.replace("cmd: a", "cmd: c"))
    assert receipt(root).locked != lock_entry(root, "pack")
    (root / "dvc.lock").unlink()
    assert lock_entry(root, "pack") == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"code"', '"kode"'),
        lambda text: text.replace('"outputs": {', '"outputs": [], "x": {'),
        lambda text: json.dumps(json.loads(text) | {"format": 99}),
        lambda text: json.dumps(json.loads(text) | {"rule": "other"}),
        lambda text: json.dumps(json.loads(text) | {"outputs": {}}),
    ],
)
def test_a_damaged_one_or_one_of_another_version_counts_as_absent(root, damage):
    path = root / receipts.RECEIPTS / "pack.json"
    path.write_text(damage(path.read_text()))
    assert receipts.read(root) == {}


def test_the_newest_run_of_a_rule_replaces_the_receipt_before(root):
    write_json(root / receipts.RECEIPTS / "pack.json", asdict(replace(receipt(root), seconds=9.0)))
    assert receipt(root).seconds == 9.0
