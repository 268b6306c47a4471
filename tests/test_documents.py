"""Documents: the things they name exist, their statements are up to date, and their wording follows the rules."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from picollm.cli import COMMANDS
from picollm.config import Config
from picollm.reference import WIDTH, pages
from picollm.report.glossary import GLOSSARY, TERMS

ROOT = Path(__file__).parents[1]
GENERATED = pages(ROOT)
STUDY = ROOT / "docs/gallery/study/study.md"  # written by the pipeline
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path != STUDY),
]
WRITTEN = [path for path in DOCUMENTS if str(path.relative_to(ROOT)) not in GENERATED]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
NAMES = {Path(path).name for path in TRACKED}
WORDS = [
    line.split(" => ")
    for line in (ROOT / ".ci/words.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def of_each(documents):
    return pytest.mark.parametrize("document", documents, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text: str) -> str:
    """Blanks out code blocks, fenced or indented after an empty line; keeps the number of lines."""
    blank = lambda block: "\n" * block[0].count("\n")  # noqa: E731
    text = re.sub(r"^```.*?^```$", blank, text, flags=re.S | re.M)
    return re.sub(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", blank, text)


def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.skipif(not TRACKED, reason="needs git's list of files")
@of_each(DOCUMENTS)
def test_files_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"[\w./-]+\.(?:py|smk|j2)\b", text))
    missing = [name for name in named if not (ROOT / name).exists() and Path(name).name not in NAMES]
    modules = re.findall(r"^::: (.*)$", text, re.M)
    missing += [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert missing == []


@of_each(DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, heading = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (heading and heading not in anchors(path)):
            broken.append(target)
    assert broken == []


@of_each(DOCUMENTS)
def test_commands_and_keys_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    verbs = set(re.findall(r"`picollm ([a-z-]+)", text)) | set(re.findall(r"^ *(?:\$ )?picollm ([a-z-]+)", text, re.M))
    assert verbs <= {command.split()[0] for command in COMMANDS}
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^(?: {4}|\$ )make ([a-z-]+)", text, re.M))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    if document.name == "CHANGELOG.md":  # it names former keys
        return
    sections = Config.model_fields
    for section, key in re.findall(r"`(\w+)\.(\w+)(?::[^`]*)?`", text):
        if section in sections and not key.endswith(("py", "json", "csv", "yaml", "smk", "png")):
            assert key in sections[section].annotation.model_fields or is_metric(section, key), f"{section}.{key}"


def is_metric(chapter: str, key: str) -> bool:
    """Looks in the metrics of the gallery's run, because chapters and sections share some names."""
    path = ROOT / f"docs/gallery/metrics/{chapter}.json"
    return path.exists() and key in json.loads(path.read_text(encoding="utf-8"))


@of_each(DOCUMENTS)
def test_prose_can_be_read_at_a_width(document):
    lines = prose(document.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []


@of_each(WRITTEN)
def test_a_document_is_worded_plainly(document):
    text = prose(document.read_text(encoding="utf-8"))
    found = {
        match[0]: f"write: {instead}"
        for pattern, instead in WORDS
        for match in re.finditer(pattern.replace(" ", r"\s"), text, re.I | re.M)
    }
    assert found == {}


@pytest.mark.parametrize("path", GENERATED)
def test_generated_pages_are_up_to_date(path):
    assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[path], "run `picollm config-docs`"


def test_terms_have_a_source_and_the_report_has_the_same_definitions():
    for name, term in TERMS.items():
        assert "/" not in term.source or (ROOT / term.source).exists(), name
        assert f"| **{name}** | {term.text} |" in GENERATED["docs/glossary.md"]
    assert GLOSSARY
    assert all(text.startswith(TERMS[name].text) for name, text in GLOSSARY.items())


def test_numbers_of_the_readme_are_those_of_the_gallery():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([\d.]+)( %)? \| ([\d.]+)(?: %)? \| `(\w+)\.(\w+)` \|$", text, re.M)
    assert len(rows) >= 5
    for default, percent, grammar, chapter, key in rows:
        for shown, folder in ((default, "docs/gallery"), (grammar, "docs/gallery/grammar")):
            value = json.loads((ROOT / folder / f"metrics/{chapter}.json").read_text(encoding="utf-8"))[key]
            decimals = len(shown.partition(".")[2])
            assert shown == f"{value * (100 if percent else 1):.{decimals}f}", f"{chapter}.{key} in {folder}"
