"""The code that makes a rule stale if edited, and the dvc.yaml that follows from it."""

import ast
import os
from pathlib import Path

import pytest
import yaml

from picollm.errors import PicollmError
from picollm.pipeline.dvc_yaml import HEADER, Stage, check_dvc_yaml, dvc_yaml
from picollm.pipeline.fingerprint import code_files, fingerprint, imported_modules

ROOT = Path(__file__).parents[1]

PACKAGE = {
    "workflow_scripts/train.py": "import os\nfrom picollm.model.loop import train\n"
    "from picollm.pipeline.job import job\nimport picollm.progress\n",
    "workflow_scripts/draw.py": "from picollm.report import figures as f, style\nimport picollm.data.files\n",
    "workflow_scripts/plain.py": "import json\n",
    "picollm/__init__.py": "",
    "picollm/model/__init__.py": "",
    "picollm/model/loop.py": "from picollm.model.net import Net\nimport picollmx.other\n",
    "picollm/model/net.py": "def build():\n    from picollm.data.files import read\n    return read\n"
    "if TYPE_CHECKING:\n    from picollm.report.figures import Page\nelse:\n    from picollm.shapes import Page\n",
    "picollm/shapes.py": "Page = dict\n",
    "picollm/data/files.py": "class Lazy:\n    def go(self):\n        import picollm.data.cycle as c\n",
    "picollm/data/cycle.py": "from picollm.data import files\nfrom picollm.data.absent import nothing\n",
    "picollm/report/figures.py": "TEXT = 'import picollm.model.net'  # from picollm.model.loop import train\n",
    "picollm/report/style.py": "from picollm.data.files import Lazy\n",
    "picollm/unused.py": "from picollm.model.loop import train\n",
    "picollm/errors.py": "class PicollmError(Exception): pass\n",
    "picollm/progress.py": "import picollm.errors\n",
    "picollm/pipeline/job.py": "from picollm.data.absent import nothing\nimport picollm.errors\n",
}
CLOSURES = {
    "train": {"model/loop", "model/net", "data/files", "data/cycle", "shapes"},
    "draw": {"report/figures", "report/style", "data/files", "data/cycle"},
    "plain": set(),
}


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def script(rule):
    return Path("workflow_scripts") / f"{rule}.py"


@pytest.mark.parametrize("rule", CLOSURES)
def test_a_rule_depends_on_what_its_script_reaches(package, rule):
    expected = {script(rule)} | {Path(f"picollm/{module}.py") for module in CLOSURES[rule]}
    assert code_files(script(rule), package) == tuple(sorted(expected))


@pytest.mark.parametrize("rule", CLOSURES)
def test_only_the_bytes_of_those_files_change_the_fingerprint(package, rule):
    files = code_files(script(rule), package)
    before = fingerprint(files, package)
    assert len(before) == 64
    for name, text in PACKAGE.items():
        path = package / name
        os.utime(path, (1, 1))
        assert fingerprint(files, package) == before, "a touch is no change"
        path.write_text(text + "# edited\n")
        assert (fingerprint(files, package) != before) == (Path(name) in files), name
        path.write_text(text)
    assert fingerprint(files, package) == before, "back and forth is no change"


def test_a_file_by_another_name_and_another_folder(package, tmp_path_factory):
    files = code_files(script("train"), package)
    before = fingerprint(files, package)
    renamed = Path("picollm/data/renamed.py")
    (package / renamed).write_bytes((package / files[0]).read_bytes())
    assert fingerprint((renamed, *files[1:]), package) != before, "a name counts too"
    elsewhere = tmp_path_factory.mktemp("clone")
    for name, text in PACKAGE.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(text)
    assert fingerprint(code_files(script("train"), elsewhere), elsewhere) == before, "where it lies does not matter"


