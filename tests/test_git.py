"""What git's own settings do to us, and we to git: hooks, line ends, another user's repository."""

import os
import shutil

import pytest
from refusals import said
from test_scenarios import NONE, wrong
from workspace import Workspace


@pytest.fixture
def copy(built, tmp_path):
    return built.copy(tmp_path / "copy")


def test_hooks_are_never_written_into_the_folder_of_all_repositories(copy, tmp_path):
    everybodys = tmp_path / "every body's"
    everybodys.mkdir()
    (tmp_path / "gitconfig").write_text(f'[core]\n\thooksPath = "{everybodys}"\n')
    environment = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}
    line = said(copy.picollm("sync", "--install-hook", ok=False, **environment))
    assert str(everybodys) in line and list(everybodys.iterdir()) == []
    copy.run("sh", "-c", line.split("`")[1])  # what it advises
    copy.picollm("sync", "--install-hook", **environment)
    assert list(everybodys.iterdir()) == [] and (copy.path / ".git/hooks/post-checkout").exists()
    assert "agree" in copy.run("git", "checkout", "-q", "-b", "third", **environment)


def test_hooks_may_lie_in_a_folder_of_this_repository(copy):
    copy.run("git", "config", "core.hooksPath", ".hooks")
    copy.picollm("sync", "--install-hook")
    assert os.access(copy.path / ".hooks/post-merge", os.X_OK)


def test_a_branch_that_holds_something_else_is_checked_out_in_silence(copy):
    copy.picollm("sync", "--install-hook")
    copy.run("git", "checkout", "-q", "--orphan", "pages")
    copy.run("git", "rm", "-rfq", ".")
    (copy.path / "index.html").write_text("a page")
    copy.run("git", "add", "index.html")
    copy.run("git", "commit", "-qm", "a page")
    copy.run("git", "checkout", "-q", "-f", "main")
    assert copy.run("git", "checkout", "-q", "pages") == ""
    assert "picollm: " in copy.run("git", "checkout", "-q", "main")


def test_a_clone_has_the_same_bytes_and_nothing_to_do_where_git_changes_line_ends(built, tmp_path):
    clone = Workspace(tmp_path / "clone")
    built.run("git", "clone", "-q", "-c", "core.autocrlf=true", str(built.path), str(clone.path))
    files = built.run("git", "ls-files").splitlines()
    assert len(files) > 100
    assert [name for name in files if (clone.path / name).read_bytes() != (built.path / name).read_bytes()] == []
    shutil.copytree(built.path / ".dvc/cache", clone.path / ".dvc/cache")
    clone.picollm("sync")
    assert clone.planned() == clone.changed() == NONE and wrong(clone) == []
