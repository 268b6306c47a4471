"""A command writes nothing over the pipeline's own files, and refuses before hours of work what it could not write."""

import subprocess

import pytest
from refusals import refusal

from picollm.cli import COMMANDS
from picollm.outputs import DEFAULTS, new_file, new_folder

OWN = ["config.yaml", "data/model", "reports/heads.json", ".git/config", "docs"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with a tracked file and a tracked folder, as the working folder."""
    for name in ("config.yaml", "docs/page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", OWN)
def test_the_pipelines_files_and_gits_are_refused(root, name):
    before = sorted(root.rglob("*"))
    assert name == "docs" or "belongs to the pipeline or to git" in refusal(new_file, name)
    if name != "config.yaml":
        assert "belongs to the pipeline or to git" in refusal(new_folder, name)
    assert "belongs to the pipeline or to git" in refusal(new_folder, ".")
    assert sorted(root.rglob("*")) == before and (root / "config.yaml").read_text() == "mine"


def test_a_commands_default_output_is_written_again_even_if_it_was_committed(root):
    (root / "seeds.json").write_text("{}")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    assert new_file("seeds.json").exists()
    defaults = {how["default"] for options in COMMANDS.values() for names, how in options if "--output" in names}
    assert set(DEFAULTS) == defaults - {None}


def test_a_folder_and_a_file_are_told_apart(root):
    (root / "made").mkdir()
    (root / "notes.txt").touch()
    assert "made is a folder: name a file" in refusal(new_file, "made")
    assert "notes.txt is a file, not a folder" in refusal(new_folder, "notes.txt")
    assert "notes.txt is a file, not a folder" in refusal(new_file, "notes.txt/page.html")


def test_a_new_place_inside_or_outside_the_repository_is_accepted(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = sorted(root.rglob("*"))
    for name in ("pages/new.html", "made.html", str(elsewhere / "data/page.html")):
        assert str(new_file(name)) == name and str(new_folder(name)) == name
    assert sorted(root.rglob("*")) == before, "nothing is left behind if the work then fails"
