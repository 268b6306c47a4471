"""What the documents name exists: files, rules, commands, configuration keys."""

import re
import subprocess
from pathlib import Path

import pytest

from picollm.cli import COMMANDS
from picollm.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
NAMES = {Path(path).name for path in TRACKED}


@pytest.mark.skipif(not TRACKED, reason="needs git's list of files")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"[\w./-]+\.(?:py|smk|j2)\b", text))
    missing = [name for name in named if not (ROOT / name).exists() and Path(name).name not in NAMES]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_keys_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    verbs = set(re.findall(r"`picollm ([a-z-]+)", text)) | set(re.findall(r"^ *(?:\$ )?picollm ([a-z-]+)", text, re.M))
    assert verbs <= {command.split()[0] for command in COMMANDS}
    sections = Config.model_fields
    for section, key in re.findall(r"`(\w+)\.(\w+)(?::[^`]*)?`", text):
        if section in sections and not key.endswith(("py", "json", "csv", "yaml", "smk")):
            assert key in sections[section].annotation.model_fields, f"{section}.{key}"
