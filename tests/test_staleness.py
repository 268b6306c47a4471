"""The rules that each edit makes stale: every leaf of config.yaml, every module, every line of the rule table."""

from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import standin
import workspace
import yaml
from test_scenarios import ALL, ATTENTION, CLUSTERS, ENDS, ENGINE, HEADS, MECHANISMS, MODEL, closed
from workspace import ROOT

from picollm.config import check
from picollm.errors import PicollmError
from picollm.pipeline.dvc_yaml import Stage, check_dvc_yaml
from picollm.presets import config_yaml, preset

BENCHMARK, PROFILE = {"trt_benchmark"} | ENDS, {"nsys_capture"} | ENDS
OF_SECTION = {
    "corpus": ALL,
    "tokens": ALL - {"prepare_corpus"},
    "compute": MODEL,
    "model": MODEL,
    "pretrain": MODEL,
    "attention": ATTENTION | {"probe_heads"},
    "heads": HEADS,
    "clusters": CLUSTERS,
    "mechanisms": MECHANISMS,
    "engine": ENGINE,
    "benchmark": BENCHMARK,
    "profile": PROFILE,
    "report": ENDS,
}
SMOKE = config_yaml(preset("smoke"))
LEAVES = [
    (section, key, value)
    for section, values in yaml.safe_load(SMOKE).items()
    for key, value in values.items()
    if (section, key) not in {("model", "checkpoint"), ("report", "seeds")}  # they bring files as deps: test_slow.py
]
# Values for keys that allow neither "one more" nor "a tenth less".
OTHER = {
    "corpus.source": "wikitext-103", "corpus.path": "text", "corpus.hub": "other/wikitext", "corpus.revision": "0" * 40,
    "corpus.fraction": 0.5, "compute.device": "cpu", "model.d_model": 56, "model.n_heads": 2, "model.dropout": 0.25,
    "pretrain.unit": "epochs", "pretrain.optimizer": "adamw", "pretrain.autocast": "all", "pretrain.compile": "all",
    "pretrain.warmup": 0.2, "engine.backends": ["eager-fp32"], "engine.grid": "full", "engine.outputs": ["full"],
    "engine.compute_capabilities": ["7.5"], "benchmark.batches": [2], "profile.tool": "nsys", "report.title": "other",
    "attention.sentences": "other.yaml", "attention.style": "wikitext", "pretrain.loading": "workers",
    "report.palette": "deep", "pretrain.checkpoint_minutes": 1.0,
}  # fmt: skip
FIRST = {section: (key, value) for section, key, value in reversed(LEAVES)}


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
    "section",
    [pytest.param(name, marks=[] if name == "pretrain" else [pytest.mark.slow]) for name in OF_SECTION],
)
def test_a_section_of_the_config_makes_its_rules_and_those_below_stale(copy, section):
    key, value = FIRST[section]
    copy.set(section, **{key: other(section, key, value)})
    if section == "attention":
        copy.picollm("dvc-yaml")  # because the named file is an input
    assert both(copy) == (OF_SECTION[section], OF_SECTION[section])


@pytest.mark.parametrize(("section", "key", "value"), LEAVES, ids=[".".join(leaf[:2]) for leaf in LEAVES])
def test_every_leaf_reaches_the_rules_in_its_section_and_in_no_other(section, key, value):
    """Snakemake gets the checked sections as params, DVC those of the file: in both, only this section differs."""
    before = yaml.safe_load(SMOKE)
    after = yaml.safe_load(SMOKE)
    after[section][key] = other(section, key, value)
    for given in ((before, after), (check(before), check(after))):
        assert {name for name in OF_SECTION if given[0][name] != given[1][name]} == {section}


def test_every_section_of_the_config_belongs_to_a_rule():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert {section for stage in stages for section in stage["params"][0]["config.yaml"]} == set(OF_SECTION)
    assert set(yaml.safe_load(SMOKE)) == set(OF_SECTION)


