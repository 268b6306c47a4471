"""Which edit makes which rules stale: every leaf of config.yaml, every module, every line of the rule table."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import standin
import workspace
import yaml
from test_scenarios import ALL, ATTENTION, CLUSTERS, ENDS, ENGINE, HEADS, MODEL, closed
from workspace import ROOT

from picollm.errors import PicollmError
from picollm.pipeline.stages import check_dvc_yaml

BENCHMARK, PROFILE = {"trt_benchmark"} | ENDS, {"nsys_capture"} | ENDS
OF_SECTION = {
    "corpus": ALL,
    "tokens": ALL - {"prepare_corpus"},
    "compute": MODEL,
    "model": MODEL,
    "pretrain": MODEL,
    "attention": ATTENTION,
    "heads": HEADS,
    "clusters": CLUSTERS,
    "engine": ENGINE,
    "benchmark": BENCHMARK,
    "profile": PROFILE,
    "report": ENDS,
}
LEAVES = [
    (section, key, value)
    for section, values in yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text()).items()
    for key, value in values.items()
]
# Where "half as much again" or "one more" is no allowed value.
OTHER = {
    "corpus.source": "wikitext-103", "corpus.path": "text", "corpus.hub": "other/wikitext", "corpus.revision": "0" * 40,
    "corpus.fraction": 0.5, "compute.device": "cpu", "model.d_model": 56, "model.n_heads": 2, "model.dropout": 0.25,
    "pretrain.unit": "epochs", "pretrain.optimizer": "muon", "pretrain.autocast": "all", "pretrain.compile": "all",
    "pretrain.warmup": 0.2, "engine.precision": "fp32", "engine.compute_capabilities": ["7.5"],
    "benchmark.backends": ["eager-fp32"], "benchmark.batches": [2], "profile.tool": "nsys", "report.title": "other",
    "attention.sentences": "other.yaml",
}  # fmt: skip
FIRST = {section: key for section, key, _ in reversed(LEAVES)}


def other(section: str, key: str, value: object) -> object:
    if f"{section}.{key}" in OTHER:
        return OTHER[f"{section}.{key}"]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 0.9


@pytest.fixture(scope="module")
def copy(built, tmp_path_factory):
    copy = built.copy(tmp_path_factory.mktemp("staleness") / "copy")
    (copy.path / "other.yaml").write_bytes((copy.path / "picollm/attention/sentences.yaml").read_bytes())
    return copy


@pytest.fixture(autouse=True)
def unedited(request):
    yield
    if "copy" in request.fixturenames:
        request.getfixturevalue("copy").run("git", "checkout", "-q", ".")


def both(copy: workspace.Workspace) -> tuple[set[str], set[str]]:
    with ThreadPoolExecutor() as pool:
        planned, changed = pool.submit(copy.planned), pool.submit(closed, copy)
        return planned.result(), changed.result()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [pytest.param(*leaf, id=".".join(leaf[:2]), marks=[] if FIRST[leaf[0]] == leaf[1] else [pytest.mark.slow])
     for leaf in LEAVES],
)  # fmt: skip
def test_a_leaf_of_the_config_makes_its_rules_and_those_below_stale(copy, section, key, value):
    changed = other(section, key, value)
    assert changed != value
    copy.set(section, **{key: changed})
    if section == "attention":
        copy.picollm("dvc-yaml")  # the file that it names is an input
    assert both(copy) == (OF_SECTION[section], OF_SECTION[section])


def importers() -> dict[str, set[str]]:
    """{module file: rules whose scripts import it}, by the standard library's own search, within this project."""
    found: dict[str, set[str]] = {}
    for script in sorted((ROOT / "workflow_scripts").glob("*.py")):
        finder = ModuleFinder(path=[str(ROOT)])
        finder.run_script(str(script))
        for module in finder.modules.values():
            if module.__file__ and not module.__file__.endswith("__init__.py"):
                found.setdefault(str(Path(module.__file__).relative_to(ROOT)), set()).add(script.stem)
    return found


IMPORTERS = importers()
MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "picollm").rglob("*.py") if path.name != "__init__.py")
FEW = {"picollm/config.py", "picollm/attention/labels.py", "picollm/report/html.py", "picollm/profiling/nvtx.py"}


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in MODULES]
)
def test_a_module_makes_exactly_the_importing_rules_stale(copy, module):
    stages = yaml.safe_load((copy.path / "dvc.yaml").read_text())["stages"]
    wanted = IMPORTERS.get(module, set())
    assert wanted == {name for name, stage in stages.items() if module in stage["deps"]}
    file = copy.path / module
    file.touch()
    file.write_bytes(file.read_bytes() + b"# edited\n")
    below = set(wanted)
    for _ in stages:
        outs = {out for name in below for out in standin.written(stages[name])}
        below |= {name for name, stage in stages.items() if outs & set(stage["deps"])}
    assert both(copy) == (below, below)


def test_no_line_of_dvc_yaml_can_go(copy):
    """The check that the Snakefile makes of dvc.yaml, with each line left out in turn."""
    path = copy.path / "dvc.yaml"
    lines = path.read_text().splitlines(keepends=True)
    stages = table(copy)
    check_dvc_yaml(stages, path, write=False)
    for i, line in enumerate(lines):
        path.write_text("".join(lines[:i] + lines[i + 1 :]))
        with pytest.raises(PicollmError, match="picollm dvc-yaml"):
            check_dvc_yaml(stages, path, write=False)
        assert line


def table(copy: workspace.Workspace) -> list:
    """The rules as the Snakefile exports them."""
    (copy.path / "export.smk").write_text(
        'include: "Snakefile"\nimport pickle\npickle.dump(stages(), open("stages.pickle", "wb"))\n'
    )
    copy.run("snakemake", "-s", "export.smk", "--list-rules")
    import pickle

    return pickle.loads((copy.path / "stages.pickle").read_bytes())


ENTRY = re.compile(r'^        (\w+=.*"(data|reports|picollm)/.*|cfg=sections\(.*|code=.*|sentences=.*|\*\*\{.*),$')
ENTRIES = [
    (path.name, i, line.strip())
    for path in sorted((ROOT / "rules").glob("*.smk"))
    for i, line in enumerate(path.read_text().splitlines())
    if ENTRY.match(line)
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "number", "entry"), ENTRIES, ids=[f"{f}:{i + 1}" for f, i, _ in ENTRIES])
def test_no_input_output_or_parameter_of_a_rule_can_go(copy, file, number, entry):
    path = copy.path / "rules" / file
    lines = path.read_text().splitlines(keepends=True)
    assert lines[number].strip() == entry
    path.write_text("".join(lines[:number] + lines[number + 1 :]))
    text = copy.snakemake("-n", ok=False)
    assert "picollm dvc-yaml" in text or "has no params" in text or "Error" in text


def test_every_entry_of_the_rules_is_tried():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = sum(len(stage["outs"]) + len(stage.get("metrics", [])) for stage in stages.values())
    assert len(ENTRIES) > outs  # one line at least for each output, beside inputs and parameters
