"""Effects of git's settings: line ends, another user's repository."""

import shutil

import pytest
from test_scenarios import NONE, wrong
from workspace import Workspace


@pytest.fixture
def copy(built, tmp_path):
    return built.copy(tmp_path / "copy")


@pytest.mark.slow
def test_a_clone_has_the_same_bytes_and_nothing_to_do_where_git_changes_line_ends(built, tmp_path):
    clone = Workspace(tmp_path / "clone")
    built.run("git", "clone", "-q", "-c", "core.autocrlf=true", str(built.path), str(clone.path))
    files = built.run("git", "ls-files").splitlines()
    assert len(files) > 100
    assert [name for name in files if (clone.path / name).read_bytes() != (built.path / name).read_bytes()] == []
    shutil.copytree(built.path / ".dvc/cache", clone.path / ".dvc/cache")
    clone.picollm("sync")
    assert clone.planned() == clone.changed() == NONE and wrong(clone) == []
