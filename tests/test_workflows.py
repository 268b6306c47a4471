"""docs/workflows.md, run as it stands there: every command, and what it printed."""

from __future__ import annotations

import re
import sys
from doctest import ELLIPSIS, OutputChecker

import pytest
import workspace
from workspace import ROOT

PAGE = (ROOT / "docs" / "workflows.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    (lines[0], "".join(line + "\n" for line in lines[1:]))
    for block in BLOCKS
    for lines in (step.splitlines() for step in block.removeprefix("$ ").split("\n$ "))
]


def blurred(text: str) -> str:
    """Without what differs from run to run: numbers, hashes, and how wide a table comes out."""
    lines = [re.sub(r"\b[0-9a-f]{7}([0-9a-f]{25})?\b|-?\d+(\.\d+)?(e-?\d+)?", "0", line) for line in text.splitlines()]
    lines = [re.sub(r"[ \t─━-]+", " ", line).rstrip() for line in lines]
    text = "".join(line + "\n" for line in lines if line.strip() and not line.startswith("Using workflow specific"))
    return text.replace("\n...\n", "\n...")  # which may stand for no line


@pytest.mark.slow
def test_every_command_of_the_page_prints_what_the_page_says(tmp_path):
    project = workspace.create(tmp_path / "project")
    project.commit("The pipeline")
    project.run("git", "branch", "-q", "-M", "main")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "picollm").write_text(f'#!/bin/sh\nexec {sys.executable} -m picollm.cli "$@"\n')
    (tools / "picollm").chmod(0o755)
    path = f"{tools}:{workspace.ENVIRONMENT['PATH']}"
    for command, wanted in COMMANDS:
        printed = project.run("bash", "-c", command, PATH=path)
        same = OutputChecker().check_output(blurred(wanted), blurred(printed), ELLIPSIS)
        assert same, f"$ {command}\n{printed}\n--- the page says\n{wanted}"
    assert project.planned() == project.changed() == set()


def test_the_page_shows_the_four_habits():
    text = "\n".join(command for command, _ in COMMANDS)
    for habit in ("snakemake --cores all", "dvc repro", "-R trt_benchmark", "dvc repro -q -f -s trt_benchmark",
                  "dvc metrics diff", "dvc params diff", "dvc plots diff", "dvc exp run"):  # fmt: skip
        assert habit in text
