"""docs/workflows.md and the tutorials, run as they are: every command, and what it printed."""

from __future__ import annotations

import re
import shutil
import sys
from doctest import ELLIPSIS, OutputChecker

import pytest
import workspace
from workspace import ROOT

TUTORIALS = ("your-text", "your-sentences", "your-model", "compare-runs", "your-gpu")  # each continues the one before


def commands(page: str) -> list[tuple[str, str]]:
    """Returns each command in the console blocks of a page of docs/, with its printed output."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return [
        (lines[0], "".join(line + "\n" for line in lines[1:]))
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for lines in (step.splitlines() for step in block.removeprefix("$ ").split("\n$ "))
    ]


def blurred(text: str) -> str:
    """Removes what differs between runs: numbers, hashes, and the width of tables."""
    lines = [re.sub(r"\b[0-9a-f]{7}([0-9a-f]{25})?\b|-?\d+(\.\d+)?(e-?\d+)?", "0", line) for line in text.splitlines()]
    lines = [re.sub(r"[ \t─━-]+", " ", line).rstrip() for line in lines]
    text = "".join(line + "\n" for line in lines if line.strip() and not line.startswith("Using workflow specific"))
    return text.replace("\n...\n", "\n...")  # the dots may stand for no line


def with_tools(path) -> tuple[workspace.Workspace, str]:
    """Makes a repository with a first commit, and the PATH on which its `picollm` is this one."""
    project = workspace.create(path / "project")
    project.commit("The pipeline")
    project.run("git", "branch", "-q", "-M", "main")
    tools = path / "bin"
    tools.mkdir()
    (tools / "picollm").write_text(f'#!/bin/sh\nexec {sys.executable} -m picollm.cli "$@"\n')
    (tools / "picollm").chmod(0o755)
    return project, f"{tools}:{workspace.ENVIRONMENT['PATH']}"


def run_page(project: workspace.Workspace, path: str, page: str) -> None:
    for command, wanted in commands(page):
        printed = project.run("bash", "-c", command, PATH=path)
        same = OutputChecker().check_output(blurred(wanted), blurred(printed), ELLIPSIS)
        assert same, f"$ {command}\n{printed}\n--- the page says\n{wanted}"


@pytest.mark.slow
def test_every_command_of_the_page_prints_what_the_page_says(tmp_path):
    project, path = with_tools(tmp_path)
    project.take_few_sentences()
    project.set("model", n_layers=3)
    project.picollm("dvc-yaml")
    project.commit("Few sentences")
    run_page(project, path, "workflows")
    assert project.planned() == project.changed() == set()


@pytest.mark.exhaustive
def test_every_command_of_the_tutorials_prints_what_they_say(tmp_path):
    project, path = with_tools(tmp_path)
    for folder in ("docs", "benchmarks"):
        shutil.copytree(ROOT / folder, project.path / folder, ignore=shutil.ignore_patterns("__pycache__", "gallery"))
    for page in TUTORIALS:
        run_page(project, path, f"tutorials/{page}")


def test_the_page_shows_the_four_habits():
    text = "\n".join(command for command, _ in commands("workflows"))
    for habit in ("snakemake --cores all", "dvc repro", "-R trt_benchmark", "dvc repro -q -f -s trt_benchmark",
                  "dvc metrics diff", "dvc params diff", "dvc plots diff", "dvc exp run"):  # fmt: skip
        assert habit in text