@pytest.mark.heavy
def test_the_assumptions_of_the_fingerprint_hold_in_this_repository():
    for path in (ROOT / "picollm").rglob("*.py"):
        if path == ROOT / "picollm/__init__.py":  # names for users who import picollm, resolved on access
            assert not any(isinstance(node, ast.ImportFrom | ast.Import) and "picollm" in ast.unparse(node)
                           for node in ast.walk(ast.parse(path.read_bytes())))  # fmt: skip
            continue
        if path.name == "__init__.py":
            assert path.read_text() == "", f"{path}: code in it would be in no fingerprint"
        for node in ast.walk(ast.parse(path.read_bytes())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import is not followed"
            assert not (isinstance(node, ast.Attribute) and node.attr == "import_module"), f"{path}: nor is this"
    scripts = sorted((ROOT / "workflow_scripts").glob("*.py"))
    assert scripts
    for path in scripts:
        files = code_files(path.relative_to(ROOT), ROOT)
        assert Path("picollm/config.py") not in files, "an edit of it would make everything stale"
        assert all((ROOT / file).is_file() for file in files)
        assert set(imported_modules(path, ROOT)) < set(files)


STAGES = [
    Stage("prepare", [], ["data/corpus/train.parquet"], ["corpus"], ["workflow_scripts/prepare.py"]),
    Stage(
        "measure",
        ["data/tokens/manifest.json", "data/corpus/train.parquet", "data/tokens/manifest.json"],
        ["reports/measure.json", "data/engine/manifest.json", "reports/metrics/measure.json"],
        ["compute", "benchmark"],
        ["workflow_scripts/measure.py", "picollm/errors.py"],
    ),
]


def test_stages_of_dvc():
    text = dvc_yaml(STAGES)
    assert text.startswith(HEADER)
    stages = yaml.safe_load(text)["stages"]
    assert list(stages) == ["prepare", "measure"]
    measure = stages["measure"]
    assert measure["deps"] == [
        "data/corpus/train.parquet", "data/tokens", "picollm/errors.py", "workflow_scripts/measure.py",
    ]  # fmt: skip
    assert measure["params"] == [{"config.yaml": ["benchmark", "compute"]}]
    assert measure["outs"] == ["data/engine", "reports/measure.json"], "a manifest stands for its folder"
    assert measure["metrics"] == [{"reports/metrics/measure.json": {"cache": False}}]
    assert measure["cmd"].startswith("snakemake --cores all") and measure["cmd"].endswith(
        "--allowed-rules measure -- measure"
    )
    assert "metrics" not in stages["prepare"]


def test_a_path_in_the_configuration_that_makes_a_cycle_is_refused_instead_of_written(tmp_path):
    """model.checkpoint: data/model, which pretrain writes."""
    own = Stage("pretrain", ["data/model/config.json"], ["data/model/config.json"], ["model"])
    first, second = Stage("a", ["reports/b"], ["reports/a"], ["x"]), Stage("b", ["reports/a"], ["reports/b"], ["x"])
    for stages, names in (([own], "pretrain -> pretrain"), ([first, second], "a -> b -> a")):
        with pytest.raises(PicollmError, match="must not name files that rules write") as caught:
            check_dvc_yaml(stages, tmp_path / "dvc.yaml", write=True)
        assert names in str(caught.value) or "b -> a -> b" in str(caught.value)
    assert not (tmp_path / "dvc.yaml").exists()


def test_dvc_yaml_is_written_when_asked_and_refused_when_it_drifts(tmp_path):
    path = tmp_path / "dvc.yaml"
    with pytest.raises(PicollmError, match="run `picollm dvc-yaml`"):
        check_dvc_yaml(STAGES, path, write=False)
    assert not path.exists()
    check_dvc_yaml(STAGES, path, write=True)
    assert path.read_text() == dvc_yaml(STAGES)
    check_dvc_yaml(STAGES, path, write=False)
    for drifted in (STAGES[:1], [STAGES[0], Stage("measure", [], ["reports/measure.json"], ["compute"])]):
        with pytest.raises(PicollmError, match="differs from what the rules and config.yaml give"):
            check_dvc_yaml(drifted, path, write=False)
    assert path.read_text() == dvc_yaml(STAGES)