class OfWhatRuns(ModuleFinder):
    """A ModuleFinder that ignores imports under `if TYPE_CHECKING:`."""

    def load_module(self, fqname, fp, pathname, file_info):
        if fp is not None:
            fp = StringIO(re.sub(r"^if TYPE_CHECKING:\n(?: .*\n|\n)+", "\n", fp.read().decode(), flags=re.M))
        return super().load_module(fqname, fp, pathname, file_info)


def importers() -> dict[str, set[str]]:
    """Returns {module file: stages whose scripts import it}, by the standard library's search, within this project.

    Modules that only run around a computation, and imports for type checkers only, are not followed.
    """
    found: dict[str, set[str]] = {}
    for stage in ALL:
        script = ROOT / "workflow_scripts" / f"{stage}.py"
        finder = OfWhatRuns(path=[str(ROOT)], excludes=["picollm.pipeline", "picollm.errors", "picollm.progress"])
        finder.run_script(str(script))
        for module in finder.modules.values():
            if module.__file__ and not module.__file__.endswith("__init__.py"):
                found.setdefault(str(Path(module.__file__).relative_to(ROOT)), set()).add(script.stem)
    return found


IMPORTERS = importers()
MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "picollm").rglob("*.py") if path.name != "__init__.py")
FEW = ["picollm/config.py", "picollm/attention/labels.py"]


def test_the_rules_depend_on_what_their_scripts_import():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for module in MODULES:
        assert IMPORTERS.get(module, set()) == {name for name, stage in stages.items() if module in stage["deps"]}


@pytest.mark.parametrize(
    "module",
    [
        *FEW,
        *(pytest.param(name, marks=pytest.mark.slow) for name in MODULES[::36]),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MODULES[6::12] + MODULES[12::36]),
    ],
)
def test_a_module_makes_exactly_the_importing_rules_stale(copy, module):
    file = copy.path / module
    file.write_bytes(file.read_bytes() + b"# edited\n")
    below = standin.downstream(copy.path, IMPORTERS.get(module, set()))
    assert both(copy) == (below, below)


@pytest.fixture(scope="module")
def table(copy) -> list[Stage]:
    """Returns the rules as the Snakefile exports them."""
    text = 'include: "Snakefile"\nimport pickle\npickle.dump(stages(), open("stages.pickle", "wb"))\n'
    (copy.path / "export.smk").write_text(text)
    copy.run("snakemake", "-s", "export.smk", "--list-rules")
    return pickle.loads((copy.path / "stages.pickle").read_bytes())


def test_no_line_of_dvc_yaml_can_go(table, tmp_path):
    """Runs the Snakefile's check of dvc.yaml, with every seventh line left out in turn."""
    path = tmp_path / "dvc.yaml"
    check_dvc_yaml(table, path, write=True)
    assert path.read_text() == (ROOT / "dvc.yaml").read_text()
    lines = path.read_text().splitlines(keepends=True)
    for i in range(0, len(lines), 7):
        path.write_text("".join(lines[:i] + lines[i + 1 :]))
        with pytest.raises(PicollmError, match="picollm dvc-yaml"):
            check_dvc_yaml(table, path, write=False)


def test_no_input_output_parameter_or_module_of_a_rule_can_go(table, tmp_path):
    path = tmp_path / "dvc.yaml"
    check_dvc_yaml(table, path, write=True)
    tried = 0
    for i, stage in enumerate(table):
        for field in ("inputs", "outputs", "sections", "code"):
            for entry in getattr(stage, field)[::3]:
                less = replace(stage, **{field: [other for other in getattr(stage, field) if other != entry]})
                with pytest.raises(PicollmError, match="picollm dvc-yaml"):
                    check_dvc_yaml([*table[:i], less, *table[i + 1 :]], path, write=False)
                tried += 1
    assert tried > 60
